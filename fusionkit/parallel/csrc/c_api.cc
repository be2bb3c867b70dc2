// The communicator for Python's ctypes. Functions return 0, or leave the error's text and return -2 for a
// bad argument, else -1.
#include <cstring>
#include <stdexcept>
#include <string>

#include "communicator.h"
#include "rendezvous.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using fusionkit_parallel::Call;
using fusionkit_parallel::Communicator;
using fusionkit_parallel::UniqueId;

thread_local std::string last_error;

template <typename Body>
int guarded(Body&& body) {
  try {
    body();
    return 0;
  } catch (const std::invalid_argument& error) {
    last_error = error.what();
    return -2;
  } catch (const std::exception& error) {
    last_error = error.what();
    return -1;
  }
}

}  // namespace

EXPORT const char* fusionkit_parallel_error() { return last_error.c_str(); }

EXPORT size_t fusionkit_parallel_id_size() { return sizeof(UniqueId); }

EXPORT int fusionkit_parallel_create_id(void* id) {
  return guarded([&] {
    const UniqueId made = UniqueId::create();
    std::memcpy(id, &made, sizeof made);
  });
}

EXPORT int fusionkit_parallel_join(const void* id, int rank, int world_size, double timeout, Communicator** made) {
  return guarded([&] {
    UniqueId own;
    std::memcpy(&own, id, sizeof own);
    *made = new Communicator(fusionkit_parallel::join(own, rank, world_size, timeout), timeout);
  });
}

EXPORT int fusionkit_parallel_run(const Call* calls, size_t num_calls) {
  return guarded([&] { Communicator::run(calls, num_calls); });
}

EXPORT void fusionkit_parallel_leave(Communicator* communicator) { delete communicator; }
