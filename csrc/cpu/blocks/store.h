// Gradients on their way out: rows of the compute dtype T, rounded to the dtype of the rows they belong to.
#pragma once

#include "pack.h"
#include "scratch.h"

namespace ncops::NCOPS_ISA {

// n values to element `at` of a row-major array of `dtype`, which is T's own or half of it.
template <class T>
inline void store_row(const T* in, int64_t n, DType dtype, void* out, int64_t at) {
  with_stored(dtype, [&](auto stored) __attribute__((always_inline)) {
    store_elements(in, n, static_cast<decltype(stored)*>(out) + at);
  });
}

// tile[columns][L], whose lanes are rows row, row + 1, ... of x, into columns first, first + 1, ... of their gradient `out`, a
// row-major matrix as wide as x and of its dtype, by stored row.
template <class T, int L>
inline void store_lanes(const T* tile, int64_t columns, const Rows& x, int64_t row, int64_t count, int64_t first, void* out) {
  constexpr int W = kWidth<T>;
  for (int lane = 0; lane < L && lane < count; lane += W)
    for_columns(columns, [&](int64_t k, int64_t n) {
      alignas(64) T rows[W][kLoadBlock];
      int64_t i = 0;
      for (; i + W <= n; i += W)
        transpose<T>([&](int r) { return tile + (k + i + r) * L + lane; }, [&](int r) { return rows[r] + i; });
      for (; i < n; ++i)
        for (int r = 0; r < W; ++r) rows[r][i] = tile[(k + i) * L + lane + r];
      for (int r = 0; r < W && lane + r < count; ++r)
        store_row<T>(rows[r], n, x.dtype, out, x.stored(row + lane + r) * x.dim + first + k);
    });
}

// Zeros in the rows of such a gradient (`total` rows) that x does not gather; its index ascends.
template <class T>
inline void clear_other_rows(const Rows& x, int64_t total, void* out) {
  if (x.rows == total) return;
  constexpr int64_t block = 512;
  const int64_t bytes = x.dim * element_bytes(x.dtype);
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
