// Runs every public function of the kernel library on small cases and holds the results against plain double loops, for
// each instruction set: with a faulting page after every tensor, on three threads; with one before it, on one thread;
// and from two threads at once. No framework.
//
//   kernel_tests [--isa NAME] [--edge end|begin] [--plant NAME]
//
// --edge leaves out the run with the other one.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <string>
#include <thread>

#include "isa.h"
#include "judge.h"

namespace kernel_tests {
namespace {

void on_fault(int) {
  const std::string text = "kernel_tests: a kernel left its memory in " + current_case() + "\n";
  (void)!write(STDOUT_FILENO, text.data(), text.size());
  _exit(1);
}

// A model computes attention; the code of the rest is another target's.
bool is_model() { return std::string(fusionkit_cpu::isa()).find("_model") != std::string::npos; }

void run_cases() {
  for (DType dtype : kFloating) {
    check_attention(dtype);
    if (is_model()) continue;
    check_paged_attention(dtype);
    check_norms(dtype);
    check_rope(dtype);
    check_swiglu(dtype);
    check_linear(dtype);
    check_quantized(dtype);
    check_cross_entropy(dtype);
  }
  check_refusals();
}

// Calls from two threads at once, each with threads of its own.
void run_concurrently() {
  std::thread other(run_cases);
  run_cases();
  other.join();
}

int run_isa(const std::string& isa, const std::string& only) {
  fusionkit_cpu::set_isa(isa);
  const Counts before = counts();
  for (Edge each : {Edge::kEnd, Edge::kBegin}) {
    if (!only.empty() && only != (each == Edge::kEnd ? "end" : "begin")) continue;
    edge = each;
    fusionkit_cpu::set_num_threads(each == Edge::kEnd ? 3 : 1);
    run_cases();
  }
  fusionkit_cpu::set_num_threads(2);
  run_concurrently();
  const Counts after = counts();
  std::printf("kernel_tests: %s: %ld cases, %ld results, %ld wrong\n", isa.c_str(),
              static_cast<long>(after.cases - before.cases), static_cast<long>(after.comparisons - before.comparisons),
              static_cast<long>(after.failures - before.failures));
  return after.failures > before.failures;
}

int run(std::map<std::string, std::string> options) {
  if (options.count("--plant")) {
    if (options.count("--isa")) fusionkit_cpu::set_isa(options["--isa"]);
    return plant(options["--plant"]);
  }
  int status = 0;
  for (const std::string& isa : fusionkit_cpu::tested_isas())
    if (!options.count("--isa") || options["--isa"] == isa) status |= run_isa(isa, options["--edge"]);
  return status;
}

}  // namespace
}  // namespace kernel_tests

int main(int count, char** arguments) {
  std::signal(SIGSEGV, kernel_tests::on_fault);
  std::signal(SIGBUS, kernel_tests::on_fault);
  std::map<std::string, std::string> options;
  for (int i = 1; i + 1 < count; i += 2) options[arguments[i]] = arguments[i + 1];
  try {
    return kernel_tests::run(options);
  } catch (const std::exception& error) {
    std::printf("kernel_tests: %s: %s\n", kernel_tests::current_case().c_str(), error.what());
    return 1;
  }
}
