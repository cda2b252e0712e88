#include "scratch.h"

#include <torch/csrc/stable/ops.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <new>

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

int workers() { return static_cast<int>(torch::stable::get_num_threads()); }

void run_tasks(int64_t tasks, void* context, void (*body)(void*, int64_t, int)) {
  if (tasks <= 0) return;
  const int64_t team = std::min<int64_t>(tasks, workers());
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  auto work = [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      try {
        for (int64_t task; !failed.load(std::memory_order_relaxed) && (task = next.fetch_add(1)) < tasks;)
          body(context, task, static_cast<int>(worker));
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
  };
  if (team == 1) {
    work(0, 1);
  } else {
    torch::stable::parallel_for(0, team, 1, work);
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace ncops
