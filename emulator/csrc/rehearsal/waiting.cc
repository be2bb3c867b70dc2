#include "rehearsal/waiting.h"

#include <atomic>
#include <exception>
#include <map>
#include <mutex>

#include "rehearsal/record.h"

namespace fusionkit_emulator::rehearsal {
namespace {

constexpr size_t kMostWaits = 4;  // what fits in the record

struct Calls {
  std::mutex mutex;
  std::atomic<uint64_t> num_begun{0};
  uint64_t num_ended = 0;
  std::map<uint64_t, std::string> running;
  std::string last;

  static Calls& get() {
    static auto* calls = new Calls;  // for as long as any thread runs
    return *calls;
  }

  void write() const {
    std::string json =
        "{\"calls\": " + std::to_string(num_ended) + ", \"last\": " + quoted(last.substr(0, 1500)) + ", \"waits\": [";
    size_t shown = 0;
    for (auto each = running.begin(); each != running.end() && shown < kMostWaits; ++each, ++shown)
      json += (each == running.begin() ? "" : ", ") + quoted(each->second.substr(0, 1500));
    Record::get().set(Slot::kCalls, json + "]}");
  }
};

}  // namespace

Waiting::Waiting(const std::string& call) : number_(Calls::get().num_begun++) {
  Calls& calls = Calls::get();
  const std::lock_guard<std::mutex> lock(calls.mutex);
  calls.running[number_] = call;
  calls.write();
}

// A call that fails stays: the process waits in it for ever.
Waiting::~Waiting() {
  Calls& calls = Calls::get();
  const std::lock_guard<std::mutex> lock(calls.mutex);
  if (std::uncaught_exceptions() > 0) return;
  calls.last = calls.running[number_];
  calls.running.erase(number_);
  ++calls.num_ended;
  calls.write();
}

}  // namespace fusionkit_emulator::rehearsal
