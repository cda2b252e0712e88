// Vectors of one register's width, as compiler vector types: the same source serves AVX-512, AVX2, SSE2 and NEON.
#pragma once

#include "isa.h"

namespace ncops::NCOPS_ISA {

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(NCOPS_VECTOR_BYTES)));
  typedef int32_t mask __attribute__((vector_size(NCOPS_VECTOR_BYTES)));
  using Int = int32_t;
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(NCOPS_VECTOR_BYTES)));
  typedef int64_t mask __attribute__((vector_size(NCOPS_VECTOR_BYTES)));
  using Int = int64_t;
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using IntVec = typename VecOf<T>::mask;  // integers of the lane's width; also what comparisons return (0 or -1)
template <class T>
using LaneInt = typename VecOf<T>::Int;
template <class T>
constexpr int kWidth = NCOPS_VECTOR_BYTES / sizeof(T);

template <class T>
NCOPS_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
NCOPS_INLINE void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}
template <class T>
NCOPS_INLINE IntVec<T> load_int(const LaneInt<T>* p) {
  IntVec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
NCOPS_INLINE void store_int(LaneInt<T>* p, IntVec<T> v) {
  std::memcpy(p, &v, sizeof v);
}
template <class T>
NCOPS_INLINE Vec<T> splat(T a) {
  return a - Vec<T>{};
}

// One element in every lane, whatever its bits (a pair of bfloat16 may look like a signalling NaN).
NCOPS_INLINE Vec<float> broadcast(const float* p) {
#if NCOPS_ISA_ID == 1
  return (Vec<float>)_mm512_set1_ps(*p);
#elif NCOPS_ISA_ID == 2
  return (Vec<float>)_mm256_broadcast_ss(p);
#else
  return splat<float>(*p);
#endif
}
NCOPS_INLINE Vec<double> broadcast(const double* p) { return splat<double>(*p); }

// a * b + c, fused wherever the instruction set can: every product in these kernels is spelt with it, so that two code
// paths that must agree to the bit (a target's logit and its rivals') do.
NCOPS_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if NCOPS_ISA_ID == 1
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif NCOPS_ISA_ID == 2
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
NCOPS_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if NCOPS_ISA_ID == 1
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif NCOPS_ISA_ID == 2
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

// Folds halves, quarters, ... onto each other: a fixed order.
template <class T, class F>
NCOPS_INLINE T reduce(Vec<T> v, F fold) {
#pragma GCC unroll 4
  for (int half = kWidth<T> / 2; half > 0; half /= 2) {
    IntVec<T> other;
#pragma GCC unroll 16
    for (int i = 0; i < kWidth<T>; ++i) other[i] = (i + half) % kWidth<T>;
    v = fold(v, __builtin_shuffle(v, other));
  }
  return v[0];
}
template <class T>
NCOPS_INLINE T reduce_add(Vec<T> v) {
  return reduce<T>(v, [](Vec<T> a, Vec<T> b) __attribute__((always_inline)) { return a + b; });
}

// The larger of two; the second one where either is NaN.
NCOPS_INLINE Vec<float> max_of(Vec<float> a, Vec<float> b) {
#if NCOPS_ISA_ID == 1
  return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b);
#elif NCOPS_ISA_ID == 2
  return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
NCOPS_INLINE Vec<double> max_of(Vec<double> a, Vec<double> b) { return a > b ? a : b; }
template <class V>
NCOPS_INLINE V min_of(V a, V b) {
  return a < b ? a : b;
}

// Whether a comparison holds in any lane.
template <class T>
NCOPS_INLINE bool any(IntVec<T> mask) {
#if NCOPS_ISA_ID == 1
  if constexpr (sizeof(T) == 4) return _mm512_movepi32_mask((__m512i)mask) != 0;
  else return _mm512_movepi64_mask((__m512i)mask) != 0;
#elif NCOPS_ISA_ID == 2
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  LaneInt<T> out = 0;
  for (int i = 0; i < kWidth<T>; ++i) out |= mask[i];
  return out != 0;
#endif
}

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

// e^x for x >= lowest, within about 1 ulp; exactly 1 at 0.
template <class T>
NCOPS_INLINE Vec<T> exp_clamped(Vec<T> x) {
  using C = ExpConstants<T>;
  const Vec<T> shifted = fma(x, splat<T>(T(1.4426950408889634074)), splat<T>(C::round));
  const Vec<T> n = shifted - C::round;
  const Vec<T> r = fma(n, splat<T>(-C::ln2_low), fma(n, splat<T>(-C::ln2_high), x));
  Vec<T> p = splat<T>(C::coefficient[C::terms - 1]);
#pragma GCC unroll 16
  for (int k = C::terms - 2; k >= 0; --k) p = fma(p, r, splat<T>(C::coefficient[k]));
  p = fma(p, r, splat<T>(1));
  return (Vec<T>)((IntVec<T>)p + ((IntVec<T>)shifted << C::mantissa));  // the low bits of `shifted` hold n
}

// e^x for x <= 0 (or slightly above); 0 below `lowest`, also for -inf.
template <class T>
NCOPS_INLINE Vec<T> exp_nonpositive(Vec<T> x) {
  const Vec<T> low = splat<T>(ExpConstants<T>::lowest);
  return x < low ? Vec<T>{} : exp_clamped<T>(max_of(x, low));
}
#if NCOPS_ISA_ID == 1
// Two instructions round and scale by 2^n, where the general form takes five: the exponentials are what logit_stats computes.
template <>
NCOPS_INLINE Vec<float> exp_nonpositive<float>(Vec<float> x) {
  using C = ExpConstants<float>;
  const Vec<float> low = splat<float>(C::lowest), clamped = max_of(x, low);
  const Vec<float> n = (Vec<float>)_mm512_roundscale_ps((__m512)(clamped * 1.44269504f), _MM_FROUND_TO_NEAREST_INT);
  const Vec<float> r = fma(n, splat<float>(-0.693147180559945f), clamped);  // n (ln 2 - its float) is below 2e-7
  Vec<float> p = splat<float>(C::coefficient[C::terms - 1]);
#pragma GCC unroll 16
  for (int k = C::terms - 2; k >= 0; --k) p = fma(p, r, splat<float>(C::coefficient[k]));
  p = fma(p, r, splat<float>(1));
  return (Vec<float>)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)x, (__m512)low, _CMP_GE_OQ), (__m512)p, (__m512)n);
}
#endif

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
