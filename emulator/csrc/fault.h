// What happens when host code touches device memory: a message, and the segmentation fault that hardware gives.
#pragma once

namespace fusionkit_emulator {

// Once a process; called again it does nothing.
void install_fault_handler();

}  // namespace fusionkit_emulator
