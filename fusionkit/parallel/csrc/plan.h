// What a rank is about to do with a peer. It travels before the data, and the peer compares it with its own.
#pragma once

#include <cstdint>
#include <string>

#include "dtype.h"
#include "reduce.h"

namespace fusionkit_parallel {

enum class Op : int32_t {
  kBarrier,
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kBroadcast,
  kReduce,
  kAllToAll,
  kSend,
  kRecv,
};
constexpr int kNumOps = 9;

const char* name_of(Op op);

struct alignas(64) Plan {
  Op op;
  DType dtype;
  ReduceOp reduce;    // kSum where nothing is reduced
  int32_t root;       // of a broadcast or reduce, the receiver of a send, else 0
  uint64_t count;     // elements of the call; of an all_to_all or send, those of this pair
  uint64_t sequence;  // of the collectives of this communicator, or of the sends of this pair
  uint64_t group;     // the communicator
  uint64_t hash;      // of all the above

  void seal();
  bool is_sealed() const;
  bool operator==(const Plan& other) const;
  std::string describe() const;  // "all_reduce (sum) of 8 float32"
};
static_assert(sizeof(Plan) == 64, "a plan is one message header");

}  // namespace fusionkit_parallel
