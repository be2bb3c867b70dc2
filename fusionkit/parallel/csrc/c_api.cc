// The communicator for Python's ctypes. Functions return 0, or leave the error's text and return -2 for a
// bad argument, else -1.
#include <dlfcn.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "communicator.h"
#include "hosts.h"
#include "listener.h"
#include "reduce.h"
#include "rendezvous.h"
#include "work.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using fusionkit_parallel::Call;
using fusionkit_parallel::Communicator;
using fusionkit_parallel::DType;
using fusionkit_parallel::GroupKey;
using fusionkit_parallel::Listener;
using fusionkit_parallel::Member;
using fusionkit_parallel::UniqueId;
using fusionkit_parallel::Work;

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

// Gives up Python's lock, and takes it again for a look at what signals have come and at the end. Python's functions
// are looked up in the process: the library is linked to no version of Python.
class PythonThread {
 public:
  PythonThread() { state_ = save_(); }
  ~PythonThread() { restore_(state_); }
  PythonThread(const PythonThread&) = delete;

  bool is_interrupted() const {
    restore_(state_);
    const bool is_raised = check_signals_() != 0;
    state_ = save_();
    return is_raised;
  }

 private:
  template <typename Function>
  static Function* find(const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
  }

  void* (*const save_)() = find<void*()>("PyEval_SaveThread");
  void (*const restore_)(void*) = find<void(void*)>("PyEval_RestoreThread");
  int (*const check_signals_)() = find<int()>("PyErr_CheckSignals");
  mutable void* state_;
};

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

EXPORT size_t fusionkit_parallel_key_size() { return sizeof(GroupKey); }

EXPORT int fusionkit_parallel_create_key(void* key) {
  return guarded([&] {
    const GroupKey made = GroupKey::create();
    std::memcpy(key, &made, sizeof made);
  });
}

EXPORT int fusionkit_parallel_listen(const char* address, Listener** made, int* port) {
  return guarded([&] {
    *made = new Listener(address);
    *port = (*made)->port();
  });
}

EXPORT void fusionkit_parallel_stop_listening(Listener* listener) { delete listener; }

// hosts, addresses, ports: one for each rank. joining: seconds until all must be there. watch: as socket.h has it, 1
// when another rank has failed. With Python's lock held, which is released meanwhile; when a signal's handler raises,
// the exception is left set.
EXPORT int fusionkit_parallel_join_hosts(const Listener* listener, const void* key, int rank, int world_size,
                                         const char* const* hosts, const char* const* addresses, const int* ports,
                                         double joining, double timeout, int (*watch)(const char*),
                                         Communicator** made) {
  const PythonThread thread;
  return guarded([&] {
    bool is_interrupted = false;
    const auto asked = [&](const char* own_failure) {
      if (is_interrupted) return;  // Python must not be called while an exception is set
      is_interrupted = thread.is_interrupted();
      if (is_interrupted) throw std::runtime_error("communicator: joining was interrupted");
      if (watch(own_failure) != 0 && own_failure == nullptr)
        throw std::runtime_error("communicator: another rank could not join");
    };
    GroupKey own;
    std::memcpy(&own, key, sizeof own);
    std::vector<Member> members;
    for (int each = 0; each < world_size; ++each) members.push_back({hosts[each], addresses[each], ports[each]});
    *made = new Communicator(fusionkit_parallel::join_hosts(*listener, own, rank, members, joining, timeout, asked),
                             timeout);
  });
}

EXPORT int fusionkit_parallel_run(const Call* calls, size_t num_calls) {
  return guarded([&] { Communicator::run(calls, num_calls); });
}

// For Python's main thread, which handles signals, with Python's lock held; it is released meanwhile. When a signal's
// handler raises, the exception is left set.
EXPORT int fusionkit_parallel_run_on_main_thread(const Call* calls, size_t num_calls) {
  const PythonThread thread;
  return guarded([&] { Communicator::run(calls, num_calls, [&] { return thread.is_interrupted(); }); });
}

EXPORT int fusionkit_parallel_start(const Call* calls, size_t num_calls, std::shared_ptr<Work>** made) {
  return guarded([&] { *made = new std::shared_ptr<Work>(Communicator::start(calls, num_calls)); });
}

// Puts into `is_done` whether the call is done, for which it waits no longer than this.
EXPORT int fusionkit_parallel_wait(const std::shared_ptr<Work>* work, int milliseconds, int* is_done) {
  return guarded([&] { *is_done = (*work)->wait_for(std::chrono::milliseconds(milliseconds)) ? 1 : 0; });
}

EXPORT int fusionkit_parallel_is_done(const std::shared_ptr<Work>* work) { return (*work)->is_done() ? 1 : 0; }

// The call goes on; what it reads and writes must stay until it is done.
EXPORT void fusionkit_parallel_forget(std::shared_ptr<Work>* work) { delete work; }

EXPORT int fusionkit_parallel_sum_in_order(DType dtype, const char* const* sources, int num_sources, size_t count,
                                           DType out_dtype, char* out) {
  return guarded([&] { fusionkit_parallel::sum_in_order(dtype, sources, num_sources, count, out_dtype, out); });
}

// Whether the communicator is gone: 0 while calls of other threads, or of this one's, are about to end.
EXPORT int fusionkit_parallel_leave(Communicator* communicator) { return Communicator::leave(communicator) ? 1 : 0; }
