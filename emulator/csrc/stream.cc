#include "stream.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace fusionkit_emulator {

Stream::Stream(bool synchronous) : synchronous_(synchronous) {
  if (!synchronous_) thread_ = std::thread([this] { serve(); });
}

Stream::~Stream() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Stream::enqueue(std::function<void()> work) {
  push({std::move(work), false});
  if (synchronous_) require_sound();
}

void Stream::enqueue_always(std::function<void()> work) { push({std::move(work), true}); }

void Stream::push(Item item) {
  if (synchronous_) return run(item);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(item));
  }
  changed_.notify_all();
}

void Stream::drain() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return queue_.empty() && !busy_; });
}

void Stream::synchronize() {
  drain();
  require_sound();
}

bool Stream::idle() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return queue_.empty() && !busy_;
}

void Stream::serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return ending_ || !queue_.empty(); });
    if (queue_.empty()) return;
    busy_ = true;
    {
      const Item item = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      run(item);
    }
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}

void Stream::run(const Item& item) {
  try {
    if (!failed_ || item.always) item.work();
  } catch (const std::exception& error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    failed_ = true;
    error_ = error.what();
  }
}

void Stream::require_sound() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (failed_) throw std::runtime_error(error_);
}

void Event::record(Stream& stream) {
  uint64_t count;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    count = ++recorded_;
  }
  stream.enqueue_always([self = shared_from_this(), count] {
    {
      const std::lock_guard<std::mutex> lock(self->mutex_);
      self->reached_ = std::max(self->reached_, count);
    }
    self->changed_.notify_all();
  });
}

void Event::wait_for(uint64_t count) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return reached_ >= count; });
}

void Event::wait() {
  uint64_t count;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    count = recorded_;
  }
  wait_for(count);
}

void Event::wait(Stream& other) {
  uint64_t count;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    count = recorded_;
  }
  other.enqueue([self = shared_from_this(), count] { self->wait_for(count); });
}

bool Event::reached() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return reached_ >= recorded_;
}

}  // namespace fusionkit_emulator
