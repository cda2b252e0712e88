// Rows grouped by label: keys before the sort, where each class begins after it. The sort itself is the caller's.
#pragma once

#include "launch_error.h"
#include "load.cuh"

namespace ncops::cuda {

constexpr int kLabelThreads = 256;
constexpr int64_t kLabelBlocks = 1024;  // at most: each leaves one count of invalid labels, added up by one block

struct SortedLabels {
  const uint32_t* keys;    // (N) class of each row ascending; num_classes for rows that do not count, which come last
  const uint32_t* order;   // (N) stored row, ascending within a class
  const uint32_t* starts;  // (C + 1) where each class begins; starts[C] rows count
};

inline int64_t label_blocks(int64_t rows) {
  return std::max<int64_t>(1, std::min(kLabelBlocks, (rows + 8 * kLabelThreads - 1) / (8 * kLabelThreads)));
}

// Bits of a key that are worth sorting.
inline int key_bits(int64_t num_classes) {
  int bits = 0;
  while (num_classes >> bits) ++bits;
  return bits;
}

static __global__ void __launch_bounds__(kLabelThreads)
    class_keys_kernel(const int64_t* labels, int64_t rows, int64_t num_classes, int64_t ignore_index, uint32_t* keys,
                      uint32_t* order, uint32_t* invalid_parts) {
  uint32_t invalid = 0;
  const int64_t step = int64_t(gridDim.x) * kLabelThreads;
  for (int64_t i = int64_t(blockIdx.x) * kLabelThreads + threadIdx.x; i < rows; i += step) {
    const int64_t label = labels[i];
    const bool ignored = label == ignore_index, inside = label >= 0 && label < num_classes;
    keys[i] = uint32_t(inside && !ignored ? label : num_classes);
    order[i] = uint32_t(i);
    invalid += !inside && !ignored;
  }
  NCOPS_SHARED(uint32_t, parts, [kLabelThreads / 32]);
  invalid = warp_sum(invalid);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = invalid;
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t total = 0;
    for (int w = 0; w < kLabelThreads / 32; ++w) total += parts[w];
    invalid_parts[blockIdx.x] = total;
  }
}

// Binary search per class: the same time whatever the labels, where filling the gaps between sorted neighbours would
// let one thread write them all when a single class of many occurs. Block 0 also adds up the invalid labels.
static __global__ void __launch_bounds__(kLabelThreads)
    class_starts_kernel(const uint32_t* keys, int64_t rows, int64_t num_classes, uint32_t* starts,
                        const uint32_t* invalid_parts, int invalid_count, int64_t* invalid, int64_t* invalid_total) {
  const int64_t c = int64_t(blockIdx.x) * kLabelThreads + threadIdx.x;
  if (c <= num_classes) {
    int64_t low = 0, high = rows;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (int64_t(keys[middle]) < c) low = middle + 1;
      else high = middle;
    }
    starts[c] = uint32_t(low);
  }
  if (blockIdx.x == 0 && threadIdx.x < 32) {
    int64_t total = 0;  // lanes hold at most 2^32 labels together, but not in 32 bits
    for (int b = int(threadIdx.x); b < invalid_count; b += 32) total += invalid_parts[b];
    total = warp_sum(total);
    if (threadIdx.x == 0) {
      *invalid = total;
      if (invalid_total != nullptr) *invalid_total += total;
    }
  }
}

inline void launch_class_keys(const int64_t* labels, int64_t rows, int64_t num_classes, int64_t ignore_index,
                              uint32_t* keys, uint32_t* order, uint32_t* invalid_parts, cudaStream_t stream) {
  NCOPS_START("class_moments", class_keys_kernel, dim3(unsigned(label_blocks(rows))), dim3(kLabelThreads), 0, stream,
              labels, rows, num_classes, ignore_index, keys, order, invalid_parts);
}

// invalid: invalid labels of this call; invalid_total (or null) grows by them.
inline void launch_class_starts(const uint32_t* keys, int64_t rows, int64_t num_classes, uint32_t* starts,
                                const uint32_t* invalid_parts, int64_t* invalid, int64_t* invalid_total,
                                cudaStream_t stream) {
  NCOPS_START("class_moments", class_starts_kernel, dim3(unsigned(num_classes / kLabelThreads + 1)), dim3(kLabelThreads),
              0, stream, keys, rows, num_classes, starts, invalid_parts, int(label_blocks(rows)), invalid, invalid_total);
}

}  // namespace ncops::cuda
