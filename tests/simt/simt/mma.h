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
SIMT_UNSEEN inline void ldmatrix(uint32_t (&r)[Matrices], const void* row, bool transposed, const Place& place) {
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
    const MatrixRow first = lanes.get<MatrixRow>(8 * m + (transposed ? j : i));
    const MatrixRow second = lanes.get<MatrixRow>(8 * m + (transposed ? j + 1 : i));
    r[m] = first.element[transposed ? i : j] | uint32_t(second.element[transposed ? i : j + 1]) << 16;
  }
}

struct MmaOperands {
  uint32_t a[4], b[2];
};

// The 16 values of a row of A or a column of B, from the registers of the four lanes that hold it: lane q has the
// elements 2q, 2q + 1 in `low` and 2q + 8, 2q + 9 in `high`.
template <class T>
SIMT_UNSEEN inline void gather(float (&line)[16], const uint32_t (&low)[4], const uint32_t (&high)[4]) {
  for (unsigned q = 0; q < 4; ++q) {
    for (unsigned odd = 0; odd < 2; ++odd) {
      line[2 * q + odd] = float(std::bit_cast<T>(uint16_t(low[q] >> 16 * odd)));
      line[2 * q + odd + 8] = float(std::bit_cast<T>(uint16_t(high[q] >> 16 * odd)));
    }
  }
}

template <class T>
SIMT_UNSEEN inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                     const Place& place) {
  const Lanes lanes = exchange(0xffffffffu, MmaOperands{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, place);
  const unsigned group = lane_id() / 4, quad = lane_id() % 4;
  float rows[2][16], columns[2][16];  // rows group and group + 8 of A, columns 2 quad and 2 quad + 1 of B
  uint32_t low[2][4], high[2][4];
  for (unsigned q = 0; q < 4; ++q) {
    const MmaOperands holder = lanes.get<MmaOperands>(4 * group + q);
    for (unsigned lower = 0; lower < 2; ++lower) low[lower][q] = holder.a[lower], high[lower][q] = holder.a[lower + 2];
  }
  for (unsigned lower = 0; lower < 2; ++lower) gather<T>(rows[lower], low[lower], high[lower]);
  for (unsigned odd = 0; odd < 2; ++odd) {
    for (unsigned q = 0; q < 4; ++q) {
      const MmaOperands holder = lanes.get<MmaOperands>(4 * (2 * quad + odd) + q);
      low[odd][q] = holder.b[0], high[odd][q] = holder.b[1];
    }
    gather<T>(columns[odd], low[odd], high[odd]);
  }
  for (unsigned i = 0; i < 4; ++i) {
    for (unsigned k = 0; k < 16; ++k) d[i] = ::fmaf(rows[i / 2][k], columns[i % 2][k], d[i]);
  }
}

}  // namespace simt
