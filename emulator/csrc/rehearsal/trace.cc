#include "rehearsal/trace.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "device.h"
#include "rehearsal/record.h"

namespace fusionkit_emulator::rehearsal {
namespace {

using fusionkit_parallel::Call;
using fusionkit_parallel::Op;

constexpr int64_t kMostEvents = 1 << 22;  // of a step: 64 MiB, of which only what is written takes memory

Trace::Header* map_step(const std::string& path) {
  constexpr size_t size = sizeof(Trace::Header) + kMostEvents * sizeof(Trace::Event);
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0644);
  void* mapped = MAP_FAILED;
  if (file >= 0 && ftruncate(file, size) == 0)
    mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) std::perror(path.c_str());
  if (file >= 0) close(file);
  return mapped == MAP_FAILED ? nullptr : static_cast<Trace::Header*>(mapped);
}

// FNV-1a by words.
uint64_t mixed(uint64_t hash, uint64_t word) { return (hash ^ word) * 0x100000001b3ull; }
uint64_t mixed(uint64_t hash, const void* pointer) { return mixed(hash, reinterpret_cast<uintptr_t>(pointer)); }
constexpr uint64_t kSeed = 0xcbf29ce484222325ull;

const char* pass_of(const Caller& from) {
  if (from.is_update) return "update";
  return from.is_backward ? "backward" : "forward";
}

std::string listed(const TracedTensors& tensors, int64_t is_output) {
  std::string made;
  for (size_t at = 0; at < tensors.size(); at += 3 + tensors[at + 2]) {
    if (tensors[at] != is_output) continue;
    made += (made.empty() ? "[" : ", [") + std::to_string(tensors[at + 1]);
    for (int64_t axis = 0; axis < tensors[at + 2]; ++axis) made += ", " + std::to_string(tensors[at + 3 + axis]);
    made += "]";
  }
  return "[" + made + "]";
}

uint64_t bytes_of(const Call& call) {
  if (call.op != Op::kAllToAll) return call.count * fusionkit_parallel::size_of(call.dtype);
  uint64_t bytes = 0;
  for (int rank = 0; rank < call.communicator->world_size(); ++rank)
    bytes += call.exchanges[rank].send_count * fusionkit_parallel::size_of(call.exchanges[rank].send_dtype);
  return bytes;
}

// Sends and receives are counted by pair.
std::string meeting_of(const Call& call) {
  const int own = call.communicator->rank();
  std::string group = call.communicator->name();
  if (call.op == Op::kSend) group += ":" + std::to_string(own) + ">" + std::to_string(call.root);
  if (call.op == Op::kRecv) group += ":" + std::to_string(call.root) + ">" + std::to_string(own);
  return group;
}

std::string call_as_json(const char* op, const std::string& meeting, int size, uint64_t bytes,
                         const std::string* line) {
  return "{\"call\": " + quoted(op) + ", \"meeting\": " + quoted(meeting) + ", \"size\": " + std::to_string(size) +
         ", \"bytes\": " + std::to_string(bytes) + ", \"line\": " + quoted(line == nullptr ? "" : *line) + "}";
}

}  // namespace

void add_tensor(TracedTensors& tensors, const phi::DenseTensor& tensor, phi::DataType dtype, bool is_output) {
  const auto& dims = tensor.dims();
  tensors.insert(tensors.end(), {is_output, static_cast<int64_t>(phi::SizeOf(dtype)), dims.size()});
  for (int axis = 0; axis < dims.size(); ++axis) tensors.push_back(dims[axis]);
}

Trace::Trace(const std::string& folder) {
  const std::string begin = folder + "/" + std::to_string(getpid());
  definitions_ = open((begin + ".definitions").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644);
  for (int i = 0; i < 2; ++i) steps_[i] = map_step(begin + "." + std::to_string(i) + ".events");
  begin_step(1);
}

Trace* Trace::get() {
  static Trace* const trace = [] {
    const char* wanted = std::getenv("FUSIONKIT_EMULATOR_TRACE");
    const Settings& settings = Settings::get();
    const bool is_on = settings.rehearsing && !settings.record.empty() && wanted != nullptr && *wanted == '1';
    return is_on ? new Trace(settings.record) : nullptr;  // for as long as any thread runs
  }();
  return trace;
}

void Trace::begin_step(uint64_t step) {
  const std::lock_guard<std::mutex> lock(mutex_);
  now_ = steps_[step % 2];
  if (now_ != nullptr) *now_ = {static_cast<int64_t>(step), 0, 0, 0};
}

int32_t Trace::define(uint64_t key, const std::string& json) {
  const auto number = static_cast<int32_t>(numbers_.size());
  numbers_.emplace(key, number);
  const std::string line = json + "\n";
  if (write(definitions_, line.data(), line.size()) < 0) std::perror("the rehearsal's definitions");
  return number;
}

int32_t Trace::number_of(const void* pointer) {
  return pointers_.emplace(pointer, static_cast<int32_t>(pointers_.size())).first->second;
}

void Trace::push(const Event& event, bool is_update) {
  if (now_ == nullptr) return;
  if (now_->num_events == kMostEvents) {
    ++now_->num_lost;
    return;
  }
  reinterpret_cast<Event*>(now_ + 1)[now_->num_events++] = event;
  now_->num_updates += is_update;
}

void Trace::kernel(const char* name, const Caller& from, const TracedTensors& tensors, const void* stream) {
  uint64_t key = mixed(mixed(mixed(kSeed, name), from.line), pass_of(from));
  for (const int64_t word : tensors) key = mixed(key, static_cast<uint64_t>(word) + 1);
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = numbers_.find(key);
  int32_t number = found == numbers_.end() ? -1 : found->second;
  if (number < 0)
    number = define(key, "{\"kernel\": " + quoted(name) + ", \"pass\": \"" + pass_of(from) +
                             "\", \"line\": " + quoted(from.line == nullptr ? "" : *from.line) +
                             ", \"inputs\": " + listed(tensors, 0) + ", \"outputs\": " + listed(tensors, 1) + "}");
  push({Kind::kKernel, number, number_of(stream), 0}, from.is_update);
}

void Trace::call(const Call& call, const std::string* line, const void* stream, bool follows) {
  const std::string meeting = meeting_of(call);
  const uint64_t bytes = bytes_of(call);
  uint64_t key = mixed(mixed(mixed(kSeed, name_of(call.op)), line), bytes);
  for (const char each : meeting) key = mixed(key, static_cast<uint64_t>(each));
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = numbers_.find(key);
  int32_t number = found == numbers_.end() ? -1 : found->second;
  if (number < 0)
    number = define(key, call_as_json(name_of(call.op), meeting, call.communicator->world_size(), bytes, line));
  const int32_t count = ++num_calls_[meeting];
  push({Kind::kCall, number, number_of(stream), follows ? -count - 1 : count});
}

void Trace::reserved_call(const fusionkit_parallel::Communicator& communicator, const std::string* line) {
  const std::string meeting = communicator.name();
  uint64_t key = mixed(kSeed, line);
  for (const char each : meeting) key = mixed(key, static_cast<uint64_t>(each));
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = numbers_.find(key);
  int32_t number = found == numbers_.end() ? -1 : found->second;
  if (number < 0) number = define(key, call_as_json("fused", meeting, communicator.world_size(), 0, line));
  push({Kind::kCall, number, -1, ++num_calls_[meeting]});
}

void Trace::synchronization(Kind kind, const void* event, const void* stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  push({kind, event == nullptr ? -1 : number_of(event), stream == nullptr ? -1 : number_of(stream), 0});
}

}  // namespace fusionkit_emulator::rehearsal
