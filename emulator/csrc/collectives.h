// The collectives of the device interface, on the communicator of fusionkit/parallel.
#pragma once

#include <memory>
#include <string>

#include "fusionkit/parallel/csrc/communicator.h"
#include "paddle/phi/backends/device_ext.h"
#include "rehearsal/calls.h"
#include "turns.h"

namespace fusionkit_emulator {

// Sets every xccl_* entry. Calls run on the stream they are given, in the order in which the host made them.
void fill_collectives(C_DeviceInterface* interface);

// A collective inside a vendor's op: its place among the communicator's calls is taken when the host makes the call.
struct ReservedCall {
  std::shared_ptr<fusionkit_parallel::Communicator> communicator;
  std::shared_ptr<Turn> turn;
  std::shared_ptr<rehearsal::CallHistory> history;
  const std::string* line;  // that made the call, in a rehearsal

  // On the stream. `call` has addresses of host memory and no communicator. In a rehearsal they may be null.
  void run(fusionkit_parallel::Call call) const;
};

// By the name that xccl_get_comm_name gave. Throws std::invalid_argument for another one.
ReservedCall reserve_call(const std::string& name);

}  // namespace fusionkit_emulator
