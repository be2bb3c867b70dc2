// Who holds the device's memory at its worst moment.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "paddle/phi/core/dense_tensor.h"
#include "rehearsal/caller.h"

namespace fusionkit_emulator::rehearsal {

enum class Part { kParameters, kOptimizer, kGradients, kForward, kBackward, kUpdate, kOther };
constexpr int kNumParts = 7;

// The tensors of one device that kernels have seen, from their first kernel on. Paddle counts all memory, so what no
// kernel has seen is what is left.
class Accounts {
 public:
  explicit Accounts(int device) : device_(device) {}

  // A kernel begins; `name` lives for ever.
  void begin(const char* name, const Caller& from);
  // Something that no update does: a step ends with its update.
  void leave_update();
  // One of its tensors.
  void see(const phi::DenseTensor& tensor);
  // All of its tensors are there: whether this is the worst moment so far.
  void look();

  // What memory holds now, for the message of an allocation that is refused.
  std::string holders();

 private:
  struct Tracked {
    std::weak_ptr<phi::Allocation> memory;
    size_t bytes;
    Part part;
    const char* kernel;
    const std::string* line;
  };
  struct Holders {
    std::array<size_t, kNumParts> parts{};
    std::vector<std::pair<size_t, const Tracked*>> largest;  // bytes of all that one kernel made in one line
  };

  Part part_of(const phi::DenseTensor& tensor) const;
  Holders count(size_t allocated);
  std::string peak_as_json() const;
  static std::string as_json(const Holders& holders);
  void count_kernel();
  void begin_step();

  const int device_;
  std::mutex mutex_;
  const char* kernel_ = "";
  Caller from_{nullptr};
  std::unordered_map<const phi::Allocation*, Tracked> tracked_;
  std::unordered_set<std::string> shapes_;  // of parameters
  // The worst moment: bytes, holders as JSON, and the kernel of its step.
  size_t peak_ = 0;
  std::string peak_holders_, peak_kernel_, peak_line_, peak_pass_;
  uint64_t peak_step_ = 0, peak_number_ = 0, peak_of_ = 0;
  // Steps end with an update.
  uint64_t step_ = 1, number_ = 0, num_kernels_ = 0;
  bool in_update_ = false;
};

// Of a device; made when first asked for.
Accounts& accounts(int device);

}  // namespace fusionkit_emulator::rehearsal
