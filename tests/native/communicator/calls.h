// What the ranks call, blocking and in flight, and what must come of it.
#pragma once

#include "ranks.h"

namespace communicator_tests {

using Floats = std::vector<float>;

Call all_reduce(Communicator& communicator, const Floats& from, Floats& to);
Call reduce_scatter(Communicator& communicator, const Floats& from, Floats& to);
Call reduce(Communicator& communicator, const Floats& from, Floats& to, int root);
void check_calls(Way way, int world_size);
void check_works(Way way, int world_size);
void check_turns(Way way, int world_size);
void check_groups(Way way, int world_size);
void check_sends_that_wait();

}  // namespace communicator_tests
