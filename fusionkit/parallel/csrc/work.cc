#include "work.h"

#include <stdexcept>

namespace fusionkit_parallel {

bool Work::is_done() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return is_done_;
}

void Work::wait() const {
  while (!wait_for(std::chrono::hours(1))) continue;
}

bool Work::wait_for(std::chrono::milliseconds time) const {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!finished_.wait_for(lock, time, [this] { return is_done_; })) return false;
  if (!failure_.empty()) throw std::runtime_error(failure_);
  return true;
}

void Work::finish(const std::string& failure) {
  const std::lock_guard<std::mutex> lock(mutex_);
  reductions_.clear();
  staging_.clear();
  failure_ = failure;
  is_done_ = true;
  finished_.notify_all();
}

}  // namespace fusionkit_parallel
