// What pair_stats and its gradient share: which distances are formed directly, norms of rows, powers.
#pragma once

#include "../kernels.h"
#include "load.h"
#include "scratch.h"

namespace ncops::NCOPS_ISA {

// Below this share of |u|^2 + |v|^2 a squared distance has lost digits in |u|^2 + |v|^2 - 2 u.v and is formed directly.
constexpr double kClose = 0.01;

// Squared norms of all rows, and their reciprocal norms (NaN for a zero row) unless null.
template <class T>
inline void squared_norms(const Rows& rows, T* norms, T* scales) {
  for_blocks(rows.rows, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const double total = squared_norm<T>(rows, r);
      norms[r] = T(total);
      if (scales) scales[r] = total > 0 ? T(1 / std::sqrt(total)) : std::numeric_limits<T>::quiet_NaN();
    }
  });
}

// Far pairs have subnormal values, whose order still decides row_argmax.
template <class T>
inline Vec<T> exp_of(Vec<T> x) {
  Vec<T> r = exp_nonpositive<T>(x);
  for (int i = 0; i < kWidth<T>; ++i)
    if (!(x[i] >= ExpConstants<T>::lowest && x[i] <= 0)) r[i] = std::exp(x[i]);
  return r;
}

template <class T>
inline Vec<T> power_of(Vec<T> d2, T exponent) {
  if (exponent == T(-1)) return T(1) / d2;
  if (exponent == T(-0.5)) return T(1) / sqrt_of<T>(d2);
  Vec<T> r;
  for (int i = 0; i < kWidth<T>; ++i) r[i] = std::pow(d2[i], exponent);
  return r;
}

}  // namespace ncops::NCOPS_ISA
