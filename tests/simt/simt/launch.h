// Running a grid: blocks one after another in a random order, the threads of a block as fibers (schedule.h).
#pragma once

#include <algorithm>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "async_copy.h"
#include "barrier.h"
#include "device_memory.h"
#include "shared.h"

namespace simt {

SIMT_UNSEEN inline void thread_main() {
  enter_fiber();
  acquire(&state.grid_start);
  state.body(state.body_argument);
  check_async_copies();
  release(&state.grid_end);
  state.current->waiting = Waiting::exited;
  yield_thread(true);
  __builtin_unreachable();
}

// Who waits where, for the message of a deadlock.
SIMT_UNSEEN inline void fail_deadlocked() {
  struct Group {
    const Thread* thread;
    unsigned count;
  } groups[4];
  unsigned num_groups = 0, exited = 0;
  for (unsigned i = 0; i < state.num_threads; ++i) {
    const Thread& t = state.threads[i];
    if (t.waiting == Waiting::exited) {
      ++exited;
      continue;
    }
    unsigned g = 0;
    while (g < num_groups && !(groups[g].thread->waiting == t.waiting && groups[g].thread->place == t.place)) ++g;
    if (g == num_groups && num_groups < 4) groups[num_groups++] = {&t, 0};
    if (g < num_groups) ++groups[g].count;
  }
  std::string waits;
  for (unsigned g = 0; g < num_groups; ++g) {
    const Thread& t = *groups[g].thread;
    char text[512];
    std::snprintf(text, sizeof text, ", %u wait in %s at %s:%u", groups[g].count,
                  t.waiting == Waiting::warp ? "a warp collective" : "__syncthreads", t.place.file,
                  t.place.line);
    waits += text;
  }
  fail(groups[0].thread->place, "deadlock (of %u threads %u have exited%s)", state.num_threads, exited,
       waits.c_str());
}

SIMT_UNSEEN inline void start_block(unsigned serial) {
  const uint3 &grid = state.grid, &block = state.block;
  state.block_index = {serial % grid.x, serial / grid.x % grid.y, serial / grid.x / grid.y};
  state.alive = state.num_threads;
  state.at_barrier = state.ready_warps = 0;
  state.vote = BlockVote{};
  start_shared_memory();
  draw_warp_order();
  for (unsigned w = 0; w * warp_size < state.num_threads; ++w) {
    state.warps[w].ready = 0;
    for (Collective& c : state.warps[w].collectives) c.arrived = c.unread = 0;
  }
  for (unsigned i = 0; i < state.num_threads; ++i) {
    Thread& t = state.threads[i];
    t.number = i;
    t.index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    t.num_copies = t.open_group = 0;
    prepare_fiber(t, &thread_main);
    make_ready(t);
  }
  release(&state.grid_start);  // the scheduler acquires nothing until the grid ends: blocks stay unordered
}

SIMT_UNSEEN inline void run_block() {
  while (state.alive) {
    Thread* next = next_thread();
    if (!next) fail_deadlocked();
    run_thread(*next);
    if (state.failed) throw_error();
    if (race_reports() != state.reports_at_launch) {
      fail(state.launched_at, "data race, reported by ThreadSanitizer");
    }
    if (next->waiting == Waiting::exited) {
      --state.alive;
      release_barrier();  // the others may have waited for this one alone
    }
  }
  check_shared_memory();
}

SIMT_UNSEEN inline void run_blocks() {
  const uint3& grid = state.grid;
  std::vector<unsigned> order(size_t(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0u);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_number() % i]);
  for (unsigned serial : order) {
    state.identity_set = (state.identity_set + 1) % identity_sets;
    start_block(serial);
    run_block();
  }
}

SIMT_UNSEEN inline void check_configuration(const Place& place) {
  const uint3 &grid = state.grid, &block = state.block;
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (!threads || threads > max_threads || block.z > 64) {
    fail(place, "invalid block (%u,%u,%u): 1 to 1024 threads, z at most 64", block.x, block.y, block.z);
  }
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    fail(place, "invalid grid (%u,%u,%u): each at least 1, x below 2^31, y and z at most 65535", grid.x, grid.y, grid.z);
  }
  if (state.dynamic_bytes > shared_limit) {
    fail(place, "%zu bytes of dynamic shared memory, over the %zu of sm_80", state.dynamic_bytes, shared_limit);
  }
}

SIMT_UNSEEN inline void run_grid(void (*body)(void*), void* argument) {
  state.failed = false;
  state.num_threads = 0;
  check_configuration(state.launched_at);
  state.num_threads = state.block.x * state.block.y * state.block.z;
  state.body = body;
  state.body_argument = argument;
  state.reports_at_launch = race_reports();
#if defined(__SANITIZE_THREAD__)
  state.tsan_scheduler = __tsan_get_current_fiber();
#endif
  try {
    run_blocks();
  } catch (...) {
    abandon_fibers();
    state.current = nullptr;
    state.num_threads = 0;
    throw;
  }
  state.num_threads = 0;
  acquire(&state.grid_end);
}

// What NCOPS_LAUNCH calls. Arguments are converted to the parameters once, as CUDA does, and copied for each thread.
template <class... Params, class... Args>
SIMT_UNSEEN cudaError_t launch(const char* name, Site site, void (*kernel)(Params...), dim3 grid, dim3 block,
                               size_t shared_bytes, cudaStream_t, const Args&... args) {
  static_assert((sizeof(Params) + ... + 0) <= 4096, "kernel parameters are at most 4 KiB");
  if (state.current) fail(site, "a kernel launches a kernel");
  state.kernel = name;
  state.launched_at = site;
  state.grid = grid;
  state.block = block;
  state.dynamic_bytes = shared_bytes;
  std::tuple<Params...> parameters(args...);
  auto body = [&] { std::apply(kernel, parameters); };
  using Body = decltype(body);
  run_grid([](void* b) { (*static_cast<Body*>(b))(); }, &body);
  check_device_memory();
  return cudaSuccess;
}

}  // namespace simt
