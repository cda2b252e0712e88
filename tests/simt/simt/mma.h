// ldmatrix and mma.sync.m16n8k16 as warp collectives, from the fragment layouts in the PTX manual (csrc/cuda/ptx.cuh
// repeats them). Products are exact and are added up one after another in float32; tensor cores add in another order.
#pragma once

#include "half.h"
#include "shared.h"
#include "warp.h"

namespace simt {

struct MatrixRow {
  uint16_t element[8];
};

// Seen by the sanitizers: each lane reads the row that it names.
__attribute__((noinline)) inline MatrixRow read_row(const void* row) {
  MatrixRow r;
  for (int i = 0; i < 8; ++i) r.element[i] = static_cast<const uint16_t*>(row)[i];
  return r;
}

template <size_t Matrices>
inline void ldmatrix(uint32_t (&r)[Matrices], const void* row, bool transposed, const Place& place) {
  static_assert(Matrices == 1 || Matrices == 2 || Matrices == 4);
  const unsigned lane = lane_id(), i = lane / 4, j = lane % 4 * 2;
  MatrixRow mine = {};
  if (lane < 8 * Matrices) {  // the addresses of the other lanes are not used
    if (!in_shared_memory(row)) fail(place, "ldmatrix from an address that is not in shared memory");
    if (reinterpret_cast<uintptr_t>(row) % 16) fail(place, "ldmatrix from a row not aligned to 16 bytes");
    mine = read_row(row);
  }
  const Lanes lanes = exchange(0xffffffffu, mine, place);
  for (unsigned m = 0; m < Matrices; ++m) {
    const auto element = [&](unsigned row_index, unsigned column) {
      return uint32_t(lanes.get<MatrixRow>(8 * m + row_index).element[column]);
    };
    r[m] = transposed ? element(j, i) | element(j + 1, i) << 16 : element(i, j) | element(i, j + 1) << 16;
  }
}

struct MmaOperands {
  uint32_t a[4], b[2];
};

template <class T>
inline float unpack(uint32_t pair, unsigned which) {
  return float(std::bit_cast<T>(uint16_t(which ? pair >> 16 : pair)));
}

template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Place& place) {
  const Lanes lanes = exchange(0xffffffffu, MmaOperands{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, place);
  const unsigned group = lane_id() / 4, quad = lane_id() % 4;
  for (unsigned lower = 0; lower < 2; ++lower) {      // row group + 8 * lower
    for (unsigned odd = 0; odd < 2; ++odd) {          // column 2 * quad + odd
      float sum = d[2 * lower + odd];
      for (unsigned k = 0; k < 16; ++k) {
        const unsigned holder = k % 8 / 2, right = k / 8;
        const auto left = lanes.get<MmaOperands>(4 * group + holder), up = lanes.get<MmaOperands>(4 * (2 * quad + odd) + holder);
        sum = ::fmaf(unpack<T>(left.a[lower + 2 * right], k & 1), unpack<T>(up.b[right], k & 1), sum);
      }
      d[2 * lower + odd] = sum;
    }
  }
}

}  // namespace simt
