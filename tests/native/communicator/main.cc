// The communicator's C++ with ranks as threads, over shared memory, TCP and both: for the sanitizers.
//
//   communicator_tests [--plant early_read | short_buffer | freed_buffer]
#include <cstdio>
#include <cstring>

#include "calls.h"
#include "faults.h"

namespace communicator_tests {
namespace {

void check_all() {
  for (const Way way : {Way::kMemory, Way::kTcp, Way::kMixed}) {
    for (const int world_size : {1, 2, 4}) {
      if (world_size == 1 && way != Way::kMemory) continue;
      check_calls(way, world_size);
      check_works(way, world_size);
      check_turns(way, world_size);
    }
    check_groups(way, 3);
    check_mismatch(way);
    check_leaving(way);
    check_leaving_early(way);
    check_blame(way);
    check_closing(way);
    check_absence(way);
  }
  check_sends_that_wait();
  check_strangers();
}

// A mistake of a caller, which a sanitizer must see although other threads and the kernel move the bytes.
void plant(const char* mistake) {
  run_group(Way::kTcp, 2, [&](Communicator& own) {
    const Floats from(300000);
    auto to = std::make_unique<Floats>(std::strcmp(mistake, "short_buffer") == 0 ? from.size() / 2 : from.size());
    const Call one = all_reduce(own, from, *to);
    const auto work = Communicator::start(&one, 1);
    if (std::strcmp(mistake, "early_read") == 0) {
      // One element: ThreadSanitizer restores a stack for each racing read, minutes for all of them.
      float first = 0;
      while (!work->is_done()) first = to->front();
      std::printf("%g\n", first);
    }
    if (std::strcmp(mistake, "freed_buffer") == 0) to.reset();
    work->wait();
  });
}

}  // namespace
}  // namespace communicator_tests

int main(int num_arguments, char** arguments) {
  using namespace communicator_tests;
  if (num_arguments == 3 && std::strcmp(arguments[1], "--plant") == 0)
    plant(arguments[2]);
  else
    check_all();
  const Counts all = counts();
  std::printf("communicator_tests: %ld checks, %ld wrong\n", all.checks, all.wrong);
  return all.wrong == 0 ? 0 : 1;
}
