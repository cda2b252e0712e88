// Gradients on their way out: rows of the compute dtype T, rounded to the dtype of the rows they belong to.
#pragma once

#include "pack.h"
#include "scratch.h"

namespace ncops::NCOPS_ISA {

NCOPS_INLINE uint16_t float_to_bf16(float value) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

NCOPS_INLINE uint16_t float_to_f16(float value) {  // to the nearest, ties to even
#if NCOPS_ISA_ID != 3
  return uint16_t(_cvtss_sh(value, 0));
#else
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits >= 0x477ff000) return uint16_t(sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00));
  if (bits < 0x38800000) {  // subnormal: the last place of 0.5 is that of the result
    float wide;
    std::memcpy(&wide, &bits, 4);
    wide += 0.5f;
    std::memcpy(&bits, &wide, 4);
    return uint16_t(sign | (bits - 0x3f000000));
  }
  return uint16_t(sign | ((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13));
#endif
}

// n values to element `at` of a row-major array of `dtype`, which is T's own or half of it.
template <class T>
inline void store_row(const T* in, int64_t n, DType dtype, void* out, int64_t at) {
  if (dtype == DType::f32 || dtype == DType::f64) {
    std::memcpy(static_cast<T*>(out) + at, in, n * sizeof(T));
    return;
  }
  uint16_t* p = static_cast<uint16_t*>(out) + at;
  int64_t i = 0;
  if (dtype == DType::bf16) {
    for (; i < n; ++i) p[i] = float_to_bf16(float(in[i]));
    return;
  }
#if NCOPS_ISA_ID == 1
  if constexpr (sizeof(T) == 4)
    for (; i + 16 <= n; i += 16) _mm256_storeu_si256((__m256i*)(p + i), _mm512_cvtps_ph(_mm512_loadu_ps(in + i), 0));
#elif NCOPS_ISA_ID == 2
  if constexpr (sizeof(T) == 4)
    for (; i + 8 <= n; i += 8) _mm_storeu_si128((__m128i*)(p + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), 0));
#endif
  for (; i < n; ++i) p[i] = float_to_f16(float(in[i]));
}

// tile[columns][L], whose lanes are rows row, row + 1, ... of x, into columns first, first + 1, ... of their gradient `out`, a
// row-major matrix as wide as x and of its dtype, by stored row.
template <class T, int L>
inline void store_lanes(const T* tile, int64_t columns, const Rows& x, int64_t row, int64_t count, int64_t first, void* out) {
  constexpr int W = kWidth<T>;
  for (int lane = 0; lane < L && lane < count; lane += W)
    for (int64_t k = 0; k < columns; k += kLoadBlock) {
      const int64_t n = std::min(kLoadBlock, columns - k);
      alignas(64) T rows[W][kLoadBlock];
      int64_t i = 0;
      for (; i + W <= n; i += W) {
        Vec<T> v[W];
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) v[r] = load(tile + (k + i + r) * L + lane);
        transpose<T>(v);
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) store(rows[r] + i, v[r]);
      }
      for (; i < n; ++i)
        for (int r = 0; r < W; ++r) rows[r][i] = tile[(k + i) * L + lane + r];
      for (int r = 0; r < W && lane + r < count; ++r) {
        const int64_t stored = x.index ? x.index[row + lane + r] : row + lane + r;
        store_row<T>(rows[r], n, x.dtype, out, stored * x.dim + first + k);
      }
    }
}

// Zeros in the rows of such a gradient (`total` rows) that x does not gather; its index ascends.
template <class T>
inline void clear_other_rows(const Rows& x, int64_t total, void* out) {
  if (x.rows == total) return;
  constexpr int64_t block = 512;
  const int64_t bytes = x.dim * (x.dtype == DType::f32 || x.dtype == DType::f64 ? int64_t(sizeof(T)) : 2);
  const int64_t tasks = x.rows / block + 1;
  for_tasks(tasks, [&](int64_t task, int) {
    const int64_t last = task + 1 == tasks ? x.rows + 1 : (task + 1) * block;
    for (int64_t r = task * block; r < last; ++r) {
      const int64_t from = r > 0 ? x.index[r - 1] + 1 : 0, to = r < x.rows ? x.index[r] : total;
      if (to > from) std::memset(static_cast<char*>(out) + from * bytes, 0, (to - from) * bytes);
    }
  });
}

}  // namespace ncops::NCOPS_ISA
