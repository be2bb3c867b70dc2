#include "plan.h"

namespace fusionkit_parallel {
namespace {

// FNV-1a over 64-bit words.
uint64_t hash_of(const Plan& plan) {
  const uint64_t words[] = {static_cast<uint64_t>(plan.op),
                            static_cast<uint64_t>(plan.dtype),
                            static_cast<uint64_t>(plan.reduce),
                            static_cast<uint64_t>(plan.root),
                            plan.count,
                            plan.sequence,
                            plan.group};
  uint64_t hash = 0xcbf29ce484222325u;
  for (const uint64_t word : words) hash = (hash ^ word) * 0x100000001b3u;
  return hash;
}

}  // namespace

const char* name_of(Op op) {
  constexpr const char* names[kNumOps] = {
      "barrier", "all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce", "all_to_all", "send", "recv"};
  return names[static_cast<int>(op)];
}

void Plan::seal() { hash = hash_of(*this); }

bool Plan::is_sealed() const { return hash == hash_of(*this); }

bool Plan::operator==(const Plan& other) const {
  return op == other.op && dtype == other.dtype && reduce == other.reduce && root == other.root &&
         count == other.count && sequence == other.sequence && group == other.group;
}

std::string Plan::describe() const {
  std::string text = name_of(op);
  if (op == Op::kBarrier) return text + " as call " + std::to_string(sequence);
  if (op == Op::kAllReduce || op == Op::kReduceScatter || op == Op::kReduce)
    text += std::string(" (") + name_of(reduce) + ")";
  text += " of " + std::to_string(count) + " " + name_of(dtype);
  if (op == Op::kBroadcast || op == Op::kReduce) text += " with root " + std::to_string(root);
  if (op == Op::kSend) text += " to rank " + std::to_string(root);
  return text + " as call " + std::to_string(sequence);
}

}  // namespace fusionkit_parallel
