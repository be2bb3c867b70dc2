// The choice of a target whose permission Linux refuses: the next one runs, and the reason is told.
#include <cstdio>
#include <string>

#include "isa.h"
#include "kernels/table.h"

int main() {
  std::string names;
  for (const std::string& name : fusionkit_cpu::available_isas()) names += name + " ";
  std::printf("%s| runs %s | %s\n", names.c_str(), fusionkit_cpu::isa(), fusionkit_cpu::refused_isas().c_str());
  try {
    fusionkit_cpu::set_isa("amx");
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
  }
}
