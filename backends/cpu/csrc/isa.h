// What is told of the targets besides fusionkit_cpu.h, for tests and `fusionkit doctor`.
#pragma once

#include <string>
#include <vector>

#include "fusionkit_cpu.h"

#pragma GCC visibility push(default)
namespace fusionkit_cpu {

// As available_isas, then the models that set_isa takes too: "amx_model" computes what AMX would, without its tiles.
std::vector<std::string> tested_isas();

// Why a target that the processor has is not available; empty: there is no such target.
std::string refused_isas();

}  // namespace fusionkit_cpu
#pragma GCC visibility pop
