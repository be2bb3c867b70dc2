#include "faults.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
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

void check_closing(Way way) {
  const Meeting meeting(way, kRanks);
  const auto thrown = run_ranks(kRanks, [&](int rank) {
    auto own = meeting.join(rank);
    const Floats from(200000);
    Floats to(from.size());
    const Call one = all_reduce(*own, from, to);
    std::shared_ptr<Work> work;
    if (rank == 0) work = Communicator::start(&one, 1);
    pause(30);
    own.reset();
    if (rank == 0) work->wait();
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
