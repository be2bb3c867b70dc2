// The transport between hosts: for each pair of ranks one TCP connection for data and one for what must not wait.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "control.h"
#include "stream.h"
#include "transport.h"

namespace fusionkit_parallel {

// A connected pair of sockets, and the peer's address for errors.
struct Link {
  Socket data, control;
  std::string address;
};

class Tcp : public Transport {
 public:
  // links: one for each rank, without sockets for this rank and for those that are reached by another transport.
  Tcp(std::vector<Link> links, int rank, uint64_t group, double timeout);
  ~Tcp() override;

  size_t write(int peer, const char* data, size_t size, bool more) override;
  size_t read(int peer, char* into, size_t size) override;
  Bytes arrived(int peer, size_t wanted) override;
  void consumed(int peer, size_t num_bytes) override;
  int num_near() const override { return 1; }
  uint32_t changes() override { return wakes_.load(); }
  void wait(uint32_t seen, int64_t microseconds) override;
  void wake() override;
  std::string lost(int peer) override;
  void fail(const std::string& text) override;
  std::string failure() override;

  bool has(int peer) const { return peers_[peer] != nullptr; }
  // An eventfd that ends a sleep as well.
  void watch(int event);
  void sleep(int64_t microseconds);

 private:
  using Clock = std::chrono::steady_clock;

  struct Peer {
    Peer(Link link) : data(std::move(link.data)), control(std::move(link.control)), address(std::move(link.address)) {}
    Stream data;
    Control control;
    std::string address;
    Clock::time_point silent_since = {};  // the data have ended, and the peer has not said why
  };

  void add(int fd, uint32_t events, uint64_t tag);
  void take(uint64_t tag, uint32_t events);

  std::vector<std::unique_ptr<Peer>> peers_;
  Socket epoll_, event_;
  std::atomic<uint32_t> wakes_{0};
  std::atomic<bool> sleeps_{false};
  std::string failure_;
};

}  // namespace fusionkit_parallel
