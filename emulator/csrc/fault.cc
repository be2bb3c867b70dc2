#include "fault.h"

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <mutex>

#include "device.h"

namespace fusionkit_emulator {
namespace {

struct sigaction previous;

void explain(const void* address, const Device& owner) {
  char text[512];
  const char* type = Settings::get().device_type.c_str();
  Written found;
  size_t offset = 0;
  int length;
  if (owner.memory.try_find(address, &found, &offset)) {
    length = std::snprintf(text, sizeof text,
                           "emulated %s:%d: host code touched device memory, %zu bytes into the %zu that %s wrote. On "
                           "hardware this is a segmentation fault: copy the tensor first, with .cpu() or .numpy().\n",
                           type, owner.id, offset, found.size, found.by);
  } else {
    length = std::snprintf(text, sizeof text,
                           "emulated %s:%d: host code touched device memory at %p, where no tensor is known. On "
                           "hardware this is a segmentation fault.\n",
                           type, owner.id, address);
  }
  if (write(STDERR_FILENO, text, length) < 0) _exit(139);
}

// Returning runs the faulting instruction again: into the handler that was there before, or the default action.
void handle(int signal, siginfo_t* info, void*) {
  const Device* owner = device_of(info->si_addr);
  if (owner == nullptr) {
    sigaction(signal, &previous, nullptr);
    return;
  }
  explain(info->si_addr, *owner);
  struct sigaction otherwise = {};
  otherwise.sa_handler = SIG_DFL;  // Paddle's handler may wait for a lock that the faulting thread holds
  sigaction(signal, &otherwise, nullptr);
}

}  // namespace

void install_fault_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action = {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &previous);
  });
}

}  // namespace fusionkit_emulator
