// A group of ranks and the calls that they make together.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "channel.h"
#include "plan.h"
#include "transport.h"
#include "turns.h"
#include "work.h"

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
  int32_t in_turn = 0;        // an all_to_all that begins to send when the earlier ones with this mark have sent all
};

// The thread that waits for a call moves its bytes. A thread of the communicator's own does so while there are calls
// that were started and that nobody may be waiting for; it exists from the first of them on.
class Communicator {
 public:
  // Asked every 50 ms by a call that waits: whether its caller gives up.
  using GivesUp = std::function<bool()>;

  // A call fails when nothing has moved for `timeout` seconds. With `sends_wait`, a send of any size ends when the peer
  // has received it, which `join`ed ranks can tell; else when nothing of it is left here to be sent.
  Communicator(std::unique_ptr<Transport> transport, double timeout, bool sends_wait = false);
  ~Communicator();

  int rank() const { return transport_->rank; }
  int world_size() const { return transport_->world_size; }
  std::string name() const;

  // Makes the calls together, of one or more communicators, and returns when all are done. Calls of one communicator
  // begin in the order given, and a send can wait for a receive that is behind it. After a failure a communicator
  // fails always, on all ranks; it does so too when the caller gives up, or closes it from another thread.
  static void run(const Call* calls, size_t num_calls, const GivesUp& gives_up = nullptr);

  // Ends the calls that run, of whatever thread, and deletes it: at once, or when the last of them has ended. Returns
  // whether it is gone; until it is, what works in flight read and write must stay.
  static bool leave(Communicator* self);

  // As run, for one communicator, but returns at once. What the calls read and write must stay until the work is done.
  // Calls in flight have the order in which they were started, on every rank the same.
  static std::shared_ptr<Work> start(const Call* calls, size_t num_calls);

 private:
  using Clock = std::chrono::steady_clock;
  class Lock;
  class Use;

  // schedule.cc: a call as messages to and from each peer.
  std::shared_ptr<Work> schedule(const Call* calls, size_t num_calls);
  void schedule(const Call& call);
  void check(const Call& call) const;
  Plan plan_of(const Call& call);
  Outgoing& send_to(int peer, const Plan& plan, const void* data, size_t size);
  Incoming& expect_from(int peer, const Plan& plan, void* into, size_t size);
  void schedule_all_reduce(const Call& call, const Plan& plan);
  void schedule_reduce_scatter(const Call& call, const Plan& plan);
  void schedule_reduce(const Call& call, const Plan& plan);
  void schedule_all_gather(const Call& call, const Plan& plan);
  void schedule_broadcast(const Call& call, const Plan& plan);
  void schedule_all_to_all(const Call& call, const Plan& plan);
  void schedule_pair(const Call& call, const Plan& plan);
  Reduction& new_reduction(const Call& call, const void* own, void* out, size_t size);

  // Moves the bytes of these until all works are done.
  static void move(const std::vector<Communicator*>& own, const std::vector<std::shared_ptr<Work>>& works,
                   const std::set<Communicator*>& all, const GivesUp& gives_up);
  static void ask(const std::set<Communicator*>& all, const GivesUp& gives_up);
  bool advance();
  bool advance(Reduction& reduction);
  struct Missed {
    int peer;
    std::string got;
  };

  // After a time without progress: whether a last look finds some. Throws when nobody can be waited for any longer.
  bool has_moved_after_all(Clock::time_point last_moved);
  std::optional<Missed> lost_peer() const;  // one without which nothing can go on
  int late_peer() const;                    // the one that nothing moves for; -1 when there is no call
  std::runtime_error missing_answer(int peer, const std::string& got) const;
  void fail(const std::string& text) noexcept;
  void progress();

  const std::unique_ptr<Transport> transport_;
  const double timeout_;
  const bool sends_wait_;
  const bool may_spin_;
  std::atomic<bool> is_leaving_{false};
  int num_running_ = 0;   // calls that are inside run or start; these two are guarded by `registry`
  bool is_left_ = false;  // the last of them deletes it
  std::mutex queue_;      // whoever waits for mutex_ holds it, so that the progress thread cannot come first again
  std::mutex mutex_;      // for all below
  std::condition_variable started_;
  bool is_progressing_ = false;  // the progress thread moves what is in flight
  Turns turns_;
  std::vector<Channel> channels_;
  std::vector<std::shared_ptr<Work>> in_flight_;
  uint64_t num_collectives_ = 0;
  std::vector<uint64_t> num_sent_, num_received_;
  std::thread progress_thread_;
};

}  // namespace fusionkit_parallel
