// Shared memory: one arena per block, [dynamic | gap | static array | gap | static array | ...].
//
// Every block starts from bytes 0xFF (NaN as floating point, -1 as integer), so that reading what was not written
// shows. Gaps catch overruns: under ASan they are poisoned, else they must still be 0xFF when the block ends.
// Under ThreadSanitizer the arena is mapped anew for every block, so that blocks do not seem to share it.
#pragma once

#include "error.h"

namespace simt {

constexpr size_t arena_bytes = 512 * 1024;
constexpr size_t static_limit = 48 * 1024;   // of nvcc
constexpr size_t shared_limit = 163 * 1024;  // of sm_80, the smallest of the architectures that are built for
constexpr size_t gap_bytes = 112;            // 16 bytes short of 128: static arrays are not aligned to more than 16
constexpr size_t max_arrays = 64;

// A static array of a kernel (one per template instance), and where it lies in the running block.
struct SharedSlot {
  uint64_t block_serial = 0;
  size_t offset = 0;
};

struct Gap {
  size_t from, to;
};
inline constinit Gap gaps[max_arrays + 1] = {};
inline constinit unsigned num_gaps = 0;

SIMT_UNSEEN inline void fill_nan(size_t from, size_t to) {
  for (size_t i = from; i < to; ++i) state.arena[i] = char(0xFF);
}

SIMT_UNSEEN inline size_t reserve(size_t bytes) {
  const size_t offset = state.arena_top;
  const size_t end = offset + bytes;
  state.arena_top = (end + 15) / 16 * 16 + gap_bytes;
  gaps[num_gaps++] = {end, state.arena_top};
  if (state.arena_top > state.arena_used) {
    unpoison(state.arena + state.arena_used, state.arena_top - state.arena_used);
    fill_nan(state.arena_used, state.arena_top);
    state.arena_used = state.arena_top;
  }
  unpoison(state.arena + offset, bytes);
  poison(state.arena + end, state.arena_top - end);
  return offset;
}

SIMT_UNSEEN inline void start_shared_memory() {
#if defined(__SANITIZE_THREAD__)
  if (state.arena) munmap(state.arena, arena_bytes);
  state.arena = nullptr;
#endif
  if (!state.arena) state.arena = map_memory(arena_bytes);
  unpoison(state.arena, arena_bytes);
  fill_nan(0, state.arena_used);
  poison(state.arena, arena_bytes);
  state.arena_top = state.static_bytes = 0;
  num_gaps = 0;
  ++state.block_serial;
  reserve(state.dynamic_bytes);
}

// The end of a block; names the array before the gap that was written.
SIMT_UNSEEN inline void check_shared_memory() {
#if !defined(__SANITIZE_ADDRESS__)
  for (unsigned g = 0; g < num_gaps; ++g) {
    for (size_t i = gaps[g].from; i < gaps[g].to; ++i) {
      if (state.arena[i] == char(0xFF)) continue;
      fail(state.launched_at, "shared memory written %zu bytes past the end of %s", i - gaps[g].from,
           g == 0 ? "the dynamic shared memory" : "a static shared array");
    }
  }
#endif
}

template <class T>
SIMT_UNSEEN inline T& shared_array(SharedSlot& slot) {
  if (slot.block_serial != state.block_serial) {
    static_assert(sizeof(T) <= static_limit, "over 48 KiB of static shared memory");
    state.static_bytes += sizeof(T);
    if (state.static_bytes > static_limit) fail(state.launched_at, "over 48 KiB of static shared memory");
    if (state.static_bytes + state.dynamic_bytes > shared_limit) {
      fail(state.launched_at, "over 163 KiB of shared memory");
    }
    if (num_gaps > max_arrays) fail(state.launched_at, "over %zu static shared arrays", max_arrays);
    slot.offset = reserve(sizeof(T));
    slot.block_serial = state.block_serial;
  }
  return *reinterpret_cast<T*>(state.arena + slot.offset);
}

template <class T>
SIMT_UNSEEN inline T* shared_dynamic() {
  static_assert(alignof(T) <= 128);
  return reinterpret_cast<T*>(state.arena);
}

SIMT_UNSEEN inline bool in_shared_memory(const void* p) {
  return p >= state.arena && p < state.arena + arena_bytes;
}

}  // namespace simt
