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

// Runs body(context, task, worker) for tasks 0..tasks-1 on torch's threads. Tasks are handed out one by one, so uneven
// ones balance; each writes its own output, so results do not depend on who ran it. worker < workers().
// An exception inside a body (out of memory) is rethrown here, after every worker has stopped.
void run_tasks(int64_t tasks, void* context, void (*body)(void*, int64_t, int));
int workers();

template <class F>
void for_tasks(int64_t tasks, F&& f) {
  run_tasks(tasks, &f, [](void* context, int64_t task, int worker) { (*static_cast<F*>(context))(task, worker); });
}

}  // namespace ncops
