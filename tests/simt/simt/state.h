// What the harness knows: the running grid, its block, and the threads of the block. One grid, one block at a time.
#pragma once

#include <cstdint>
#include <source_location>
#include <type_traits>

#include "sanitizers.h"
#include "types.h"

namespace simt {

using Site = std::source_location;  // where in a kernel a barrier, shuffle or copy was called

// A site to be remembered.
struct Place {
  const char* file;
  unsigned line;
  Place() = default;
  Place(const Site& site) : file(site.file_name()), line(site.line()) {}
  bool operator==(const Place& other) const { return line == other.line && __builtin_strcmp(file, other.file) == 0; }
};

constexpr unsigned warp_size = 32;
constexpr unsigned max_threads = 1024;
constexpr unsigned max_warps = max_threads / warp_size;
// Blocks run in turn as one of two sets of thread identities, so that ThreadSanitizer sees blocks of different sets as
// unordered: with one set, thread t of all blocks would be one thread, and races between blocks would not show. The
// order of blocks is random, so a schedule sees half of all pairs, and of two blocks the one. (Its clocks grow with the
// number of identities: four sets cost twice the time.)
constexpr unsigned identity_sets = tsan ? 2 : 1;

enum class Waiting : uint8_t { exited, nothing, barrier, warp };

struct PendingCopy {
  void* to;
  const void* from;
  unsigned bytes, group;
  bool valid;
  Place place;
};

struct Thread {
  uint3 index;
  unsigned number;  // x fastest, as CUDA numbers threads into warps
  Waiting waiting;
  unsigned mask;  // of the warp collective that it waits in
  Place place;    // of its last barrier, collective or copy
  void* stack_pointer;
  void* asan_fake_stack;
  PendingCopy copies[64];  // cp.async not waited for, oldest first
  unsigned num_copies, open_group;

  unsigned lane() const { return number % warp_size; }
  unsigned warp() const { return number / warp_size; }
};

// One collective of some lanes of a warp: they arrive, then read each other's values, then leave. It is free for the
// next one only when all have left, so that a lane that runs ahead cannot touch what late lanes still read (nor
// publish to them, in ThreadSanitizer's eyes, what it did after the collective).
struct Collective {
  unsigned mask, arrived, unread;
  uint64_t value[warp_size][4];
  char order[identity_sets];  // what acquire and release name, one per identity set
};

struct Warp {
  static constexpr unsigned in_flight = 8;
  Collective collectives[in_flight];
  uint32_t ready;  // lanes that can go on
};

struct BlockVote {
  int yes, no;
};

// Without constructors: zero at the start, and its megabytes need no space in a module's file.
struct State {
  // The grid.
  const char* kernel;
  Place launched_at;
  uint3 grid, block;
  uint3 block_index;
  unsigned num_threads;  // of a block; 0 between launches
  void (*body)(void*);
  void* body_argument;

  // The block.
  Thread threads[max_threads];
  Warp warps[max_warps];
  Thread* current;
  unsigned alive, at_barrier;
  uint32_t ready_warps;          // warps with a lane that can go on
  uint8_t warp_order[max_warps];  // which of them goes first, until the next barrier
  bool in_order;                  // whether that counts
  // Two barriers take turns: a thread that runs ahead releases the *next* barrier before late threads have left this
  // one; were it the same variable, its writes after the barrier would seem ordered for them and the race would hide.
  char barrier_order[2][identity_sets];
  unsigned barrier_phase;
  BlockVote vote, vote_result;

  // Shared memory of the block (shared.h).
  char* arena;
  size_t dynamic_bytes, static_bytes, arena_top, arena_used;
  uint64_t block_serial;  // of all blocks ever run

  // Fibers.
  unsigned identity_set;
  char* stacks[identity_sets][max_threads];
  void* tsan_fibers[identity_sets][max_threads];
  void* tsan_scheduler;
  void* scheduler_stack_pointer;
  void* asan_scheduler_fake_stack;
  const void* asan_scheduler_stack;
  size_t asan_scheduler_stack_bytes;

  // Grid start and end, and __threadfence, as acquire and release see them.
  char grid_start, grid_end, fence;

  uint64_t random;
  int reports_at_launch;  // of ThreadSanitizer
  bool failed;
  char error[2048];
};

static_assert(std::is_trivially_default_constructible_v<State>);
inline State state;

// SplitMix64: the schedule is a function of the seed alone.
SIMT_UNSEEN inline uint64_t random_number() {
  uint64_t z = state.random += 0x9E3779B97F4A7C15ull;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ z >> 27) * 0x94D049BB133111EBull;
  return z ^ z >> 31;
}

SIMT_UNSEEN inline void seed_schedule(uint64_t seed) { state.random = seed * 0xD1B54A32D192ED03ull; }

}  // namespace simt

#define threadIdx (::simt::state.current->index)
#define blockIdx (::simt::state.block_index)
#define blockDim (::simt::state.block)
#define gridDim (::simt::state.grid)
constexpr int warpSize = 32;
