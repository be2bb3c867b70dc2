// What must fail, on every rank, in time.
#pragma once

#include "ranks.h"

namespace communicator_tests {

void check_mismatch(Way way);
void check_leaving(Way way);
void check_leaving_early(Way way);
void check_blame(Way way);
void check_closing(Way way);
void check_absence(Way way);
void check_strangers();

}  // namespace communicator_tests
