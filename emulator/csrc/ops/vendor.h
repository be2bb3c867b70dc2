// Registration of a vendor's ops: the library holds every vendor's, and a process has the device of one.
#pragma once

#include "device.h"

namespace fusionkit_emulator::ops {

// At static initialisation: Paddle reads what is registered when the plugin's ops are loaded.
struct Vendor {
  template <typename Register>
  Vendor(const char* device_type, Register register_ops) {
    if (Settings::get().device_type == device_type) register_ops();
  }
};

}  // namespace fusionkit_emulator::ops
