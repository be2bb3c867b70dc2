#include "tiles.h"

#include <atomic>
#include <cerrno>
#include <cstring>
#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fusionkit_cpu {
namespace {

std::atomic<bool> modelled{false};
std::atomic<int> refusal{0};  // errno

// Linux: Documentation/arch/x86/xstate.rst.
int ask_for_tiles() {
#if defined(__x86_64__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? 0 : errno;
#else
  return ENOTSUP;
#endif
}

}  // namespace

bool tiles_permitted() {
  static const int answer = ask_for_tiles();
  refusal = answer;
  return answer == 0;
}

std::string why_tiles_are_refused() {
  const int number = refusal;
  if (number == 0) return "";
  const std::string cause = number == ENOSPC ? "a thread has a signal stack too small for them" : std::strerror(number);
  return "Linux does not permit tiles: " + cause;
}

bool tiles_are_modelled() { return modelled.load(std::memory_order_relaxed); }

void model_tiles(bool model) { modelled.store(model, std::memory_order_relaxed); }

}  // namespace fusionkit_cpu
