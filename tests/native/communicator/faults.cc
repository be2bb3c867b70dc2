#include "faults.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "calls.h"

namespace communicator_tests {
namespace {

constexpr int kRanks = 3;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

void pause(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

void run_all_reduce(Communicator& own, size_t size) {
  const Floats from(size);
  Floats to(size);
  const Call one = all_reduce(own, from, to);
  Communicator::run(&one, 1);
}

// Sends nothing to one peer for a while.
class HeldBack : public Transport {
 public:
  HeldBack(std::unique_ptr<Transport> inner, int peer, const std::atomic<bool>& is_held)
      : Transport(inner->rank, inner->world_size, inner->group),
        inner_(std::move(inner)),
        peer_(peer),
        held_(is_held) {}

  size_t write(int peer, const char* data, size_t size, bool more) override {
    return peer == peer_ && held_ ? 0 : inner_->write(peer, data, size, more);
  }
  size_t read(int peer, char* into, size_t size) override { return inner_->read(peer, into, size); }
  Bytes arrived(int peer, size_t wanted) override { return inner_->arrived(peer, wanted); }
  void consumed(int peer, size_t num_bytes) override { inner_->consumed(peer, num_bytes); }
  int num_near() const override { return inner_->num_near(); }
  uint32_t changes() override { return inner_->changes(); }
  void wait(uint32_t seen, int64_t microseconds) override { inner_->wait(seen, microseconds); }
  void wake() override { inner_->wake(); }
  std::string lost(int peer) override { return inner_->lost(peer); }
  void fail(const std::string& text) override { inner_->fail(text); }
  std::string failure() override { return inner_->failure(); }

 private:
  const std::unique_ptr<Transport> inner_;
  const int peer_;
  const std::atomic<bool>& held_;
};

std::unique_ptr<Communicator> join_held_back(const Meeting& meeting, int rank, int peer,
                                             const std::atomic<bool>& is_held) {
  constexpr double kTimeout = 20;
  return std::make_unique<Communicator>(std::make_unique<HeldBack>(meeting.transport(rank), peer, is_held), kTimeout);
}

}  // namespace

void check_mismatch(Way way) {
  const Meeting meeting(way, kRanks);
  const auto thrown = run_ranks(kRanks, [&](int rank) {
    const auto own = meeting.join(rank);
    run_all_reduce(*own, rank == 1 ? 9 : 8);
    run_all_reduce(*own, 8);
  });
  for (const std::string& text : thrown)
    check(contains(text, "all ranks must make the same call"), name_of(way) + ", another shape: " + text);
}

// The others wait for a rank that goes away with calls of its own in flight.
void check_leaving(Way way) {
  const Meeting meeting(way, kRanks);
  const auto thrown = run_ranks(kRanks, [&](int rank) {
    const auto own = meeting.join(rank);
    run_all_reduce(*own, 50000);
    if (rank != 2) return run_all_reduce(*own, 50000);
    pause(20);
  });
  check(thrown[2].empty(), thrown[2]);
  for (int rank = 0; rank < 2; ++rank)
    check(contains(thrown[rank], "got a rank that has left"), name_of(way) + ", leaving: " + thrown[rank]);
}

// The first rank is done and leaves; what the last one sends to the rank between them is still on its way.
void check_leaving_early(Way way) {
  for (const bool scatters : {true, false}) {
    for (const size_t size : {1, 1025, 20000}) {
      const Meeting meeting(way, kRanks);
      std::atomic<bool> is_held{true};
      const auto thrown = run_ranks(kRanks, [&](int rank) {
        auto own = rank == 2 ? join_held_back(meeting, rank, 1, is_held) : meeting.join(rank);
        const Floats from(scatters ? size * kRanks : size, static_cast<float>(rank + 1));
        Floats to(size);
        const Call one = scatters ? reduce_scatter(*own, from, to) : reduce(*own, from, to, 1);
        Communicator::run(&one, 1);
        check(rank != 1 || (to.front() == 6 && to.back() == 6), name_of(way) + ", a reduction after a rank has left");
        if (rank != 0) return;
        own.reset();
        pause(200);
        is_held = false;
      });
      for (const std::string& text : thrown) check(text.empty(), name_of(way) + ", leaving early: " + text);
    }
  }
}

// Each of the first two waits for the other to take its bytes, because the last one sends none.
void check_blame(Way way) {
  const Meeting meeting(way, kRanks);
  std::atomic<int> num_told{0};
  const auto thrown = run_ranks(kRanks, [&](int rank) {
    const Floats from(kRanks * size_t{4000000});  // made before the clock runs
    Floats to(from.size() / kRanks);
    const auto own = meeting.join(rank, 3);
    run_all_reduce(*own, 8);
    const Call one = reduce_scatter(*own, from, to);
    if (rank == 2) {
      while (num_told < 2) pause(50);
      return;
    }
    try {
      Communicator::run(&one, 1);
    } catch (const std::exception&) {
      ++num_told;
      throw;
    }
    ++num_told;
  });
  for (int rank = 0; rank < 2; ++rank)
    check(contains(thrown[rank], "rank 2 must answer within 3 s, got nothing"),
          name_of(way) + ", a late rank: " + thrown[rank]);
}

// The others stay until then: a rank that has left before would be the error's reason.
void check_closing(Way way) {
  const Meeting meeting(way, kRanks);
  std::atomic<bool> is_closed{false};
  const auto thrown = run_ranks(kRanks, [&](int rank) {
    auto own = meeting.join(rank);
    const Floats from(200000);
    Floats to(from.size());
    const Call one = all_reduce(*own, from, to);
    if (rank != 0) {
      while (!is_closed) pause(5);
      return;
    }
    const std::shared_ptr<Work> work = Communicator::start(&one, 1);
    pause(30);
    own.reset();
    is_closed = true;
    work->wait();
  });
  check(contains(thrown[0], "closed before the call was done"), name_of(way) + ", closing: " + thrown[0]);
}

void check_absence(Way way) {
  const Meeting meeting(way, kRanks);
  const auto thrown = run_ranks(kRanks - 1, [&](int rank) { meeting.join(rank, 0.3); });
  check(contains(thrown[0], "rank 2 did not"), name_of(way) + ", a missing rank: " + thrown[0]);
  check(!thrown[1].empty(), name_of(way) + ", a missing rank");
}

void check_strangers() {
  const Meeting meeting(Way::kTcp, kRanks);
  std::vector<int> strangers;
  for (int i = 0; i < 40; ++i) {
    strangers.push_back(socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(meeting.port(0)));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    check(connect(strangers.back(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "a stranger connects");
    const std::string said(static_cast<size_t>(i) * i, 'x');
    send(strangers.back(), said.data(), said.size(), MSG_NOSIGNAL);
  }
  const auto thrown = run_ranks(kRanks, [&](int rank) { run_all_reduce(*meeting.join(rank), 1000); });
  for (const std::string& text : thrown) check(text.empty(), "strangers: " + text);
  for (const int each : strangers) close(each);
}

}  // namespace communicator_tests
