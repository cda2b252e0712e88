// cp.async: the hardware copies at some time between the start and the wait, so the model makes both ends count.
// At the start the destination is overwritten with NaN bytes (as early as allowed: a thread still reading the old tile
// gets NaN, and ThreadSanitizer sees the write); at the wait the source is read and the copy made (as late as allowed).
#pragma once

#include "shared.h"

namespace simt {

// Seen by the sanitizers: these are the kernel's accesses.
__attribute__((noinline)) inline void fill_pending(void* to, unsigned bytes) {
  for (unsigned i = 0; i < bytes / 4; ++i) static_cast<uint32_t*>(to)[i] = 0xFFFFFFFFu;
}
__attribute__((noinline)) inline void make_copy(void* to, const void* from, unsigned bytes, bool valid) {
  for (unsigned i = 0; i < bytes / 4; ++i) {
    static_cast<uint32_t*>(to)[i] = valid ? static_cast<const uint32_t*>(from)[i] : 0u;
  }
}

SIMT_UNSEEN inline void cp_async(void* to, const void* from, unsigned bytes, bool valid, const Place& place) {
  Thread& me = *state.current;
  me.place = place;
  if (!in_shared_memory(to)) fail(place, "cp.async to an address that is not in shared memory");
  if (reinterpret_cast<uintptr_t>(to) % bytes) {
    fail(place, "cp.async to a shared address not aligned to %u bytes", bytes);
  }
  if (valid && reinterpret_cast<uintptr_t>(from) % bytes) {
    fail(place, "cp.async from a global address not aligned to %u bytes", bytes);
  }
  if (me.num_copies == sizeof me.copies / sizeof me.copies[0]) {
    fail(place, "over %u cp.async under way in one thread", me.num_copies);
  }
  fill_pending(to, bytes);
  me.copies[me.num_copies++] = {to, from, bytes, me.open_group, valid, place};
}

SIMT_UNSEEN inline void cp_async_commit() { ++state.current->open_group; }

SIMT_UNSEEN inline void cp_async_wait(unsigned newest) {
  Thread& me = *state.current;
  const unsigned closed = me.open_group > newest ? me.open_group - newest : 0;
  unsigned left = 0;
  for (unsigned i = 0; i < me.num_copies; ++i) {
    const PendingCopy& copy = me.copies[i];
    if (copy.group < closed) {
      make_copy(copy.to, copy.from, copy.bytes, copy.valid);
    } else {
      me.copies[left++] = copy;
    }
  }
  me.num_copies = left;
}

// A kernel that ends with copies under way has waited for too few.
SIMT_UNSEEN inline void check_async_copies() {
  if (state.current->num_copies) fail(state.current->copies[0].place, "cp.async still under way when the thread exits");
}

}  // namespace simt
