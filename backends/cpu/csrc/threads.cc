#include <dlfcn.h>
#include <omp.h>
#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#ifdef FUSIONKIT_STD_THREADS
#include <thread>
#include <vector>
#endif

#include "buffer.h"
#include "parallel.h"

namespace fusionkit_cpu {
namespace {

constexpr int kMaxCpus = 8192;
constexpr size_t kAlignment = 64;  // one cache line, one AVX-512 vector

std::atomic<int> thread_count{1};  // whoever loads the library says how many

// GNU's OpenMP runtime waits forever in a forked child for the threads that its parent had. Intel's starts new ones.
std::atomic<bool> pool_started{false};
std::atomic<bool> pool_lost{false};

void watch_forks() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (dlsym(RTLD_DEFAULT, "kmp_get_blocktime") != nullptr) return;
    pthread_atfork(nullptr, nullptr, [] { pool_lost = pool_started.load(); });
  });
}

// member(thread, number of threads) on up to `size` threads at once.
#ifdef FUSIONKIT_STD_THREADS
// For ThreadSanitizer, which cannot see how an OpenMP runtime synchronises.
template <class Member>
void run_team(int size, Member member) {
  std::vector<std::thread> others;
  for (int thread = 1; thread < size; ++thread) others.emplace_back(member, thread, size);
  member(0, size);
  for (std::thread& other : others) other.join();
}
#else
template <class Member>
void run_team(int size, Member member) {
#pragma omp parallel num_threads(size)
  member(omp_get_thread_num(), omp_get_num_threads());
}
#endif

void run_share(int64_t n, int shares, int share, ShareBody body, void* context) {
  const int64_t whole = n / shares, rest = n % shares;  // the first `rest` shares get one more
  const int64_t begin = share * whole + (share < rest ? share : rest);
  body(context, begin, begin + whole + (share < rest ? 1 : 0), share);
}

}  // namespace

int num_threads() { return thread_count.load(std::memory_order_relaxed); }

void set_num_threads(int n) {
  if (n < 1 || n > kMaxCpus)
    throw std::invalid_argument("set_num_threads: n must be between 1 and " + std::to_string(kMaxCpus) + ", got " +
                                std::to_string(n));
  thread_count.store(n, std::memory_order_relaxed);
}

int num_shares(int64_t n, int64_t grain) {
  const int64_t wanted = grain > 1 ? n / grain : n;
  const int64_t most = num_threads();
  return static_cast<int>(wanted < 1 ? 1 : wanted < most ? wanted : most);
}

void run_shares(int64_t n, int shares, ShareBody body, void* context) {
  if (shares == 1 || pool_lost) {
    for (int share = 0; share < shares; ++share) run_share(n, shares, share, body, context);
    return;
  }
  watch_forks();
  pool_started = true;
  std::exception_ptr error;
  std::mutex error_mutex;
  run_team(shares, [&](int thread, int team) {
    for (int share = thread; share < shares; share += team) {
      try {
        run_share(n, shares, share, body, context);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
      }
    }
  });
  if (error) std::rethrow_exception(error);
}

// Not rounded up: a sanitizer then sees what lies past the last byte.
Buffer::Buffer(size_t num_bytes) {
  if (num_bytes > 0 && posix_memalign(&data_, kAlignment, num_bytes) != 0) throw std::bad_alloc();
}

Buffer::~Buffer() { std::free(data_); }

}  // namespace fusionkit_cpu
