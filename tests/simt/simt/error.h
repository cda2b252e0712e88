// Errors of a kernel, or of its launch: said with the file and line of the call that went wrong.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <stdexcept>

#include "fiber.h"

namespace simt {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

SIMT_UNSEEN inline void write_error(const char* what, const Place& place) {
  char block[64] = "", thread[64] = "";
  if (state.num_threads) {
    const uint3& b = state.block_index;
    std::snprintf(block, sizeof block, ", block (%u,%u,%u)", b.x, b.y, b.z);
  }
  if (const Thread* t = state.current) {
    std::snprintf(thread, sizeof thread, " thread (%u,%u,%u)", t->index.x, t->index.y, t->index.z);
  }
  std::snprintf(state.error, sizeof state.error, "SIMT error: %s at %s:%u (kernel %s%s%s)", what, place.file,
                place.line, state.kernel ? state.kernel : "none", block, thread);
  state.failed = true;
  release(state.error);
}

// In the scheduler or in host code.
[[noreturn]] SIMT_UNSEEN inline void throw_error() {
  acquire(state.error);
  throw Error(state.error);
}

// From anywhere. In a kernel: leaves the fiber for good; the scheduler then throws simt::Error out of the launch.
[[noreturn]] __attribute__((format(printf, 2, 3))) SIMT_UNSEEN inline void fail(const Place& place, const char* format,
                                                                                ...) {
  char what[1600];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  write_error(what, place);
  if (!state.current) throw_error();
  yield_thread(true);
  __builtin_unreachable();
}

}  // namespace simt
