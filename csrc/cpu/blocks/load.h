// Rows of any dtype in the compute dtype T, less what they subtract; and two sums over such rows.
#pragma once

#include "../isa/convert.h"

namespace ncops::NCOPS_ISA {

// Calls f(T()) with the compute dtype of rows of `dtype`.
template <class F>
NCOPS_INLINE void with_compute(DType dtype, F f) {
  if (dtype == DType::f64) f(double());
  else f(float());
}

// n elements of a row from column k, converted; nothing subtracted yet.
template <class T>
inline void load_raw(const Rows& src, int64_t stored_row, int64_t k, int64_t n, T* out) {
  const int64_t first = stored_row * src.row_stride + k * src.col_stride;
  with_stored(src.dtype, [&](auto stored) __attribute__((always_inline)) {
    load_elements(static_cast<const decltype(stored)*>(src.data) + first, src.col_stride, n, out);
  });
}

constexpr int64_t kLoadBlock = 64;

// Calls f(k, n) for columns [k, k + n), a block at a time.
template <class F>
NCOPS_INLINE void for_columns(int64_t dim, F f) {
  for (int64_t k = 0; k < dim; k += kLoadBlock) f(k, std::min(kLoadBlock, dim - k));
}

// What is subtracted from a stored row in T, or null.
template <class T>
NCOPS_INLINE const T* center_of(const Rows& src, int64_t stored) {
  return src.center ? static_cast<const T*>(src.center) + (src.labels ? src.labels[stored] * src.dim : 0) : nullptr;
}

// Where row r lies side by side in T, if that less its centre is all there is to it; else null.
template <class T>
NCOPS_INLINE const T* in_place(const Rows& src, int64_t r) {
  if (src.dtype != (sizeof(T) == 8 ? DType::f64 : DType::f32) || src.col_stride != 1 || src.offset || src.scale) return nullptr;
  return static_cast<const T*>(src.data) + src.stored(r) * src.row_stride;
}

// n elements of row r from column k, in T, scaled and minus whatever `src` subtracts. n <= kLoadBlock.
template <class T>
inline void load_row(const Rows& src, int64_t r, int64_t k, int64_t n, T* out) {
  constexpr int W = kWidth<T>;
  const int64_t stored = src.stored(r);
  const T* center = center_of<T>(src, stored);
  const T* c = center ? center + k : nullptr;
  if (src.offset || src.scale) {
    const double factor = src.scale ? src.scale[stored] : 1;
    int64_t i = 0;
    if (src.col_stride == 1)
      with_stored(src.dtype, [&](auto element) __attribute__((always_inline)) {
        const auto* from = static_cast<const decltype(element)*>(src.data) + stored * src.row_stride + k;
        for (; i + kWidth<float> <= n; i += kWidth<float>) {
          Vec<double> v[2], less[2] = {};
          load_wide(from + i, v);
          if (c) load_wide(c + i, less);
          for (int h = 0; h < 2; ++h) {
            v[h] *= factor;
            if (src.offset) v[h] -= load(src.offset + k + i + h * kWidth<double>);
            v[h] -= less[h];  // a scaled row keeps its digits beyond those of T
          }
          store_narrow(out + i, v);
        }
      });
    double wide[kLoadBlock];
    load_raw<double>(src, stored, k + i, n - i, wide);
    for (int64_t j = 0; i < n; ++i, ++j) {
      wide[j] *= factor;
      if (src.offset) wide[j] -= src.offset[k + i];
      if (c) wide[j] -= double(c[i]);
      out[i] = T(wide[j]);
    }
    return;
  }
  const T* from = c ? in_place<T>(src, r) : nullptr;
  int64_t i = 0;
  for (; from && i + W <= n; i += W) store(out + i, load(from + k + i) - load(c + i));
  if (i == n) return;
  load_raw<T>(src, stored, k + i, n - i, out + i);
  for (; c && i < n; ++i) out[i] -= c[i];
}

// The sum of squares of what fill(k, n, out) gives for columns [k, k + n), by lane: in one sum each term waited for the one before.
template <class Fill>
NCOPS_INLINE double sum_of_squares(int64_t dim, Fill fill) {
  constexpr int W = kWidth<double>;
  Vec<double> sums[2] = {};
  for_columns(dim, [&](int64_t k, int64_t n) {
    alignas(64) double block[kLoadBlock];
    std::fill(block + n / (2 * W) * (2 * W), block + kLoadBlock, 0.0);
    fill(k, n, block);
    for (int64_t i = 0; i < n; i += 2 * W)
#pragma GCC unroll 2
      for (int u = 0; u < 2; ++u) sums[u] = fma(load(block + i + u * W), load(block + i + u * W), sums[u]);
  });
  return reduce_add<double>(sums[0] + sums[1]);
}

// |row r|^2, from elements in T.
template <class T>
inline double squared_norm(const Rows& src, int64_t r) {
  return sum_of_squares(src.dim, [&](int64_t k, int64_t n, double* out) {
    T block[kLoadBlock];
    load_row<T>(src, r, k, n, block);
    load_elements(block, 1, n, out);
  });
}

// The same of rows that lie side by side: as many at once as a vector of float has lanes.
template <class X, class Y>
inline double square_distance(const X* x, const Y* y, int64_t dim) {
  constexpr int W = kWidth<float>;
  Vec<double> sums[2] = {};
  const auto add = [&](const X* a, const Y* b) __attribute__((always_inline)) {
    Vec<double> u[2], v[2];
    load_wide(a, u), load_wide(b, v);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) sums[h] = fma(u[h] - v[h], u[h] - v[h], sums[h]);
  };
  int64_t k = 0;
  for (; k + W <= dim; k += W) add(x + k, y + k);
  if (k < dim) {
    X a[W] = {};
    Y b[W] = {};
    std::memcpy(a, x + k, (dim - k) * sizeof(X));
    std::memcpy(b, y + k, (dim - k) * sizeof(Y));
    add(a, b);
  }
  return reduce_add<double>(sums[0] + sums[1]);
}

// |x_i - y_j|^2 from differences, in double, of the rows as they came.
inline double square_distance(const Rows& x, int64_t i, const Rows& y, int64_t j) {
  double total = 0;
  if (x.col_stride == 1 && y.col_stride == 1) {
    with_stored(x.dtype, [&](auto a) {
      with_stored(y.dtype, [&](auto b) {
        total = square_distance(reinterpret_cast<const decltype(a)*>(x.at(i)), reinterpret_cast<const decltype(b)*>(y.at(j)), x.dim);
      });
    });
    return total;
  }
  return sum_of_squares(x.dim, [&](int64_t k, int64_t n, double* out) {
    double other[kLoadBlock];
    load_raw<double>(x, x.stored(i), k, n, out);
    load_raw<double>(y, y.stored(j), k, n, other);
    for (int64_t e = 0; e < n; ++e) out[e] -= other[e];
  });
}

}  // namespace ncops::NCOPS_ISA
