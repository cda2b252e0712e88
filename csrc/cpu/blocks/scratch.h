// Memory and threads for the kernels, compiled once for the oldest machine (scratch.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ncops {

// Asks for 2 MB pages where fresh memory is large: its first touch is then 512 times fewer page faults.
void prefer_huge_pages(void* data, size_t bytes);

// 64-byte aligned memory, freed with its owner. Throws std::bad_alloc.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  T* at(size_t byte_offset = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + byte_offset);
  }

 private:
  void* data_;
};

constexpr size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
constexpr int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Arrays side by side in one Scratch, each on a line of its own: where the next one begins.
struct Layout {
  size_t bytes = 0;
  template <class T>
  size_t add(int64_t elements) {
    const size_t at = bytes;
    bytes += round_up(size_t(elements) * sizeof(T), 64);
    return at;
  }
};

// Runs body(context, task, worker) for tasks 0..tasks-1 on torch's threads. Tasks are handed out one by one, so uneven
// ones balance; each writes its own output, so results do not depend on who ran it. worker < workers().
// An exception inside a body (out of memory) is rethrown here, after every worker has stopped.
void run_tasks(int64_t tasks, void* context, void (*body)(void*, int64_t, int));
int workers();

template <class F>
void for_tasks(int64_t tasks, F&& f) {
  run_tasks(tasks, &f, [](void* context, int64_t task, int worker) { (*static_cast<F*>(context))(task, worker); });
}

// Runs f(begin, end, worker) for [0, n) in blocks of `size`, a task each.
template <class F>
void for_blocks(int64_t n, int64_t size, F&& f) {
  for_tasks(pieces(n, size), [&](int64_t task, int worker) {
    const int64_t begin = task * size;
    f(begin, n - begin < size ? n : begin + size, worker);
  });
}

}  // namespace ncops
