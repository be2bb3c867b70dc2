#include "communicator.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <list>
#include <map>
#include <set>
#include <stdexcept>

#include "socket.h"

namespace fusionkit_parallel {
namespace {

constexpr size_t kReduceBytes = 64 << 10;      // at a time from each peer: its pages of the ring are free soon again
constexpr int64_t kSleepMicroseconds = 50000;  // how soon a dead peer is noticed
// How long a call that blocks looks again before it sleeps: a wake took some 30 us where this was measured, ten times
// what a small message takes. The progress thread, beside which the process computes, does not.
constexpr std::chrono::microseconds kSpin(50);
constexpr std::chrono::milliseconds kPatience(50);  // of a caller who wants to be asked whether to give up
constexpr char kClosed[] = "communicator: it was closed before the call was done";
constexpr int64_t kSleepOfManyMicroseconds = 200;  // a sleep hears one communicator only

class Interrupted : public std::runtime_error {
 public:
  Interrupted() : std::runtime_error("communicator: a call was interrupted") {}
};

// Who may be called: a call that another thread's close() overtook finds out here. Never destroyed: objects of the
// interpreter may end later.
std::mutex& registry() {
  static std::mutex& made = *new std::mutex;
  return made;
}

std::set<const Communicator*>& living() {
  static std::set<const Communicator*>& made = *new std::set<const Communicator*>;
  return made;
}

int num_cores() {
  cpu_set_t cores;
  return sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

}  // namespace

// Taken in the order of arrival, as good as.
class Communicator::Lock {
 public:
  explicit Lock(Communicator& of) : held_(of.mutex_, std::defer_lock) {
    const std::lock_guard<std::mutex> queue(of.queue_);
    held_.lock();
  }

 private:
  std::unique_lock<std::mutex> held_;
};

// Keeps a communicator from being deleted while a call is inside.
class Communicator::Use {
 public:
  explicit Use(Communicator* of) : of_(of) {
    const std::lock_guard<std::mutex> lock(registry());
    if (living().count(of) == 0) throw std::runtime_error(kClosed);
    if (std::count(used_here.begin(), used_here.end(), of) != 0)
      throw std::runtime_error(
          "communicator: a signal's handler must not make calls while its own thread waits in one, got one. Set a flag "
          "in the handler and call later");
    used_here.push_back(of);
    ++of_->num_running_;
  }
  ~Use() {
    used_here.erase(std::find(used_here.begin(), used_here.end(), of_));
    std::unique_lock<std::mutex> lock(registry());
    const bool deletes = --of_->num_running_ == 0 && of_->is_left_;
    lock.unlock();
    if (deletes) delete of_;
  }
  Use(const Use&) = delete;

 private:
  static thread_local std::vector<const Communicator*> used_here;
  Communicator* of_;
};

thread_local std::vector<const Communicator*> Communicator::Use::used_here;

bool Communicator::leave(Communicator* self) {
  {
    const std::lock_guard<std::mutex> lock(registry());
    if (living().erase(self) == 0) return true;
    self->is_leaving_ = true;
    self->is_left_ = self->num_running_ != 0;
    if (self->is_left_) {
      self->transport_->wake();
      return false;
    }
  }
  delete self;
  return true;
}

Communicator::Communicator(std::unique_ptr<Transport> transport, double timeout, bool sends_wait)
    : transport_(std::move(transport)),
      timeout_(timeout),
      sends_wait_(sends_wait),
      may_spin_(num_cores() >= transport_->num_near()),
      num_sent_(world_size()),
      num_received_(world_size()) {
  for (int peer = 0; peer < world_size(); ++peer) channels_.emplace_back(*transport_, turns_, peer);
  const std::lock_guard<std::mutex> lock(registry());
  living().insert(this);
}

Communicator::~Communicator() {
  is_leaving_ = true;
  {
    const std::lock_guard<std::mutex> lock(registry());
    living().erase(this);
  }
  {
    const Lock lock(*this);
    for (const auto& work : in_flight_) work->finish(kClosed);
    in_flight_.clear();
  }
  started_.notify_all();
  transport_->wake();
  if (progress_thread_.joinable()) progress_thread_.join();
}

std::string Communicator::name() const {
  char text[32];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(transport_->group));
  return text;
}

void Communicator::run(const Call* calls, size_t num_calls, const GivesUp& gives_up) {
  std::set<Communicator*> communicators;  // in the order of addresses, so that two threads lock in one order
  for (size_t i = 0; i < num_calls; ++i) communicators.insert(calls[i].communicator);
  const std::list<Use> uses(communicators.begin(), communicators.end());
  std::map<Communicator*, std::unique_ptr<Lock>> locks;
  for (Communicator* each : communicators) locks[each] = std::make_unique<Lock>(*each);
  for (size_t i = 0; i < num_calls; ++i) calls[i].communicator->check(calls[i]);
  std::vector<std::shared_ptr<Work>> own_works, others;
  std::vector<Communicator*> own;
  try {
    for (Communicator* each : communicators) {
      (each->is_progressing_ ? others : own_works).push_back(each->schedule(calls, num_calls));
      if (!each->is_progressing_) {
        own.push_back(each);
        continue;
      }
      each->transport_->wake();
      locks[each].reset();
    }
    move(own, own_works, communicators, gives_up);
    locks.clear();
    for (const auto& work : others)
      while (!work->wait_for(kPatience)) ask(communicators, gives_up);
  } catch (const std::exception& error) {
    locks.clear();
    const bool is_interrupted = dynamic_cast<const Interrupted*>(&error) != nullptr;
    for (Communicator* each : communicators) {
      const Lock lock(*each);
      each->fail(error.what() + (is_interrupted ? " on rank " + std::to_string(each->rank()) : ""));
    }
    throw;
  }
}

void Communicator::ask(const std::set<Communicator*>& all, const GivesUp& gives_up) {
  for (const Communicator* each : all)
    if (each->is_leaving_) throw std::runtime_error(kClosed);
  if (gives_up != nullptr && gives_up()) throw Interrupted();
}

void Communicator::move(const std::vector<Communicator*>& communicators,
                        const std::vector<std::shared_ptr<Work>>& works, const std::set<Communicator*>& all,
                        const GivesUp& gives_up) {
  auto last_moved = Clock::now(), last_asked = last_moved;
  while (!std::all_of(works.begin(), works.end(), [](const auto& work) { return work->is_done(); })) {
    if (const auto now = Clock::now(); now - last_asked >= kPatience) {
      last_asked = now;
      ask(all, gives_up);
    }
    Transport& first = *communicators.front()->transport_;
    const uint32_t seen = first.changes();
    bool moved = false;
    for (Communicator* each : communicators) moved |= each->advance();
    if (moved) {
      last_moved = Clock::now();
      continue;
    }
    if (communicators.front()->may_spin_ && Clock::now() - last_moved < kSpin) {
      for (Communicator* each : communicators) each->transport_->wait(each->transport_->changes(), 0);
      std::this_thread::yield();  // to a peer on the same core, where there are other processes as well
      continue;
    }
    for (Communicator* each : communicators) moved |= each->has_moved_after_all(last_moved);
    if (moved) {
      last_moved = Clock::now();
      continue;
    }
    first.wait(seen, communicators.size() == 1 ? kSleepMicroseconds : kSleepOfManyMicroseconds);
    for (Communicator* each : communicators)
      if (each != communicators.front()) each->transport_->wait(each->transport_->changes(), 0);
  }
}

std::shared_ptr<Work> Communicator::start(const Call* calls, size_t num_calls) {
  Communicator& self = *calls[0].communicator;
  for (size_t i = 0; i < num_calls; ++i)
    if (calls[i].communicator != &self)
      throw std::invalid_argument("start: all calls must be of one communicator, got several. Start each by itself");
  const Use use(&self);
  const Lock lock(self);
  for (size_t i = 0; i < num_calls; ++i) self.check(calls[i]);
  std::shared_ptr<Work> work;
  try {
    work = self.schedule(calls, num_calls);
    self.advance();
  } catch (const std::exception& error) {
    self.fail(error.what());
    throw;
  }
  if (work->is_done()) return work;
  if (!self.progress_thread_.joinable()) self.progress_thread_ = std::thread(&Communicator::progress, &self);
  self.started_.notify_one();
  self.transport_->wake();  // it may be waiting for less than there is to wait for now
  return work;
}

void Communicator::progress() {
  std::unique_lock<std::mutex> lock(mutex_);
  auto last_moved = Clock::now();
  while (!is_leaving_) {
    if (in_flight_.empty()) {
      is_progressing_ = false;
      started_.wait(lock);
      last_moved = Clock::now();
      continue;
    }
    is_progressing_ = true;
    try {
      const uint32_t seen = transport_->changes();
      const bool moved = advance() || (!in_flight_.empty() && has_moved_after_all(last_moved));
      if (moved) last_moved = Clock::now();
      lock.unlock();
      if (!moved) transport_->wait(seen, kSleepMicroseconds);
      const std::lock_guard<std::mutex> queue(queue_);
      lock.lock();
    } catch (const std::exception& error) {
      fail(error.what());
    }
  }
}

bool Communicator::advance() {
  bool moved = false;
  // Each rank begins with the next one, so that not all talk to rank 0 first.
  for (int step = 0; step < world_size(); ++step) moved |= channels_[(rank() + step) % world_size()].advance();
  for (const auto& work : in_flight_)
    for (const auto& reduction : work->reductions_)
      if (reduction->done < reduction->size) moved |= advance(*reduction);
  const auto done = [](const std::shared_ptr<Work>& work) { return work->num_pending_ == 0; };
  for (const auto& work : in_flight_) {
    if (!done(work)) continue;
    work->finish("");
    moved = true;  // a rank alone has calls without a message
  }
  in_flight_.erase(std::remove_if(in_flight_.begin(), in_flight_.end(), done), in_flight_.end());
  return moved;
}

bool Communicator::advance(Reduction& reduction) {
  std::vector<const char*> sources(world_size());
  size_t n = std::min(reduction.size - reduction.done, kReduceBytes);
  for (int peer = 0; peer < world_size() && n != 0; ++peer) {
    if (peer == rank()) {
      sources[peer] = reduction.own + reduction.done;
      continue;
    }
    const auto& incoming = channels_[peer].incoming;
    if (incoming.empty() || !incoming.front().begun || incoming.front().reduction != &reduction) return false;
    const Bytes arrived = transport_->arrived(peer, incoming.front().rest());
    sources[peer] = arrived.data;
    n = std::min(n, arrived.size);
  }
  n -= n % size_of(reduction.dtype);
  if (n == 0) return false;
  reduce(reduction.dtype, reduction.op, sources.data(), world_size(), n / size_of(reduction.dtype),
         reduction.out + reduction.done);
  for (int peer = 0; peer < world_size(); ++peer) {
    if (peer == rank()) continue;
    transport_->consumed(peer, n);
    channels_[peer].incoming.front().received += n;
  }
  reduction.done += n;
  return true;
}

bool Communicator::has_moved_after_all(Clock::time_point last_moved) {
  const std::string failure = transport_->failure();
  if (!failure.empty()) {
    const Plan* pending = nullptr;
    for (int peer = 0; peer < world_size() && pending == nullptr; ++peer) pending = channels_[peer].pending();
    const std::string op = pending == nullptr ? "communicator" : name_of(pending->op);
    throw std::runtime_error(op + ": another rank failed: " + failure);
  }
  const double waited = std::chrono::duration<double>(Clock::now() - last_moved).count();
  if (waited < kSleepMicroseconds * 1e-6 && waited < timeout_) return false;
  const std::optional<Missed> missed = lost_peer();
  if (!missed.has_value() && waited < timeout_) return false;
  if (advance()) return true;  // what came before it went, or while this process did not run
  if (missed.has_value()) throw missing_answer(missed->peer, missed->got);
  if (const int peer = late_peer(); peer >= 0) throw missing_answer(peer, "nothing");
  return false;
}

// A rank may leave, or end, as soon as its own part is done: that is no fault while all that is needed of it is there.
std::optional<Communicator::Missed> Communicator::lost_peer() const {
  for (int peer = 0; peer < world_size(); ++peer) {
    const Channel& channel = channels_[peer];
    if (peer == rank() || (!channel.awaits_bytes() && channel.outgoing.empty())) continue;
    if (const std::string lost = transport_->lost(peer); !lost.empty()) return Missed{peer, lost};
  }
  return std::nullopt;
}

// A peer that takes nothing may itself be waiting for the one that sends nothing: so that one comes first.
int Communicator::late_peer() const {
  const auto first = [this](const auto& is_late) {
    const auto found = std::find_if(channels_.begin(), channels_.end(), is_late);
    return found == channels_.end() ? -1 : static_cast<int>(found - channels_.begin());
  };
  if (const int peer = first([](const Channel& each) { return each.awaits_bytes(); }); peer >= 0) return peer;
  if (const int peer = first([](const Channel& each) { return each.awaits_room(); }); peer >= 0) return peer;
  return first([](const Channel& each) { return each.pending() != nullptr; });
}

std::runtime_error Communicator::missing_answer(int peer, const std::string& got) const {
  const Plan& pending = *channels_[peer].pending();
  return std::runtime_error(std::string(name_of(pending.op)) + ": rank " + std::to_string(peer) +
                            " must answer within " + seconds(timeout_) + ", got " + got + "; " + pending.describe() +
                            ", on rank " + std::to_string(rank()) + " of " + std::to_string(world_size()) +
                            ", communicator " + name());
}

void Communicator::fail(const std::string& text) noexcept {
  if (!is_leaving_ && transport_->failure().empty()) transport_->fail(text);
  for (Channel& channel : channels_) {
    channel.outgoing.clear();
    channel.incoming.clear();
  }
  for (const auto& work : in_flight_) work->finish(text);
  in_flight_.clear();
  turns_.clear();
}

}  // namespace fusionkit_parallel
