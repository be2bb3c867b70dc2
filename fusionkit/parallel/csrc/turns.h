// The order in which calls that asked for it may begin to send: one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

namespace fusionkit_parallel {

// Without it all calls in flight share the link, and the first is delayed by the later ones.
class Turns {
 public:
  static constexpr uint64_t kNone = 0;

  uint64_t take() {
    left_.push_back(0);
    return first_ + left_.size() - 1;
  }
  void add(uint64_t turn) { ++left_[turn - first_]; }  // a message
  bool may_send(uint64_t turn) const { return turn <= first_; }
  void sent(uint64_t turn) {
    if (turn != kNone) --left_[turn - first_];
    settle();
  }
  // Ends the turns at the front that have nothing more to send.
  void settle() {
    for (; !left_.empty() && left_.front() == 0; ++first_) left_.pop_front();
  }
  void clear() {
    first_ += left_.size();
    left_.clear();
  }

 private:
  uint64_t first_ = 1;
  std::deque<size_t> left_;  // messages of each turn that have not gone, from `first_` on
};

}  // namespace fusionkit_parallel
