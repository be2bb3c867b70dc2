// What one step gives to the device, in the host's order: kernels, collectives, and who waits for whom.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "fusionkit/parallel/csrc/communicator.h"
#include "paddle/phi/core/dense_tensor.h"
#include "rehearsal/caller.h"

namespace fusionkit_emulator::rehearsal {

// Of a kernel, one after the other: 1 for an output, bytes of an element, number of axes, axes.
using TracedTensors = std::vector<int64_t>;
void add_tensor(TracedTensors& tensors, const phi::DenseTensor& tensor, phi::DataType dtype, bool is_output);

// RECORD/<process id>.definitions has a line of JSON for each different kernel or call, in the order of their numbers.
// RECORD/<process id>.{0,1}.events have the last two steps: a Header, then Events.
class Trace {
 public:
  enum class Kind : int32_t { kKernel, kCall, kRecord, kWait, kSyncStream, kSyncDevice, kSyncEvent };
  struct Event {
    Kind kind;
    int32_t what;    // the definition, or the event of a stream
    int32_t stream;  // -1 where a vendor's op makes a call, which is on the stream of the next kernel
    int32_t number;  // of a call: which of its group's; calls of a batch that follow the first have it negative, less 1
  };
  struct Header {
    int64_t step, num_events, num_updates, num_lost;
  };

  // Null unless FUSIONKIT_EMULATOR_TRACE=1.
  static Trace* get();

  void begin_step(uint64_t step);
  // `name` and the line live for ever.
  void kernel(const char* name, const Caller& from, const TracedTensors& tensors, const void* stream);
  void call(const fusionkit_parallel::Call& call, const std::string* line, const void* stream, bool follows);
  void reserved_call(const fusionkit_parallel::Communicator& communicator, const std::string* line);
  void synchronization(Kind kind, const void* event, const void* stream);

 private:
  explicit Trace(const std::string& folder);
  int32_t define(uint64_t key, const std::string& json);
  int32_t number_of(const void* pointer);
  void push(const Event& event, bool is_update = false);

  std::mutex mutex_;
  Header* steps_[2] = {nullptr, nullptr};  // mapped
  Header* now_ = nullptr;
  int definitions_ = -1;  // a file
  std::unordered_map<uint64_t, int32_t> numbers_;
  std::unordered_map<const void*, int32_t> pointers_;
  std::map<std::string, int32_t> num_calls_;  // of each group, or of each pair of its ranks
};

}  // namespace fusionkit_emulator::rehearsal
