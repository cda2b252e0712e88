// What kernels do with vectors: the plain forms, which a set's own overloads (see target.h) go before, and what is made of
// them.
#pragma once

#include "target.h"

namespace ncops::NCOPS_ISA {

template <class T>
NCOPS_INLINE Vec<T> splat(T a) {
  return a - Vec<T>{};
}

// One element in every lane, whatever its bits (a pair of bfloat16 may look like a signalling NaN).
template <class T>
NCOPS_INLINE Vec<T> broadcast(const T* p) {
  return splat<T>(*p);
}

// v, loaded once: the compiler would load it anew for each product that it is a factor of.
template <class V>
NCOPS_INLINE V in_register(V v) {
  return v;
}

// a * b + c, fused wherever the instruction set can: every product in these kernels is spelt with it, so that two code
// paths that must agree to the bit (a target's logit and its rivals') do.
template <class V>
NCOPS_INLINE V fma(V a, V b, V c) {
  return a * b + c;
}

// The same for lanes that hold pairs of bfloat16: both products are added.
template <class V>
NCOPS_INLINE V multiply_add_pairs(V a, V b, V c) {
  const auto low = [](V v) { return (V)((IntVec<float>)v << 16); };
  const auto high = [](V v) { return (V)((IntVec<float>)v & ~0xffff); };
  return fma(high(a), high(b), fma(low(a), low(b), c));
}

// Lane i of the result is lane Of::at(i) of a, or, from kWidth<T> on, of b.
template <class T, class Of, int... Lane>
NCOPS_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, std::integer_sequence<int, Lane...>) {
  return __builtin_shufflevector(a, b, Of::at(Lane)...);
}
template <class T, class Of>
NCOPS_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b) {
  return shuffle<T, Of>(a, b, std::make_integer_sequence<int, kWidth<T>>());
}

template <int Width, int Half>
struct Rotated {
  static constexpr int at(int lane) { return (lane + Half) % Width; }
};
// Folds halves, quarters, ... onto each other: a fixed order.
template <class T, int Half = kWidth<T> / 2, class F>
NCOPS_INLINE T reduce(Vec<T> v, F fold) {
  v = fold(v, shuffle<T, Rotated<kWidth<T>, Half>>(v, v));
  if constexpr (Half > 1) return reduce<T, Half / 2>(v, fold);
  else return v[0];
}
template <class T>
NCOPS_INLINE T reduce_add(Vec<T> v) {
  return reduce<T>(v, [](Vec<T> a, Vec<T> b) __attribute__((always_inline)) { return a + b; });
}

// The larger of two; the second one where either is NaN.
template <class V>
NCOPS_INLINE V max_of(V a, V b) {
  return a > b ? a : b;
}
template <class V>
NCOPS_INLINE V min_of(V a, V b) {
  return a < b ? a : b;
}

template <class I>
NCOPS_INLINE bool any_lane(I mask) {
  auto out = mask[0];
  for (int i = 1; i < int(sizeof mask / sizeof mask[0]); ++i) out |= mask[i];
  return out != 0;
}
// Whether a comparison holds in any lane.
template <class T>
NCOPS_INLINE bool any(IntVec<T> mask) {
  return any_lane(mask);
}

// The lanes in which a comparison holds, as the bits of a number.
template <class I>
NCOPS_INLINE unsigned lane_bits(I mask) {
  unsigned bits = 0;
  for (int i = 0; i < int(sizeof mask / sizeof mask[0]); ++i) bits |= unsigned(mask[i] != 0) << i;
  return bits;
}

// counts + (z > bound), lane by lane.
template <class I, class V>
NCOPS_INLINE I count_above(I counts, V z, V bound) {
  return counts - (I)(z > bound);
}

NCOPS_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
NCOPS_INLINE void prefetch_further(const void* p) { __builtin_prefetch(p, 0, 2); }  // into the second-level cache

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float round = 12582912.0f;                    // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float lowest = -87.0f;                        // below: zero, so that no result is subnormal
  static constexpr int terms = 6, mantissa = 23;
  // (e^r - 1) / r on [-ln2/2, ln2/2], interpolated at Chebyshev nodes: e^r within 5e-9.
  static constexpr float coefficient[] = {1.0000000107765000999, 0.50000000134638854955, 0.16666505211145061448,
                                          0.041666464944505699264, 0.0083691539597119096156, 0.0013933647862928862804};
};
template <>
struct ExpConstants<double> {
  static constexpr double round = 6755399441055744.0;            // 1.5 * 2^52
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
  static constexpr double lowest = -708.0;
  static constexpr int terms = 12, mantissa = 52;
  static constexpr double coefficient[] = {  // within 1e-19
      0.99999999999999999976, 0.49999999999999999998, 0.16666666666666680816, 0.041666666666666676771,
      0.0083333333333195922335, 0.0013888888888879087586, 0.00019841269890069431376, 0.000024801587336437259564,
      2.755724089469107372e-6, 2.7557263284416511109e-7, 2.5110046444457486801e-8, 2.0918135766484713038e-9};
};

template <class T>
NCOPS_INLINE Vec<T> exp_polynomial(Vec<T> r) {
  using C = ExpConstants<T>;
  Vec<T> p = splat<T>(C::coefficient[C::terms - 1]);
#pragma GCC unroll 16
  for (int k = C::terms - 2; k >= 0; --k) p = fma(p, r, splat<T>(C::coefficient[k]));
  return fma(p, r, splat<T>(1));
}

// e^x for x >= lowest, within about 1 ulp; exactly 1 at 0.
template <class T>
NCOPS_INLINE Vec<T> exp_clamped(Vec<T> x) {
  using C = ExpConstants<T>;
  const Vec<T> shifted = fma(x, splat<T>(T(1.4426950408889634074)), splat<T>(C::round));
  const Vec<T> n = shifted - C::round;
  const Vec<T> r = fma(n, splat<T>(-C::ln2_low), fma(n, splat<T>(-C::ln2_high), x));
  return (Vec<T>)((IntVec<T>)exp_polynomial<T>(r) + ((IntVec<T>)shifted << C::mantissa));  // the low bits of `shifted` hold n
}

// The unit of exp_near's exponents: log2(e), with which it is 2^y, where z log2(e) less another is rounded once.
template <class T>
constexpr T kExpUnit = sizeof(T) == 4 && kFuses ? T(1.4426950408889634074) : T(1);

// e^(y / kExpUnit) for y from kExpUnit * lowest to 1, in few operations: 2^y within 7.5e-8. N at once, step by step: one after
// the other they fill the scheduler with what waits for its own last step, and a shared core has half of that: 1.06x the time.
template <class T, int N>
NCOPS_INLINE void exp_near(const Vec<T> (&y)[N], Vec<T> (&e)[N]) {
  // 2^f for f from 0 to 1, and from -1/2 to 1/2: polynomials of least relative error.
  static constexpr T above[] = {0.99999992506358777201, 0.69315307320262605258, 0.24015361702112632388,
                                0.055826318116233499791, 0.0089893400235819067692, 0.0018775767000199889862};
  static constexpr T around[] = {1.0000000716546416382, 0.69314696706526492761, 0.24022119723969178047,
                                 0.05550713272875391178, 0.0096755413310213911451, 0.0013276472167819943329};
  const auto each = [](auto f) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int u = 0; u < N; ++u) f(u);
  };
  using C = ExpConstants<T>;
  if constexpr (kExpUnit<T> == 1) {
    each([&](int u) __attribute__((always_inline)) { e[u] = exp_clamped<T>(y[u]); });
  } else {
    Vec<T> f[N], shifted[N];
    if constexpr (kScales) {
      each([&](int u) __attribute__((always_inline)) { f[u] = above_floor(y[u]); });
    } else {
      each([&](int u) __attribute__((always_inline)) { shifted[u] = y[u] + C::round; });
      each([&](int u) __attribute__((always_inline)) { f[u] = shifted[u] - C::round; });
      each([&](int u) __attribute__((always_inline)) { f[u] = y[u] - f[u]; });
    }
    const T* c = kScales ? above : around;
    each([&](int u) __attribute__((always_inline)) { e[u] = fma(splat<T>(c[5]), f[u], splat<T>(c[4])); });
#pragma GCC unroll 8
    for (int k = 3; k >= 0; --k) each([&](int u) __attribute__((always_inline)) { e[u] = fma(e[u], f[u], splat<T>(c[k])); });
    if constexpr (kScales) {
      each([&](int u) __attribute__((always_inline)) { e[u] = scale(e[u], y[u]); });
    } else {
      each([&](int u) __attribute__((always_inline)) {
        e[u] = (Vec<T>)((IntVec<T>)e[u] + ((IntVec<T>)shifted[u] << C::mantissa));
      });
    }
  }
}

// e^x for x <= 0 (or slightly above); 0 below `lowest`, also for -inf.
template <class T>
NCOPS_INLINE Vec<T> exp_nonpositive(Vec<T> x) {
  using C = ExpConstants<T>;
  const Vec<T> low = splat<T>(C::lowest), clamped = max_of(x, low);
  if constexpr (!kScales || sizeof(T) != 4) {
    return x < low ? Vec<T>{} : exp_clamped<T>(clamped);
  } else {  // two instructions round and scale, where exp_clamped takes five: the exponentials are what logit_stats computes
    const Vec<T> n = round_to_integer(clamped * 1.44269504f);
    const Vec<T> r = fma(n, splat<T>(-0.693147180559945f), clamped);  // n (ln 2 - its float) is below 2e-7
    return scale_where(x, low, exp_polynomial<T>(r), n);
  }
}

template <class T>
struct LogConstants;
template <>
struct LogConstants<float> {
  static constexpr int terms = 5, mantissa = 23;
  static constexpr int32_t one = 0x3f800000, half_step = 0x003504f3;  // bits of 1, and of sqrt(2) above it
};
template <>
struct LogConstants<double> {
  static constexpr int terms = 11, mantissa = 52;
  static constexpr int64_t one = 0x3ff0000000000000, half_step = 0x0006a09e667f3bcd;
};

// Natural logarithm within about 2 ulp: x = 2^n m with m in [sqrt(1/2), sqrt(2)), log m = 2 artanh((m - 1) / (m + 1)).
// 0 and subnormals give -inf, +inf gives +inf, NaN and negatives give NaN.
template <class T>
NCOPS_INLINE Vec<T> log_of(Vec<T> x) {
  using C = LogConstants<T>;
  constexpr T inf = std::numeric_limits<T>::infinity();
  const IntVec<T> bits = (IntVec<T>)x;
  const IntVec<T> exponent = (bits - C::one + ((LaneInt<T>(1) << C::mantissa) - C::half_step)) >> C::mantissa;
  const Vec<T> m = (Vec<T>)(bits - (exponent << C::mantissa));
  const Vec<T> s = (m - 1) / (m + 1), s2 = s * s;
  Vec<T> p = splat<T>(T(2) / (2 * C::terms + 1));
#pragma GCC unroll 16
  for (int k = C::terms - 1; k >= 1; --k) p = fma(p, s2, splat<T>(T(2) / (2 * k + 1)));
  const Vec<T> n = __builtin_convertvector(exponent, Vec<T>);
  const Vec<T> low = fma(p * s2, s, n * ExpConstants<T>::ln2_low);
  Vec<T> result = fma(n, splat<T>(ExpConstants<T>::ln2_high), 2 * s + low);
  result = x < std::numeric_limits<T>::min() ? splat<T>(-inf) : result;
  result = x == inf ? splat<T>(inf) : result;
  return x >= 0 ? result : splat<T>(std::numeric_limits<T>::quiet_NaN());
}

template <class T>
NCOPS_INLINE Vec<T> sqrt_of(Vec<T> x) {
  Vec<T> r;
  for (int i = 0; i < kWidth<T>; ++i) r[i] = std::sqrt(x[i]);
  return r;
}

}  // namespace ncops::NCOPS_ISA
