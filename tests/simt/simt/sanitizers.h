// The few sanitizer calls the harness makes, empty where the build has no sanitizer.
//
// ThreadSanitizer learns what orders two CUDA threads from simt::acquire and simt::release alone: every CUDA thread is
// a TSan fiber, and fibers are switched with the flag "no synchronisation". The harness's own functions carry
// SIMT_UNSEEN, because their bookkeeping is shared by all fibers and would be reported as races; under the other
// sanitizers the same functions are left out to be faster.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
extern __attribute__((weak, visibility("default"))) int simt_tsan_reports;  // tsan_hook.cpp
}
#define SIMT_UNSEEN __attribute__((no_sanitize_thread))
#elif defined(__SANITIZE_ADDRESS__)
#define SIMT_UNSEEN __attribute__((no_sanitize("address,undefined")))
#else
#define SIMT_UNSEEN
#endif

namespace simt {

inline constexpr bool tsan =
#if defined(__SANITIZE_THREAD__)
    true;
#else
    false;
#endif

SIMT_UNSEEN inline void acquire([[maybe_unused]] void* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(address);
#endif
}

SIMT_UNSEEN inline void release([[maybe_unused]] void* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(address);
#endif
}

// Reports so far; 0 in other builds.
SIMT_UNSEEN inline int race_reports() {
#if defined(__SANITIZE_THREAD__)
  if (&simt_tsan_reports) return simt_tsan_reports;
#endif
  return 0;
}

inline void poison([[maybe_unused]] void* from, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(from, bytes);
#endif
}

inline void unpoison([[maybe_unused]] void* from, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(from, bytes);
#endif
}

}  // namespace simt
