// What Paddle is told about a call of the device interface.
#pragma once

#include <cstdio>
#include <exception>

#include "device.h"
#include "paddle/phi/backends/device_ext.h"

namespace fusionkit_emulator {

// Paddle knows only success and failure: the reason goes to the standard error.
template <typename Body>
C_Status guarded(Body&& body) {
  try {
    body();
    return C_SUCCESS;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "emulated %s: %s\n", Settings::get().device_type.c_str(), error.what());
    return C_FAILED;
  }
}

}  // namespace fusionkit_emulator
