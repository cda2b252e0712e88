// Planted defects: `if (!NCOPS_DEFECT(name)) __syncthreads();` in a kernel is a barrier that a test can take away.
#pragma once

#include <cstdint>

namespace simt {

constexpr uint64_t defect_id(const char* name) {
  uint64_t hash = 14695981039346656037ull;  // FNV-1a
  for (; *name; ++name) hash = (hash ^ uint64_t(static_cast<unsigned char>(*name))) * 1099511628211ull;
  return hash;
}

inline constinit uint64_t planted_defect = 0;  // of one name, or 0: none

}  // namespace simt
