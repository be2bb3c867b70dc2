#include "channel.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fusionkit_parallel {
namespace {

// So that a peer begins with a message before it is all there.
constexpr size_t kPieceBytes = 64 << 10;

size_t padded(size_t size) {
  return (size + Transport::kAlignment - 1) / Transport::kAlignment * Transport::kAlignment;
}

}  // namespace

bool Channel::advance() {
  if (peer_ == transport_.rank) return advance_to_self();
  const bool sent = send_some();
  return receive_some() || sent;
}

const Plan* Channel::pending() const {
  if (!incoming.empty()) return &incoming.front().plan;
  return outgoing.empty() ? nullptr : &outgoing.front().plan;
}

bool Channel::send_some() {
  bool moved = false;
  while (!outgoing.empty()) {
    Outgoing& message = outgoing.front();
    if (!message.begun) {
      const Bytes room = transport_.room(peer_);
      if (message.has_header) {
        if (room.size < sizeof(Plan)) return moved;
        std::memcpy(room.data, &message.plan, sizeof(Plan));
        transport_.produced(peer_, sizeof(Plan));
        moved = true;
      }
      message.begun = true;
    }
    const size_t total = padded(message.size);
    const size_t ready = message.ready == nullptr || *message.ready == message.size ? total : *message.ready;
    while (message.sent < ready) {
      const Bytes room = transport_.room(peer_);
      const size_t n = std::min({room.size, ready - message.sent, kPieceBytes});
      if (n == 0) return moved;
      if (message.sent < message.size)
        std::memcpy(room.data, message.data + message.sent, std::min(n, message.size - message.sent));
      transport_.produced(peer_, n);
      message.sent += n;
      moved = true;
    }
    if (message.sent < total) return moved;
    outgoing.pop_front();
  }
  return moved;
}

bool Channel::receive_some() {
  bool moved = false;
  while (!incoming.empty()) {
    Incoming& message = incoming.front();
    if (!message.begun) {
      if (message.has_header) {
        const Bytes arrived = transport_.arrived(peer_);
        if (arrived.size < sizeof(Plan)) return moved;
        Plan theirs;
        std::memcpy(&theirs, arrived.data, sizeof(Plan));
        compare(theirs, message.plan);
        transport_.consumed(peer_, sizeof(Plan));
        moved = true;
      }
      message.begun = true;
    }
    const size_t total = padded(message.size);
    while (message.received < total) {
      if (message.reduction != nullptr && message.received < message.size) return moved;
      const Bytes arrived = transport_.arrived(peer_);
      const size_t n = std::min(arrived.size, total - message.received);
      if (n == 0) return moved;
      if (message.received < message.size)
        std::memcpy(message.into + message.received, arrived.data, std::min(n, message.size - message.received));
      transport_.consumed(peer_, n);
      message.received += n;
      moved = true;
    }
    incoming.pop_front();
  }
  return moved;
}

bool Channel::advance_to_self() {
  if (outgoing.empty() || incoming.empty()) return false;
  compare(outgoing.front().plan, incoming.front().plan);
  if (incoming.front().size != 0) std::memmove(incoming.front().into, outgoing.front().data, incoming.front().size);
  outgoing.pop_front();
  incoming.pop_front();
  return true;
}

void Channel::compare(const Plan& theirs, const Plan& ours) const {
  const std::string op = name_of(ours.op), peer = "rank " + std::to_string(peer_);
  if (!theirs.is_sealed() || theirs.group != ours.group)
    throw std::runtime_error(op + ": a message must begin with a plan of this communicator, got other bytes from " +
                             peer);
  if (theirs == ours) return;
  throw std::runtime_error(op + ": all ranks must make the same call, got " + theirs.describe() + " on " + peer +
                           " and " + ours.describe() + " on rank " + std::to_string(transport_.rank) + "; world_size " +
                           std::to_string(transport_.world_size) + ". Compare what the two ranks called last");
}

}  // namespace fusionkit_parallel
