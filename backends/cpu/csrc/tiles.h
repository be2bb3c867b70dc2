// Intel's tiles (AMX) in this process, or their model.
#pragma once

#include <string>

namespace fusionkit_cpu {

// Asks Linux, once, whether the process may use tiles. It refuses where a thread has a signal stack too small for them.
bool tiles_permitted();
std::string why_tiles_are_refused();  // empty: they are not, or nobody asked

// Whether kernels compute what tile instructions would, without them.
bool tiles_are_modelled();
void model_tiles(bool modelled);

}  // namespace fusionkit_cpu
