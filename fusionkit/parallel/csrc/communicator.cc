#include "communicator.h"

#include <algorithm>
#include <cstdio>
#include <set>
#include <stdexcept>

namespace fusionkit_parallel {
namespace {

constexpr size_t kReduceBytes = 64 << 10;      // at a time from each peer: its pages of the ring are free soon again
constexpr int64_t kSleepMicroseconds = 50000;  // how soon a dead peer is noticed
constexpr int64_t kSleepOfManyMicroseconds = 200;  // a sleep hears one communicator only

std::string seconds(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g s", value);
  return text;
}

}  // namespace

Communicator::Communicator(std::unique_ptr<Transport> transport, double timeout)
    : transport_(std::move(transport)), timeout_(timeout), num_sent_(world_size()), num_received_(world_size()) {
  for (int peer = 0; peer < world_size(); ++peer) channels_.emplace_back(*transport_, peer);
}

std::string Communicator::name() const {
  char text[32];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(transport_->group));
  return text;
}

void Communicator::run(const Call* calls, size_t num_calls) {
  std::set<Communicator*> communicators;  // in the order of addresses, so that two threads lock in one order
  for (size_t i = 0; i < num_calls; ++i) communicators.insert(calls[i].communicator);
  std::vector<std::unique_lock<std::mutex>> locks;
  for (Communicator* each : communicators) locks.emplace_back(each->mutex_);
  for (size_t i = 0; i < num_calls; ++i) calls[i].communicator->check(calls[i]);
  try {
    for (size_t i = 0; i < num_calls; ++i) calls[i].communicator->schedule(calls[i]);
    auto last_moved = Clock::now();
    while (true) {
      Transport& first = *(*communicators.begin())->transport_;
      const uint32_t seen = first.changes();
      bool moved = false, done = true;
      for (Communicator* each : communicators) {
        moved |= each->advance();
        done &= each->is_done();
      }
      if (done) break;
      if (moved) {
        last_moved = Clock::now();
        continue;
      }
      for (Communicator* each : communicators) each->require_progress(last_moved, calls[0]);
      first.wait(seen, communicators.size() == 1 ? kSleepMicroseconds : kSleepOfManyMicroseconds);
    }
  } catch (const std::exception& error) {
    for (Communicator* each : communicators) each->fail(error.what());
    throw;
  }
  for (Communicator* each : communicators) {
    each->reductions_.clear();
    each->staging_.clear();
  }
}

bool Communicator::advance() {
  bool moved = false;
  // Each rank begins with the next one, so that not all talk to rank 0 first.
  for (int step = 0; step < world_size(); ++step) moved |= channels_[(rank() + step) % world_size()].advance();
  for (const auto& reduction : reductions_)
    if (reduction->done < reduction->size) moved |= advance(*reduction);
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
    const Bytes arrived = transport_->arrived(peer);
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

bool Communicator::is_done() const {
  return std::all_of(channels_.begin(), channels_.end(), [](const Channel& each) { return each.pending() == nullptr; });
}

void Communicator::require_progress(Clock::time_point last_moved, const Call& call) {
  const std::string failure = transport_->failure();
  if (!failure.empty()) throw std::runtime_error(std::string(name_of(call.op)) + ": another rank failed: " + failure);
  const double waited = std::chrono::duration<double>(Clock::now() - last_moved).count();
  if (waited < kSleepMicroseconds * 1e-6 && waited < timeout_) return;
  for (int peer = 0; peer < world_size(); ++peer) {
    const Plan* pending = channels_[peer].pending();
    if (pending == nullptr) continue;
    const std::string lost = peer == rank() ? "" : transport_->lost(peer);
    const bool is_late = waited >= timeout_;
    if (lost.empty() && !is_late) continue;
    if (advance()) return;  // what it wrote before
    throw std::runtime_error(std::string(name_of(pending->op)) + ": rank " + std::to_string(peer) +
                             " must answer within " + seconds(timeout_) + ", got " + (lost.empty() ? "nothing" : lost) +
                             "; " + pending->describe() + ", on rank " + std::to_string(rank()) + " of " +
                             std::to_string(world_size()) + ", communicator " + name());
  }
}

void Communicator::fail(const std::string& text) noexcept {
  const std::string earlier = transport_->failure();
  if (earlier.empty()) transport_->fail(text);
  for (Channel& channel : channels_) {
    channel.outgoing.clear();
    channel.incoming.clear();
  }
  reductions_.clear();
  staging_.clear();
}

}  // namespace fusionkit_parallel
