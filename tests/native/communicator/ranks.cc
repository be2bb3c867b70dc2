#include "ranks.h"

#include <atomic>
#include <cstdio>
#include <exception>
#include <thread>

#include "fusionkit/parallel/csrc/rendezvous.h"

namespace communicator_tests {
namespace {

std::atomic<long> num_checks{0}, num_wrong{0};

}  // namespace

std::string name_of(Way way) { return way == Way::kMemory ? "memory" : way == Way::kTcp ? "tcp" : "mixed"; }

Meeting::Meeting(Way way, int world_size) : world_size(world_size), way_(way) {
  if (way == Way::kMemory) return;
  for (int rank = 0; rank < world_size; ++rank) {
    listeners_.push_back(std::make_unique<Listener>("127.0.0.1"));
    const int host = way == Way::kTcp ? rank : rank / 2;
    members_.push_back({std::to_string(host), "127.0.0.1", listeners_.back()->port()});
  }
}

std::unique_ptr<Transport> Meeting::transport(int rank, double timeout) const {
  return way_ == Way::kMemory ? fusionkit_parallel::join(key_.id, rank, world_size, timeout)
                              : join_hosts(*listeners_[rank], key_, rank, members_, timeout, timeout);
}

std::unique_ptr<Communicator> Meeting::join(int rank, double timeout) const {
  return std::make_unique<Communicator>(transport(rank, timeout), timeout);
}

std::vector<std::string> run_ranks(int world_size, const std::function<void(int)>& work) {
  std::vector<std::string> thrown(world_size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank)
    threads.emplace_back([&, rank] {
      try {
        work(rank);
      } catch (const std::exception& error) {
        thrown[rank] = error.what();
      }
    });
  for (std::thread& each : threads) each.join();
  return thrown;
}

void run_group(Way way, int world_size, const std::function<void(Communicator&)>& work) {
  const Meeting meeting(way, world_size);
  for (const std::string& text : run_ranks(world_size, [&](int rank) { work(*meeting.join(rank)); }))
    check(text.empty(), name_of(way) + " of " + std::to_string(world_size) + ": " + text);
}

void check(bool passed, const std::string& what) {
  ++num_checks;
  if (passed) return;
  ++num_wrong;
  std::fprintf(stderr, "communicator_tests: wrong: %s\n", what.c_str());
}

Counts counts() { return {num_checks.load(), num_wrong.load()}; }

}  // namespace communicator_tests
