// What a process has found so far, in a file that outlives it however it ends.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

namespace fusionkit_emulator::rehearsal {

// One line of JSON a slot, padded with spaces to a fixed width.
enum class Slot { kProcess, kPeak, kCalls, kFailure, kReads, kCounts };

// The file RECORD/<process id>.jsonl, mapped into memory: `fusionkit emulate` reads it when the command has ended.
class Record {
 public:
  static Record& get();

  // Text that does not fit is cut to "{}"; the callers keep their texts short.
  void set(Slot slot, const std::string& json);

 private:
  Record();

  char* mapped_ = nullptr;  // none without a folder
  std::mutex mutex_;
};

// With its quotes.
std::string quoted(const std::string& text);

// This process among those of the launcher; 0 alone.
int process_rank();

}  // namespace fusionkit_emulator::rehearsal
