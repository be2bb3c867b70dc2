// How often each line of the program calls each kernel in forward passes: what stages of a pipeline are compared by.
#pragma once

#include "rehearsal/caller.h"

namespace fusionkit_emulator::rehearsal {

// A kernel of a forward pass begins; `kernel` lives for ever.
void count_forward(const char* kernel, const Caller& from);

}  // namespace fusionkit_emulator::rehearsal
