// Products of very few rows of x with all of w: reading w is all there is to do, so it is read once as it lies, lanes along
// D, without packing. Every pair's product is formed alike, so a target's logit equals its entry among the tiles.
#pragma once

#include "pack.h"

namespace ncops::NCOPS_ISA {

constexpr int64_t kFewRows = 8;

// out[r] = x[r] . w for R rows of x, each padded with zeros to `padded`, a multiple of the vector width. Chains of 256 vectors.
template <class T, int R, class Stored>
NCOPS_INLINE void multiply_row(const T* x, int64_t padded, const Stored* w, int64_t dim, T* out) {
  constexpr int W = kWidth<T>;
  constexpr int64_t chain = 256 * W;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) out[r] = 0;
  for (int64_t start = 0; start < dim; start += chain) {
    const int64_t end = std::min(dim, start + chain);
    Vec<T> acc[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r] = Vec<T>{};
    const auto add = [&](int64_t k, const Stored* from) __attribute__((always_inline)) {
      const Vec<T> wv = load_stored(from);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r] = fma(load(x + r * padded + k), wv, acc[r]);
    };
    int64_t k = start;
    for (; k + W <= end; k += W) add(k, w + k);
    if (k < end) {
      Stored rest[W] = {};
      std::memcpy(rest, w + k, (end - k) * sizeof(Stored));
      add(k, rest);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) out[r] += reduce_add<T>(acc[r]);
  }
}

// The rows of x in T, padded, for multiply_row.
template <class T>
struct FewRows {
  int64_t padded;
  Scratch data;

  explicit FewRows(const Rows& x)
      : padded(round_up(x.dim, kWidth<T>)), data(size_t(kFewRows) * round_up(x.dim, kWidth<T>) * sizeof(T)) {
    std::memset(data.at<T>(), 0, size_t(kFewRows) * padded * sizeof(T));
    for (int64_t r = 0; r < x.rows; ++r)
      for_columns(x.dim, [&](int64_t k, int64_t n) { load_row<T>(x, r, k, n, data.at<T>() + r * padded + k); });
  }
};

}  // namespace ncops::NCOPS_ISA
