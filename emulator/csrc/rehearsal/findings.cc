#include "rehearsal/findings.h"

#include <unistd.h>

#include <atomic>
#include <mutex>

#include "device.h"
#include "rehearsal/accounts.h"
#include "rehearsal/caller.h"
#include "rehearsal/record.h"

namespace fusionkit_emulator::rehearsal {
namespace {

std::atomic<bool> is_refused{false};
std::atomic<bool> has_failed_call{false};

}  // namespace

void begin_process() {
  const Settings& settings = Settings::get();
  Record::get().set(Slot::kProcess, "{\"rank\": " + std::to_string(process_rank()) +
                                        ", \"pid\": " + std::to_string(getpid()) +
                                        ", \"memory\": " + std::to_string(settings.memory) + "}");
}

void note_allocation(int device, size_t bytes, bool is_granted) {
  if (has_failed_call || (is_granted && !is_refused.exchange(false))) return;
  if (is_granted) return Record::get().set(Slot::kFailure, "{}");
  is_refused = true;
  const DeviceMemory& memory = fusionkit_emulator::device(device).memory;
  Record::get().set(Slot::kFailure, "{\"kind\": \"memory\", \"asked\": " + std::to_string(bytes) +
                                        ", \"reserved\": " + std::to_string(memory.in_use()) +
                                        ", \"limit\": " + std::to_string(memory.limit()) +
                                        ", \"line\": " + quoted(caller().line->substr(0, 400)) + ", " +
                                        accounts(device).holders() + "}");
}

void note_failed_call(const std::string& text) {
  if (has_failed_call.exchange(true)) return;
  Record::get().set(Slot::kFailure, "{\"kind\": \"call\", \"text\": " + quoted(text.substr(0, 12000)) + "}");
}

}  // namespace fusionkit_emulator::rehearsal
