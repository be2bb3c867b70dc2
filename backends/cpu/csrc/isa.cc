#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "fusionkit_cpu.h"
#include "kernels/table.h"

namespace fusionkit_cpu {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};  // in the order of Isa

#define FUSIONKIT_TEXT(name) FUSIONKIT_QUOTED(name)
#define FUSIONKIT_QUOTED(name) #name

bool is_built([[maybe_unused]] Isa isa) {
#if defined(FUSIONKIT_ONLY_ISA)
  return std::string(FUSIONKIT_TEXT(FUSIONKIT_ONLY_ISA)) == kNames[static_cast<int>(isa)];
#else
  return true;
#endif
}

bool runs_here(Isa isa) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (isa == Isa::kAvx2) return avx2;
  if (isa == Isa::kAvx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16");
#endif
  return isa == Isa::kPortable;
}

bool is_available(Isa isa) { return is_built(isa) && runs_here(isa); }

// `source` is who asks: a function or the environment variable.
Isa parse(const std::string& name, const std::string& source) {
  std::string list;
  bool missing = false;
  for (Isa isa : {Isa::kAvx512, Isa::kAvx2, Isa::kPortable}) {
    const bool is_named = name == kNames[static_cast<int>(isa)];
    if (is_named && runs_here(isa) && !is_built(isa)) missing = true;
    if (!is_available(isa)) continue;
    if (is_named) return isa;
    list += (list.empty() ? "" : ", ") + std::string(kNames[static_cast<int>(isa)]);
  }
  const std::string why = missing ? "what `make demo` has built" : "what this processor has";
  throw std::invalid_argument(source + " must be one of " + list + " (" + why + "), got \"" + name + "\"" +
                              (missing ? ". Run: make build" : ""));
}

Isa initial_isa() {
  const char* name = std::getenv("FUSIONKIT_CPU_ISA");
  if (name != nullptr && *name != '\0') return parse(name, "isa: FUSIONKIT_CPU_ISA");
  for (Isa isa : {Isa::kAvx512, Isa::kAvx2, Isa::kPortable})
    if (is_available(isa)) return isa;
  throw std::invalid_argument(
      "isa: the kernels must be built for this processor, which another one built. Run: make build");
}

std::atomic<int> chosen{-1};  // -1: not asked for yet

}  // namespace

Isa current_isa() {
  int isa = chosen.load(std::memory_order_relaxed);
  if (isa < 0) {
    isa = static_cast<int>(initial_isa());
    chosen.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

const char* isa() { return kNames[static_cast<int>(current_isa())]; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (Isa isa : {Isa::kAvx512, Isa::kAvx2, Isa::kPortable})
    if (is_available(isa)) names.push_back(kNames[static_cast<int>(isa)]);
  return names;
}

void set_isa(const std::string& name) {
  chosen.store(static_cast<int>(parse(name, "set_isa: name")), std::memory_order_relaxed);
}

}  // namespace fusionkit_cpu
