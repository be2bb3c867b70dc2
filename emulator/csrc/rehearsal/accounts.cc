#include "rehearsal/accounts.h"

#include <algorithm>
#include <map>
#include <utility>

#include "device.h"
#include "rehearsal/forward.h"
#include "rehearsal/record.h"
#include "rehearsal/trace.h"

// As paddle/phi/core/memory/stats.h declares it, which includes a header of glog that Paddle does not ship.
namespace paddle::memory {
int64_t DeviceMemoryStatCurrentValue(const std::string& stat_type, int dev_id);
}

namespace fusionkit_emulator::rehearsal {
namespace {

constexpr std::array kPartNames = {"parameters", "optimizer", "gradients", "forward", "backward", "update", "other"};
constexpr size_t kNumLargest = 8;
// Tensors that are gone leave the table when it has grown by so many.
constexpr size_t kSwept = 4096;

size_t allocated_on(int device) { return paddle::memory::DeviceMemoryStatCurrentValue("Allocated", device); }

std::string pass_of(const Caller& from) {
  if (from.is_update) return "update";
  return from.is_backward ? "backward" : "forward";
}

}  // namespace

void Accounts::begin(const char* name, const Caller& from) {
  const std::lock_guard<std::mutex> lock(mutex_);
  kernel_ = name;
  from_ = from;
  if (in_update_ && !from.is_update) begin_step();
  in_update_ = from.is_update;
  ++number_;
  ++num_kernels_;
  count_kernel();
  count_forward(name, from);
}

void Accounts::leave_update() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (in_update_) begin_step();
  in_update_ = false;
}

void Accounts::begin_step() {
  if (peak_step_ == step_) {
    peak_of_ = number_;
    Record::get().set(Slot::kPeak, peak_as_json());
  }
  ++step_;
  number_ = 0;
  if (Trace* trace = Trace::get()) trace->begin_step(step_);
}

void Accounts::count_kernel() {
  Record::get().set(Slot::kCounts, "{\"kernels\": " + std::to_string(num_kernels_) +
                                       ", \"steps_begun\": " + std::to_string(step_) +
                                       ", \"kernels_of_step\": " + std::to_string(number_) + "}");
}

// A gradient has its parameter's shape. What an activation of the same shape holds counts with it.
Part Accounts::part_of(const phi::DenseTensor& tensor) const {
  if (from_.makes_weights) return Part::kParameters;
  if (from_.makes_state) return Part::kOptimizer;
  if (from_.is_update) return Part::kUpdate;
  if (!from_.is_backward) return Part::kForward;
  return shapes_.count(tensor.dims().to_str()) != 0 ? Part::kGradients : Part::kBackward;
}

void Accounts::see(const phi::DenseTensor& tensor) {
  if (!tensor.has_allocation() || tensor.numel() <= 0 || tensor.place().GetType() != phi::AllocationType::CUSTOM)
    return;
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::shared_ptr<phi::Allocation>& holder = tensor.Holder();
  Tracked& tracked = tracked_[holder.get()];
  if (!tracked.memory.expired()) return;
  tracked = {holder, holder->size(), part_of(tensor), kernel_, from_.line};
  if (tracked.part == Part::kParameters) shapes_.insert(tensor.dims().to_str());
}

Accounts::Holders Accounts::count(size_t allocated) {
  Holders found;
  std::map<std::pair<const char*, const std::string*>, std::pair<size_t, const Tracked*>> lines;
  size_t seen = 0;
  for (auto at = tracked_.begin(); at != tracked_.end();) {
    const Tracked& each = at->second;
    if (each.memory.expired()) {
      at = tracked_.erase(at);
      continue;
    }
    seen += each.bytes;
    found.parts[static_cast<int>(each.part)] += each.bytes;
    auto& line = lines[{each.kernel, each.line}];
    line.first += each.bytes;
    line.second = &each;
    ++at;
  }
  found.parts[static_cast<int>(Part::kOther)] = allocated > seen ? allocated - seen : 0;
  for (const auto& line : lines) found.largest.push_back(line.second);
  const size_t shown = std::min(kNumLargest, found.largest.size());
  std::partial_sort(found.largest.begin(), found.largest.begin() + shown, found.largest.end(), std::greater<>());
  found.largest.resize(shown);
  return found;
}

std::string Accounts::as_json(const Holders& holders) {
  std::string made = "\"parts\": {";
  for (int i = 0; i < kNumParts; ++i)
    made += (i == 0 ? "\"" : ", \"") + std::string(kPartNames[i]) + "\": " + std::to_string(holders.parts[i]);
  made += "}, \"largest\": [";
  for (size_t i = 0; i < holders.largest.size(); ++i) {
    const auto& [bytes, tracked] = holders.largest[i];
    made += (i == 0 ? "" : ", ") + std::string("{\"bytes\": ") + std::to_string(bytes) + ", \"part\": \"" +
            kPartNames[static_cast<int>(tracked->part)] + "\", \"kernel\": " + quoted(tracked->kernel) +
            ", \"line\": " + quoted(tracked->line->substr(0, 400)) + "}";
  }
  return made + "]";
}

std::string Accounts::peak_as_json() const {
  return "{\"bytes\": " + std::to_string(peak_) +
         ", \"reserved\": " + std::to_string(fusionkit_emulator::device(device_).memory.peak()) +
         ", \"kernel\": " + quoted(peak_kernel_) + ", \"line\": " + quoted(peak_line_) +
         ", \"pass\": " + quoted(peak_pass_) + ", \"step\": " + std::to_string(peak_step_) +
         ", \"kernel_of_step\": " + std::to_string(peak_number_) +
         ", \"kernels_of_step\": " + std::to_string(peak_of_) + ", " + peak_holders_ + "}";
}

void Accounts::look() {
  const size_t allocated = allocated_on(device_);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (allocated <= peak_) {
    if (tracked_.size() > 2 * kSwept) count(allocated);
    return;
  }
  peak_ = allocated;
  peak_holders_ = as_json(count(allocated));
  peak_kernel_ = kernel_;
  peak_line_ = from_.line->substr(0, 400);
  peak_pass_ = pass_of(from_);
  peak_step_ = step_;
  peak_number_ = number_;
  peak_of_ = 0;
  Record::get().set(Slot::kPeak, peak_as_json());
}

std::string Accounts::holders() {
  const size_t allocated = allocated_on(device_);
  const std::lock_guard<std::mutex> lock(mutex_);
  return as_json(count(allocated));
}

Accounts& accounts(int device) {
  static std::mutex mutex;
  static auto* all = new std::map<int, std::unique_ptr<Accounts>>;  // for as long as any thread runs
  const std::lock_guard<std::mutex> lock(mutex);
  auto& found = (*all)[device];
  if (found == nullptr) found = std::make_unique<Accounts>(device);
  return *found;
}

}  // namespace fusionkit_emulator::rehearsal
