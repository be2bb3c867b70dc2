#include "channel.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fusionkit_parallel {
namespace {

constexpr size_t kShareBytes = 1 << 20;
constexpr char kZeros[Transport::kAlignment] = {};

size_t padded(size_t size) {
  return (size + Transport::kAlignment - 1) / Transport::kAlignment * Transport::kAlignment;
}

}  // namespace

size_t Incoming::rest() const { return padded(size) - received; }

bool Channel::advance() {
  if (peer_ == transport_.rank) return advance_to_self();
  const bool sent = send_some();
  return receive_some() || sent;
}

const Plan* Channel::pending() const {
  if (!incoming.empty()) return &incoming.front().plan;
  return outgoing.empty() ? nullptr : &outgoing.front().plan;
}

bool Channel::awaits_bytes() const {
  if (incoming.empty()) return false;
  const Incoming& first = incoming.front();
  if (!first.begun || first.reduction == nullptr || first.received == first.size) return true;
  return transport_.arrived(peer_, first.rest()).size < size_of(first.reduction->dtype);
}

bool Channel::awaits_room() const {
  if (outgoing.empty() || !turns_.may_send(outgoing.front().turn)) return false;
  const Outgoing& first = outgoing.front();
  return first.ready == nullptr || *first.ready == first.size || first.sent < *first.ready;
}

bool Channel::send_some() {
  moved_ = 0;
  bool is_any_done = false;
  while (!outgoing.empty() && turns_.may_send(outgoing.front().turn) && send(outgoing.front())) {
    --outgoing.front().work->num_pending_;
    turns_.sent(outgoing.front().turn);
    outgoing.pop_front();
    is_any_done = true;
  }
  return moved_ != 0 || is_any_done;
}

bool Channel::send(Outgoing& message) {
  const size_t ready = message.ready == nullptr ? message.size : *message.ready, total = padded(message.size);
  while (message.has_header && message.header_sent < sizeof(Plan)) {
    const char* header = reinterpret_cast<const char*>(&message.plan);
    const size_t rest = sizeof(Plan) - message.header_sent;
    const size_t n = transport_.write(peer_, header + message.header_sent, rest, ready != 0);
    if (n == 0) return false;
    message.header_sent += n;
    moved_ += n;
  }
  while (message.sent < ready) {
    const bool is_padded = ready == message.size && total != ready;
    const size_t n = transport_.write(peer_, message.data + message.sent, ready - message.sent, is_padded);
    if (n == 0) return false;
    message.sent += n;
    moved_ += n;
    if (moved_ >= kShareBytes) break;
  }
  if (message.sent < message.size) return false;
  while (message.sent < total) {
    const size_t n = transport_.write(peer_, kZeros, total - message.sent, false);
    if (n == 0) return false;
    message.sent += n;
  }
  return !message.until_read || transport_.was_read_by(peer_);
}

bool Channel::receive_some() {
  moved_ = 0;
  bool is_any_done = false;
  while (!incoming.empty() && receive(incoming.front())) {
    --incoming.front().work->num_pending_;
    incoming.pop_front();
    is_any_done = true;
  }
  return moved_ != 0 || is_any_done;
}

bool Channel::receive(Incoming& message) {
  if (!message.begun && !receive_header(message)) return false;
  while (message.received < message.size) {
    if (message.reduction != nullptr) return false;  // which reads as soon as all ranks' elements are there
    const size_t n = transport_.read(peer_, message.into + message.received, message.size - message.received);
    if (n == 0) return false;
    message.received += n;
    moved_ += n;
    if (moved_ >= kShareBytes) break;
  }
  if (message.received < message.size) return false;
  while (message.rest() != 0) {
    const size_t n = std::min(transport_.arrived(peer_, message.rest()).size, message.rest());
    if (n == 0) return false;
    transport_.consumed(peer_, n);
    message.received += n;
  }
  return true;
}

bool Channel::receive_header(Incoming& message) {
  if (message.has_header) {
    const Bytes arrived = transport_.arrived(peer_, sizeof(Plan));
    if (arrived.size < sizeof(Plan)) return false;
    Plan theirs;
    std::memcpy(&theirs, arrived.data, sizeof(Plan));
    compare(theirs, message.plan);
    transport_.consumed(peer_, sizeof(Plan));
    moved_ += sizeof(Plan);
  }
  message.begun = true;
  return true;
}

bool Channel::advance_to_self() {
  bool moved = false;
  while (!outgoing.empty() && !incoming.empty()) {
    Outgoing& from = outgoing.front();
    Incoming& to = incoming.front();
    compare(from.plan, to.plan);
    if (to.size != 0) std::memmove(to.into, from.data, to.size);
    --from.work->num_pending_;
    --to.work->num_pending_;
    outgoing.pop_front();
    incoming.pop_front();
    moved = true;
  }
  return moved;
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
