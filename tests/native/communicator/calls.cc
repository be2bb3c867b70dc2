#include "calls.h"

#include <atomic>
#include <chrono>
#include <thread>

namespace communicator_tests {
namespace {

// One element, one more than what goes the direct way, and more than a ring.
constexpr size_t kSizes[] = {1, 1025, 70001};

Call call(Communicator& communicator, Op op, const Floats& from, Floats& to, size_t count, int root = 0) {
  return {&communicator, op, DType::kFloat32, ReduceOp::kSum, root, from.data(), to.data(), count, nullptr};
}

Floats filled(size_t size, int rank) { return Floats(size, static_cast<float>(rank + 1)); }

float sum_of(int world_size) { return static_cast<float>(world_size * (world_size + 1) / 2); }

bool all_are(const Floats& values, float expected) {
  for (const float each : values)
    if (each != expected) return false;
  return true;
}

// values: a block for each rank, filled with its number.
bool is_gathered(const Floats& values, int world_size) {
  const size_t size = values.size() / world_size;
  for (size_t i = 0; i < values.size(); ++i)
    if (values[i] != static_cast<float>(i / size + 1)) return false;
  return true;
}

void run(const Call& one) { Communicator::run(&one, 1); }

std::vector<Exchange> exchanges(const Floats& from, Floats& to, int world_size) {
  const size_t size = from.size() / world_size;
  std::vector<Exchange> all;
  for (int peer = 0; peer < world_size; ++peer)
    all.push_back({from.data() + peer * size, size, to.data() + peer * size, size, DType::kFloat32, DType::kFloat32});
  return all;
}

Call all_to_all(Communicator& communicator, const std::vector<Exchange>& all, bool in_turn) {
  return {&communicator, Op::kAllToAll,  DType::kUint8, ReduceOp::kSum, 0, nullptr, nullptr, 0,
          all.data(),    in_turn ? 1 : 0};
}

}  // namespace

Call all_reduce(Communicator& communicator, const Floats& from, Floats& to) {
  return call(communicator, Op::kAllReduce, from, to, from.size());
}

Call reduce_scatter(Communicator& communicator, const Floats& from, Floats& to) {
  return call(communicator, Op::kReduceScatter, from, to, to.size());
}

Call reduce(Communicator& communicator, const Floats& from, Floats& to, int root) {
  return call(communicator, Op::kReduce, from, to, from.size(), root);
}

void check_calls(Way way, int world_size) {
  run_group(way, world_size, [&](Communicator& own) {
    for (const size_t size : kSizes) {
      const Floats one = filled(size, own.rank()), each = filled(size * world_size, own.rank());
      Floats to(size), gathered(size * world_size);
      run(call(own, Op::kAllReduce, one, to, size));
      check(all_are(to, sum_of(world_size)), "all_reduce");
      run(call(own, Op::kReduceScatter, each, to, size));
      check(all_are(to, sum_of(world_size)), "reduce_scatter");
      run(call(own, Op::kAllGather, one, gathered, size));
      check(is_gathered(gathered, world_size), "all_gather");
      run(call(own, Op::kBroadcast, one, to, size, world_size - 1));
      check(all_are(to, static_cast<float>(world_size)), "broadcast");
      run(call(own, Op::kReduce, one, to, size));
      check(own.rank() != 0 || all_are(to, sum_of(world_size)), "reduce");
      run(all_to_all(own, exchanges(each, gathered, world_size), false));
      check(is_gathered(gathered, world_size), "all_to_all");
    }
    const Floats none;
    Floats nowhere;
    run(call(own, Op::kBarrier, none, nowhere, 0));
  });
}

// Many calls in flight, one that blocks among them, some awaited by another thread, some by nobody.
void check_works(Way way, int world_size) {
  run_group(way, world_size, [&](Communicator& own) {
    for (const size_t size : kSizes) {
      const Floats one = filled(size, own.rank());
      std::vector<Floats> sums(6, Floats(size)), gathers(6, Floats(size * world_size));
      std::vector<std::shared_ptr<Work>> works;
      for (int round = 0; round < 6; ++round) {
        const Call calls[] = {all_reduce(own, one, sums[round]), call(own, Op::kAllGather, one, gathers[round], size)};
        works.push_back(Communicator::start(calls, 2));
      }
      Floats between(size);
      run(all_reduce(own, one, between));
      check(all_are(between, sum_of(world_size)), "a blocking call among calls in flight");
      std::thread other([&] {
        works[5]->wait();
        check(all_are(sums[5], sum_of(world_size)), "all_reduce in flight, awaited by another thread");
      });
      for (int round = 0; round < 5; ++round) {
        while (round == 3 && !works[round]->is_done()) std::this_thread::yield();
        works[round]->wait();
        check(all_are(sums[round], sum_of(world_size)), "all_reduce in flight");
        check(is_gathered(gathers[round], world_size), "all_gather in flight");
      }
      other.join();
    }
  });
}

void check_turns(Way way, int world_size) {
  run_group(way, world_size, [&](Communicator& own) {
    const Floats from = filled(40000 * world_size, own.rank());
    std::vector<Floats> to(4, Floats(from.size()));
    std::vector<std::shared_ptr<Work>> works;
    for (Floats& each : to) {
      const auto all = exchanges(from, each, world_size);
      const Call one = all_to_all(own, all, true);
      works.push_back(Communicator::start(&one, 1));
    }
    for (size_t i = 0; i < works.size(); ++i) {
      works[i]->wait();
      check(is_gathered(to[i], world_size), "all_to_all in turn");
    }
  });
}

// Sends in front of their receives, and two communicators, one of them with calls in flight.
void check_groups(Way way, int world_size) {
  const Meeting first(way, world_size), second(way, world_size);
  const auto thrown = run_ranks(world_size, [&](int rank) {
    const auto one = first.join(rank), other = second.join(rank);
    const Floats from = filled(90000, rank);
    Floats to(from.size()), sum(from.size()), started(from.size());
    const Call early = all_reduce(*other, from, started);
    const auto work = Communicator::start(&early, 1);
    const int next = (rank + 1) % world_size, previous = (rank + world_size - 1) % world_size;
    const Call calls[] = {call(*one, Op::kSend, from, to, from.size(), next),
                          call(*one, Op::kRecv, from, to, from.size(), previous), all_reduce(*other, from, sum)};
    Communicator::run(calls, 3);
    work->wait();
    check(all_are(to, static_cast<float>(previous + 1)), "a ring of sends and receives");
    check(all_are(sum, sum_of(world_size)) && all_are(started, sum_of(world_size)), "two communicators at once");
  });
  for (const std::string& text : thrown) check(text.empty(), name_of(way) + ", two communicators: " + text);
}

// A send of one element, then both ranks' in front of their receives, in one group.
void check_sends_that_wait() {
  const Meeting meeting(Way::kMemory, 2);
  std::atomic<bool> has_looked{false};
  const auto thrown = run_ranks(2, [&](int rank) {
    Communicator own(meeting.transport(rank), 20, /*sends_wait=*/true);
    const Floats from = filled(1, rank);
    Floats to(1);
    const Call send = call(own, Op::kSend, from, to, 1, 1 - rank),
               receive = call(own, Op::kRecv, from, to, 1, 1 - rank);
    if (rank == 0) {
      const auto work = Communicator::start(&send, 1);
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      check(!work->is_done(), "a send waits for its receipt");
      has_looked = true;
      work->wait();
    } else {
      while (!has_looked) std::this_thread::yield();
      Communicator::run(&receive, 1);
      check(all_are(to, 1), "a send that waited");
    }
    const Call both[] = {send, receive};
    Communicator::run(both, 2);
    check(all_are(to, static_cast<float>(2 - rank)), "sends that wait, in front of their receives");
  });
  for (const std::string& text : thrown) check(text.empty(), "sends that wait: " + text);
}

}  // namespace communicator_tests
