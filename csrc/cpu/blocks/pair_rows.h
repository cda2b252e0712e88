// What pair_stats and its gradient share: which distances are formed directly, norms of rows, powers.
#pragma once

#include "../kernels.h"
#include "load.h"
#include "scratch.h"

namespace ncops::NCOPS_ISA {

// Below this share of |u|^2 + |v|^2 a squared distance has lost digits in |u|^2 + |v|^2 - 2 u.v and is formed directly.
constexpr double kClose = 0.01;

// 2 asin(sqrt(e) / 2) / sqrt(e) of the chord e in [0, 2] as a polynomial in e - 1, by interpolation at Chebyshev nodes: the
// angle between unit rows over the length of their difference, to 4e-10 and 5e-19.
template <class T>
struct AngleOverChord;
template <>
struct AngleOverChord<float> {
  static constexpr float terms[] = {
      1.04719755151029794, 0.0537514941037954206, 0.00779888670509045628, 0.00151965839828624658, 0.000340986213401259919,
      0.0000830790789628994031, 0.0000210106857068670036, 5.57731083064131489e-6, 1.93182714061091946e-6, 5.58328936449417877e-7};
};
template <>
struct AngleOverChord<double> {
  static constexpr double terms[] = {
      1.04719755119659775, 0.0537514935913268831, 0.00779890223897362983, 0.00151966853960070431, 0.000340863723422356588,
      0.0000830231778741789102, 0.0000213455525023407982, 5.70178362063615142e-6, 1.56696342252377888e-6, 4.40196531028930638e-7,
      1.25842626704542896e-7, 3.64941768612148443e-8, 1.07088463647073778e-8, 3.1690560120946854e-9, 9.46796605847488798e-10,
      2.91273204815047482e-10, 8.86808218416318716e-11, 2.213168513203876e-11, 6.58956868182935644e-12, 4.20458578523451423e-12,
      1.33711797207490416e-12};
};

// The angle of unit rows from the squared length of their difference, at most 2, or of their sum where that is shorter.
template <class T>
inline Vec<T> angle_of(Vec<T> chord, IntVec<T> opposite) {
  constexpr auto& terms = AngleOverChord<T>::terms;
  constexpr int last = int(sizeof terms / sizeof *terms) - 1;
  Vec<T> ratio = splat<T>(terms[last]);
  for (int i = last - 1; i >= 0; --i) ratio = fma(ratio, chord - 1, splat<T>(terms[i]));
  const Vec<T> angle = sqrt_of<T>(chord) * ratio;
  return opposite ? T(3.14159265358979323846) - angle : angle;
}

// |a x_i - b y_j|^2 and |a x_i + b y_j|^2 of unit rows, in double. The ratio of the norms is the only thing that is rounded, and its
// error lies along the rows: angles keep their digits down to 1e-8 in what float32 rows hold.
struct UnitPair {
  double apart, together;
  double chord() const { return std::min(apart, together); }
  bool opposite() const { return together < apart; }
};
inline UnitPair unit_pair(const Rows& x, int64_t i, int64_t j) {
  UnitPair pair{0, 0};
  double u[kLoadBlock], v[kLoadBlock];
  const double a = x.scale[x.stored(i)], ratio = x.scale[x.stored(j)] / a;
  for_columns(x.dim, [&](int64_t k, int64_t n) {
    load_raw<double>(x, x.stored(i), k, n, u);
    load_raw<double>(x, x.stored(j), k, n, v);
    for (int64_t e = 0; e < n; ++e) {
      const double minus = std::fma(-ratio, v[e], u[e]), plus = std::fma(ratio, v[e], u[e]);
      pair.apart += minus * minus;
      pair.together += plus * plus;
    }
  });
  return {pair.apart * a * a, pair.together * a * a};
}

constexpr int64_t kKeptBytes = int64_t(64) << 20;  // of rows in T that are kept beside those that came

// The rows in T, less their offset and scaled: formed once, if they are not in place and have room. Each block of two products reads
// all of them twice, which took a fifth of the time of 4096 x 512.
template <class T>
struct RowsOnce {
  Scratch kept;
  Rows rows;

  explicit RowsOnce(const Rows& x) : kept(keeps(x) ? x.rows * x.dim * sizeof(T) : 0), rows(x) {
    if (!keeps(x)) return;
    for_blocks(x.rows, 64, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r)
        for_columns(x.dim, [&](int64_t k, int64_t n) { load_row<T>(x, r, k, n, kept.at<T>() + r * x.dim + k); });
    });
    rows = Rows();
    rows.data = kept.at<T>(), rows.dtype = sizeof(T) == 8 ? DType::f64 : DType::f32;
    rows.rows = x.rows, rows.dim = rows.row_stride = x.dim;
  }
  static bool keeps(const Rows& x) { return (x.offset || x.scale) && x.rows * x.dim * int64_t(sizeof(T)) <= kKeptBytes; }
};

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
