// Collectives of a rehearsal: ranks tell each other what they call and from which line, and move nothing large.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fusionkit/parallel/csrc/communicator.h"

namespace fusionkit_emulator::rehearsal {

// What one communicator's calls have shown so far. Its calls run one after the other.
struct CallHistory {
  uint64_t num_calls = 0;
  std::vector<int> processes;  // of its ranks, from the first collective on
  std::string difference;      // in words: since which call the ranks come from different lines
};

// A call with addresses of the device, the line that made it, and whether what it sends is known.
struct RehearsedCall {
  fusionkit_parallel::Call call;
  std::shared_ptr<CallHistory> history;
  const std::string* line;
  bool is_known;
};

// On the host, when the call is made: names what it will have written.
RehearsedCall prepare(const fusionkit_parallel::Call& call, std::shared_ptr<CallHistory> history);

// On the stream. Small values travel too. Throws std::runtime_error, with lines, when ranks call different things, a
// rank is missing, or nobody answers.
void run(std::vector<RehearsedCall>& calls);

}  // namespace fusionkit_emulator::rehearsal
