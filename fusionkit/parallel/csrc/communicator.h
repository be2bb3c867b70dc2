// A group of ranks and the calls that they make together.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "channel.h"
#include "plan.h"
#include "transport.h"

namespace fusionkit_parallel {

class Communicator;

// What goes to and comes from one rank in an all_to_all.
struct Exchange {
  const void* send;
  uint64_t send_count;
  void* recv;
  uint64_t recv_count;
  DType send_dtype, recv_dtype;
};

// One call of one rank. `count` is in elements: of `send` for all_gather, of `recv` for reduce_scatter.
struct Call {
  Communicator* communicator;
  Op op;
  DType dtype;
  ReduceOp reduce;
  int32_t root;  // of a broadcast or reduce; the peer of a send or recv
  const void* send;
  void* recv;
  uint64_t count;
  const Exchange* exchanges;  // one for each rank: all_to_all
};

// The elements that peers send, reduced in the order of ranks as they arrive.
struct Reduction {
  DType dtype;
  ReduceOp op;
  const char* own;
  char* out;
  size_t size;      // bytes
  size_t done = 0;  // bytes of `out` that are final
};

class Communicator {
 public:
  // A call fails when nothing has moved for `timeout` seconds.
  Communicator(std::unique_ptr<Transport> transport, double timeout);

  int rank() const { return transport_->rank; }
  int world_size() const { return transport_->world_size; }
  std::string name() const;

  // Makes the calls together, of one or more communicators, and returns when all are done. Calls of one communicator
  // begin in the order given, and a send can wait for a receive that is behind it. After a failure a communicator
  // fails always, on all ranks.
  static void run(const Call* calls, size_t num_calls);

 private:
  using Clock = std::chrono::steady_clock;

  // schedule.cc: a call as messages to and from each peer.
  void schedule(const Call& call);
  void check(const Call& call) const;
  Plan plan_of(const Call& call);
  void send_to(int peer, const Plan& plan, const void* data, size_t size);
  void expect_from(int peer, const Plan& plan, void* into, size_t size);
  void schedule_all_reduce(const Call& call, const Plan& plan);
  void schedule_reduce_scatter(const Call& call, const Plan& plan);
  void schedule_reduce(const Call& call, const Plan& plan);
  void schedule_all_gather(const Call& call, const Plan& plan);
  void schedule_broadcast(const Call& call, const Plan& plan);
  void schedule_all_to_all(const Call& call, const Plan& plan);
  void schedule_pair(const Call& call, const Plan& plan);
  Reduction& new_reduction(const Call& call, const void* own, void* out, size_t size);

  bool advance();
  bool advance(Reduction& reduction);
  bool is_done() const;
  void require_progress(Clock::time_point last_moved, const Call& call);
  void fail(const std::string& text) noexcept;

  const std::unique_ptr<Transport> transport_;
  const double timeout_;
  std::mutex mutex_;  // one run at a time
  std::vector<Channel> channels_;
  std::vector<std::unique_ptr<Reduction>> reductions_;
  std::vector<std::unique_ptr<char[]>> staging_;
  uint64_t num_collectives_ = 0;
  std::vector<uint64_t> num_sent_, num_received_;
};

}  // namespace fusionkit_parallel
