// Each call as messages to and from the peers. Every rank tells every other its plan, also where no data follow: so a
// rank that calls something else is always found.
#include <cstring>
#include <stdexcept>

#include "communicator.h"

namespace fusionkit_parallel {
namespace {

// All ranks send all to all and reduce all: one way instead of two. A larger reduction is shared out among the ranks.
constexpr size_t kDirectBytes = 4 << 10;

const char* bytes(const void* data) { return static_cast<const char*>(data); }
char* bytes(void* data) { return static_cast<char*>(data); }

std::invalid_argument argument_error(const Call& call, const std::string& text) {
  return std::invalid_argument(std::string(name_of(call.op)) + ": " + text);
}

// The elements of block `index` of `count`, in blocks that differ by at most one element.
struct Block {
  Block(uint64_t count, int index, int num_blocks)
      : begin(count * index / num_blocks), end(count * (index + 1) / num_blocks) {}
  uint64_t begin, end;
};

}  // namespace

void Communicator::check(const Call& call) const {
  const bool reduces = call.op == Op::kAllReduce || call.op == Op::kReduceScatter || call.op == Op::kReduce;
  if (reduces && !can_reduce(call.dtype, call.reduce))
    throw argument_error(
        call, std::string("op must be one that ") + name_of(call.dtype) + " has, got " + name_of(call.reduce));
  if (call.root < 0 || call.root >= world_size())
    throw argument_error(
        call, "a rank must be in [0, " + std::to_string(world_size()) + "), got " + std::to_string(call.root));
}

Plan Communicator::plan_of(const Call& call) {
  Plan plan = {};
  plan.op = call.op;
  plan.dtype = call.dtype;
  plan.reduce = call.reduce;
  plan.root = call.root;
  plan.count = call.count;
  plan.group = transport_->group;
  return plan;
}

Outgoing& Communicator::send_to(int peer, const Plan& plan, const void* data, size_t size) {
  Work* work = in_flight_.back().get();
  ++work->num_pending_;
  channels_[peer].outgoing.push_back({work, true, plan, bytes(data), size, nullptr});
  channels_[peer].outgoing.back().plan.seal();
  return channels_[peer].outgoing.back();
}

Incoming& Communicator::expect_from(int peer, const Plan& plan, void* into, size_t size) {
  Work* work = in_flight_.back().get();
  ++work->num_pending_;
  channels_[peer].incoming.push_back({work, true, plan, bytes(into), size, nullptr});
  return channels_[peer].incoming.back();
}

Reduction& Communicator::new_reduction(const Call& call, const void* own, void* out, size_t size) {
  auto& reductions = in_flight_.back()->reductions_;
  reductions.push_back(std::make_unique<Reduction>(Reduction{call.dtype, call.reduce, bytes(own), bytes(out), size}));
  if (world_size() == 1) {
    const char* source = bytes(own);
    reduce(call.dtype, call.reduce, &source, 1, size / size_of(call.dtype), bytes(out));
    reductions.back()->done = size;
  }
  return *reductions.back();
}

std::shared_ptr<Work> Communicator::schedule(const Call* calls, size_t num_calls) {
  in_flight_.push_back(std::make_shared<Work>());
  const std::shared_ptr<Work> work = in_flight_.back();
  for (size_t i = 0; i < num_calls; ++i)
    if (calls[i].communicator == this) schedule(calls[i]);
  return work;
}

void Communicator::schedule(const Call& call) {
  if (const std::string failure = transport_->failure(); !failure.empty())
    throw std::runtime_error(std::string(name_of(call.op)) + ": this communicator has failed: " + failure);
  Plan plan = plan_of(call);
  if (call.op == Op::kSend || call.op == Op::kRecv) return schedule_pair(call, plan);
  plan.sequence = num_collectives_++;
  switch (call.op) {
    case Op::kAllReduce:
      return schedule_all_reduce(call, plan);
    case Op::kReduceScatter:
      return schedule_reduce_scatter(call, plan);
    case Op::kReduce:
      return schedule_reduce(call, plan);
    case Op::kAllGather:
      return schedule_all_gather(call, plan);
    case Op::kAllToAll:
      return schedule_all_to_all(call, plan);
    default:  // a barrier is a broadcast of nothing
      return schedule_broadcast(call, plan);
  }
}

void Communicator::schedule_all_reduce(const Call& call, const Plan& plan) {
  const size_t element = size_of(call.dtype), size = call.count * element;
  const bool is_direct = size <= kDirectBytes;
  const void* own = call.send;
  if (is_direct) {  // `recv` may be `send`, and may be written before `send` has gone to all
    auto& staging = in_flight_.back()->staging_;
    staging.push_back(std::make_unique<char[]>(size));
    if (size != 0) std::memcpy(staging.back().get(), call.send, size);
    own = staging.back().get();
  }
  const Block mine = is_direct ? Block(call.count, 0, 1) : Block(call.count, rank(), world_size());
  Reduction& reduction = new_reduction(call, bytes(own) + mine.begin * element, bytes(call.recv) + mine.begin * element,
                                       (mine.end - mine.begin) * element);
  for (int peer = 0; peer < world_size(); ++peer) {
    if (peer == rank()) continue;
    const Block theirs = is_direct ? mine : Block(call.count, peer, world_size());
    const size_t begin = theirs.begin * element, num_bytes = (theirs.end - theirs.begin) * element;
    send_to(peer, plan, bytes(own) + begin, num_bytes);
    expect_from(peer, plan, nullptr, reduction.size).reduction = &reduction;
    if (is_direct) continue;
    Outgoing& reduced = send_to(peer, plan, reduction.out, reduction.size);
    reduced.has_header = false;
    reduced.ready = &reduction.done;
    expect_from(peer, plan, bytes(call.recv) + begin, num_bytes).has_header = false;
  }
}

void Communicator::schedule_reduce_scatter(const Call& call, const Plan& plan) {
  const size_t size = call.count * size_of(call.dtype);
  Reduction& reduction = new_reduction(call, bytes(call.send) + rank() * size, call.recv, size);
  for (int peer = 0; peer < world_size(); ++peer) {
    if (peer == rank()) continue;
    send_to(peer, plan, bytes(call.send) + peer * size, size);
    expect_from(peer, plan, nullptr, size).reduction = &reduction;
  }
}

void Communicator::schedule_reduce(const Call& call, const Plan& plan) {
  const size_t size = call.count * size_of(call.dtype);
  Reduction* reduction = rank() == call.root ? &new_reduction(call, call.send, call.recv, size) : nullptr;
  for (int peer = 0; peer < world_size(); ++peer) {
    if (peer == rank()) continue;
    send_to(peer, plan, call.send, peer == call.root ? size : 0);
    expect_from(peer, plan, nullptr, reduction != nullptr ? size : 0).reduction = reduction;
  }
}

void Communicator::schedule_all_gather(const Call& call, const Plan& plan) {
  const size_t size = call.count * size_of(call.dtype);
  char* own = bytes(call.recv) + rank() * size;
  if (size != 0 && own != call.send) std::memmove(own, call.send, size);
  for (int peer = 0; peer < world_size(); ++peer) {
    if (peer == rank()) continue;
    send_to(peer, plan, own, size);
    expect_from(peer, plan, bytes(call.recv) + peer * size, size);
  }
}

void Communicator::schedule_broadcast(const Call& call, const Plan& plan) {
  const size_t size = call.count * size_of(call.dtype);
  if (rank() == call.root && size != 0 && call.recv != call.send) std::memmove(call.recv, call.send, size);
  for (int peer = 0; peer < world_size(); ++peer) {
    if (peer == rank()) continue;
    send_to(peer, plan, call.recv, rank() == call.root ? size : 0);
    expect_from(peer, plan, call.recv, peer == call.root ? size : 0);
  }
}

void Communicator::schedule_all_to_all(const Call& call, const Plan& base) {
  Plan plan = base;
  const uint64_t turn = call.in_turn != 0 ? turns_.take() : Turns::kNone;
  for (int peer = 0; peer < world_size(); ++peer) {
    const Exchange& each = call.exchanges[peer];
    plan.count = each.send_count;
    plan.dtype = each.send_dtype;
    Outgoing& sent = send_to(peer, plan, each.send, each.send_count * size_of(each.send_dtype));
    if (turn != Turns::kNone && peer != rank()) {
      sent.turn = turn;
      turns_.add(turn);
    }
    plan.count = each.recv_count;
    plan.dtype = each.recv_dtype;
    expect_from(peer, plan, each.recv, each.recv_count * size_of(each.recv_dtype));
  }
  turns_.settle();
}

void Communicator::schedule_pair(const Call& call, const Plan& base) {
  Plan plan = base;
  const size_t size = call.count * size_of(call.dtype);
  plan.op = Op::kSend;
  if (call.op == Op::kSend) {
    plan.sequence = num_sent_[call.root]++;
    send_to(call.root, plan, call.send, size).until_read = sends_wait_;
    return;
  }
  plan.sequence = num_received_[call.root]++;
  plan.root = rank();
  expect_from(call.root, plan, call.recv, size);
}

}  // namespace fusionkit_parallel
