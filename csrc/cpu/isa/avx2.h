// AVX2 with FMA and F16C.
#include <immintrin.h>

#pragma GCC target("avx2,fma,f16c,bmi2")

namespace ncops::NCOPS_ISA {

constexpr int kVectorBytes = 32, kRegisters = 16;
constexpr bool kFuses = true, kScales = false, kBf16Pairs = false, kBf16Tiles = false;

}  // namespace ncops::NCOPS_ISA

#include "lanes.h"
#include "x86.h"

namespace ncops::NCOPS_ISA {

NCOPS_INLINE Vec<float> broadcast(const float* p) { return (Vec<float>)_mm256_broadcast_ss(p); }

NCOPS_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
NCOPS_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}

NCOPS_INLINE Vec<float> max_of(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b); }

NCOPS_INLINE bool any_lane(IntVec<float> mask) { return !_mm256_testz_si256((__m256i)mask, (__m256i)mask); }
NCOPS_INLINE bool any_lane(IntVec<double> mask) { return !_mm256_testz_si256((__m256i)mask, (__m256i)mask); }

NCOPS_INLINE unsigned lane_bits(IntVec<float> mask) { return unsigned(_mm256_movemask_ps((__m256)mask)); }
NCOPS_INLINE unsigned lane_bits(IntVec<double> mask) { return unsigned(_mm256_movemask_pd((__m256d)mask)); }

NCOPS_INLINE IntVec<float> to_ints(Halves h) { return (IntVec<float>)_mm256_cvtepu16_epi32((__m128i)h); }
NCOPS_INLINE Vec<float> widen(Halves h, F16) { return (Vec<float>)_mm256_cvtph_ps((__m128i)h); }
NCOPS_INLINE Halves narrow(Vec<float> v, F16) { return (Halves)_mm256_cvtps_ph((__m256)v, 0); }

NCOPS_INLINE void stream(void* p, Vec<float> v) { _mm256_stream_si256((__m256i*)p, (__m256i)v); }
NCOPS_INLINE void stream(void* p, Vec<double> v) { _mm256_stream_si256((__m256i*)p, (__m256i)v); }
NCOPS_INLINE void stream(void* p, Halves h) { _mm_stream_si128((__m128i*)p, (__m128i)h); }

}  // namespace ncops::NCOPS_ISA
