// The collectives of the device interface, on the communicator of fusionkit/parallel.
#pragma once

#include "paddle/phi/backends/device_ext.h"

namespace fusionkit_emulator {

// Sets every xccl_* entry. Calls run on the stream they are given, in the order in which the host made them.
void fill_collectives(C_DeviceInterface* interface);

}  // namespace fusionkit_emulator
