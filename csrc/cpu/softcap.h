// The cap on logits, z = c tanh(z' / c), and its slope dz / dz'; see LogitOptions.
//
// Both come from e = e^{-2 |z'| / c}, which never overflows: tanh = (1 - e) / (1 + e) with 1 - e as expm1, so that small logits
// keep their digits, and 1 - tanh^2 = 4 e / (1 + e)^2, which keeps its own where tanh has come to 1.
#pragma once

#include "isa/vec.h"

namespace ncops::NCOPS_ISA {

template <class T>
class Softcap {
 public:
  // 0: none.
  explicit Softcap(double c) : cap_(T(c)), twice_(c == 0 ? T(0) : T(2 / c)) {}
  explicit operator bool() const { return cap_ != 0; }

  // Infinities stay: -inf masks a class, +inf spoils a row, as NaN does.
  NCOPS_INLINE Vec<T> operator()(Vec<T> z) const {
    const Exp e = exponential(z);
    const Vec<T> lost = fma(-e.power, e.rest, 1 - e.power);  // 1 - e
    const Vec<T> size = cap_ * lost / (2 - lost);
    return z - z == 0 ? (z < 0 ? -size : size) : z;
  }
  // Of one logit; as it is where there is no cap.
  NCOPS_INLINE T operator()(T z) const { return *this ? (*this)(splat<T>(z))[0] : z; }

  // 0 for masked classes.
  NCOPS_INLINE Vec<T> slope(Vec<T> z) const {
    const Exp exp = exponential(z);
    const Vec<T> e = fma(exp.power, exp.rest, exp.power), sum = 1 + e;
    return exp.tiny ? Vec<T>{} : 4 * e / (sum * sum);
  }

  // n logits in place; what fills up the last vector is overwritten. Apart, so that code without a cap is compiled as ever.
  __attribute__((noinline)) void apply(T* z, int64_t n) const {
    for (int64_t i = n; i % kWidth<T>; ++i) z[i] = 0;
    for (int64_t i = 0; i < n; i += kWidth<T>) store(z + i, (*this)(load(z + i)));
  }
  // n products in place of which come capped logits, L to a class; `slopes`: what gradients by these are multiplied with.
  __attribute__((noinline)) void logits_and_slopes(T* tile, T* slopes, int64_t n, int L, T scale, const T* bias) const {
    for (int64_t i = 0; i < n; i += kWidth<T>) {
      const Vec<T> z = fma(load(tile + i), splat<T>(scale), splat<T>(bias ? bias[i / L] : T(0)));
      store(slopes + i, slope(z));
      store(tile + i, (*this)(z));
    }
  }

 private:
  // e = power (1 + rest), with power = 2^n and rest = e^r - 1 for |r| <= ln 2 / 2; tiny: e is below what a T holds.
  struct Exp {
    Vec<T> power, rest;
    IntVec<T> tiny;
  };
  NCOPS_INLINE Exp exponential(Vec<T> z) const {
    using C = ExpConstants<T>;
    const Vec<T> low = splat<T>(C::lowest), exact = (z < 0 ? z : -z) * twice_, x = max_of(exact, low);
    const Vec<T> shifted = fma(x, splat<T>(T(1.4426950408889634074)), splat<T>(C::round)), n = shifted - C::round;
    const Vec<T> r = fma(n, splat<T>(-C::ln2_low), fma(n, splat<T>(-C::ln2_high), x));
    Vec<T> p = splat<T>(C::coefficient[C::terms - 1]);
#pragma GCC unroll 16
    for (int k = C::terms - 2; k >= 0; --k) p = fma(p, r, splat<T>(C::coefficient[k]));
    return {(Vec<T>)((IntVec<T>)splat<T>(1) + ((IntVec<T>)shifted << C::mantissa)), p * r, exact < low};
  }

  T cap_, twice_;
};

}  // namespace ncops::NCOPS_ISA
