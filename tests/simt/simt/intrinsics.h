// Per-thread functions that CUDA has and the C library has not, or has otherwise.
#pragma once

#include <math.h>

#include <bit>
#include <concepts>
#include <type_traits>

template <class T>
inline T __ldg(const T* p) {
  return *p;
}
template <class T>
inline T __ldcs(const T* p) {
  return *p;
}
template <class T>
inline T __ldcg(const T* p) {
  return *p;
}
template <class T>
inline void __stcs(T* p, std::type_identity_t<T> value) {
  *p = value;
}

// CUDA's min and max of floats are fminf and fmaxf: of a number and NaN, the number.
template <std::integral T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <std::integral T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
inline float min(float a, float b) { return ::fminf(a, b); }
inline float max(float a, float b) { return ::fmaxf(a, b); }
inline double min(double a, double b) { return ::fmin(a, b); }
inline double max(double a, double b) { return ::fmax(a, b); }

inline int __popc(unsigned v) { return std::popcount(v); }
inline int __popcll(unsigned long long v) { return std::popcount(v); }
inline int __clz(int v) { return std::countl_zero(unsigned(v)); }
inline int __clzll(long long v) { return std::countl_zero(static_cast<unsigned long long>(v)); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1u) << (31 - i);
  return r;
}

inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline long long __double_as_longlong(double v) { return std::bit_cast<long long>(v); }
inline double __longlong_as_double(long long v) { return std::bit_cast<double>(v); }

namespace simt {

// Hides a value from the optimiser, which otherwise contracts a product and a sum to a fused one, as nvcc does.
template <class T>
inline T rounded(T v) {
  asm volatile("" : "+m"(v));
  return v;
}

}  // namespace simt

inline float __fadd_rn(float a, float b) { return simt::rounded(a + b); }
inline float __fsub_rn(float a, float b) { return simt::rounded(a - b); }
inline float __fmul_rn(float a, float b) { return simt::rounded(a * b); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return ::sqrtf(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fmaf_rn(float a, float b, float c) { return ::fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return simt::rounded(a + b); }
inline double __dmul_rn(double a, double b) { return simt::rounded(a * b); }
inline double __fma_rn(double a, double b, double c) { return ::fma(a, b, c); }
inline float rsqrtf(float a) { return 1.0f / ::sqrtf(a); }
inline double rsqrt(double a) { return 1.0 / ::sqrt(a); }
inline float __fdividef(float a, float b) { return a / b; }

// The C library declares __expf and __logf for itself; the fast ones of CUDA err by a few units in the last place,
// which is not modelled.
#define __expf(x) ::expf(x)
#define __logf(x) ::logf(x)
#define __log2f(x) ::log2f(x)
#define __exp10f(x) ::exp10f(x)
#define __powf(x, y) ::powf(x, y)
