// What ends a rehearsal, for its report.
#pragma once

#include <cstddef>
#include <string>

namespace fusionkit_emulator::rehearsal {

// The first device of this process is there.
void begin_process();

// An allocation of the device. One that is refused is the process's failure, unless a later one succeeds: Paddle gives
// back what it holds in reserve and asks again.
void note_allocation(int device, size_t bytes, bool is_granted);

// Of a collective, in words that name calls and lines. The first is kept.
void note_failed_call(const std::string& text);

}  // namespace fusionkit_emulator::rehearsal
