// Which lines of the program read the device's values on the host.
#pragma once

#include <cstddef>

namespace fusionkit_emulator::rehearsal {

// A copy to the host, by the calling thread.
void count_read(size_t bytes);

}  // namespace fusionkit_emulator::rehearsal
