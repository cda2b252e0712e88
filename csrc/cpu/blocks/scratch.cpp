#include "scratch.h"

#include <torch/csrc/stable/ops.h>
#if defined(__linux__) || defined(__APPLE__)
#include <pthread.h>
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <new>

// torch's thread pool is not built for ThreadSanitizer, which so does not see that it starts and joins threads.
#ifdef __SANITIZE_THREAD__
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
static char started, ended;  // told apart, so that workers are not taken for ordered among themselves
#define NCOPS_TSAN(call) call
#else
#define NCOPS_TSAN(call)
#endif

namespace ncops {

void prefer_huge_pages(void* data, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = uintptr_t(2) << 20;
  if (bytes < 4 * page) return;
  const uintptr_t first = round_up(reinterpret_cast<uintptr_t>(data), page);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: an error changes nothing
#endif
}

Scratch::Scratch(size_t bytes) : data_(std::aligned_alloc(64, round_up(bytes ? bytes : 1, 64))) {
  if (data_ == nullptr) throw std::bad_alloc();
  prefer_huge_pages(data_, bytes);
}

Scratch::~Scratch() { std::free(data_); }

// A forked process inherits the thread pool without its threads, and would wait for them for ever.
static bool forked = false;
#if defined(__linux__) || defined(__APPLE__)
static const int watching = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

int workers() { return forked ? 1 : static_cast<int>(torch::stable::get_num_threads()); }

void run_tasks(int64_t tasks, void* context, void (*body)(void*, int64_t, int)) {
  if (tasks <= 0) return;
  const int64_t team = std::min<int64_t>(tasks, workers());
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  auto work = [&](int64_t begin, int64_t end) {
    NCOPS_TSAN(__tsan_acquire(&started));
    for (int64_t worker = begin; worker < end; ++worker) {
      try {
        while (!failed.load(std::memory_order_relaxed)) {
          const int64_t task = next.fetch_add(1, std::memory_order_relaxed);  // tasks order nothing between workers
          if (task >= tasks) break;
          body(context, task, static_cast<int>(worker));
        }
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
    NCOPS_TSAN(__tsan_release(&ended));
  };
  if (team == 1) {
    work(0, 1);
  } else {
    NCOPS_TSAN(__tsan_release(&started));
    torch::stable::parallel_for(0, team, 1, work);
    NCOPS_TSAN(__tsan_acquire(&ended));
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace ncops
