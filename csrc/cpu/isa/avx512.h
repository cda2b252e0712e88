// AVX-512 as of Skylake (F, BW, DQ, VL).
#include <immintrin.h>

// avx512bf16 and tiles are used through the functions here and in amx.h only, behind bf16_products(); the compiler emits none of it
// by itself.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi2,prefer-vector-width=512")

namespace ncops::NCOPS_ISA {

#define NCOPS_BF16_TILES
constexpr int kVectorBytes = 64, kRegisters = 32;
constexpr bool kFuses = true, kScales = true, kBf16Pairs = true;

}  // namespace ncops::NCOPS_ISA

#include "amx.h"
#include "lanes.h"
#include "x86.h"

namespace ncops::NCOPS_ISA {

NCOPS_INLINE Vec<float> broadcast(const float* p) { return (Vec<float>)_mm512_set1_ps(*p); }

NCOPS_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
NCOPS_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
NCOPS_INLINE Vec<float> multiply_add_pairs(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)_mm512_dpbf16_ps((__m512)c, (__m512bh)(__m512)a, (__m512bh)(__m512)b);
}

NCOPS_INLINE Vec<float> max_of(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b); }

NCOPS_INLINE bool any_lane(IntVec<float> mask) { return _mm512_movepi32_mask((__m512i)mask) != 0; }
NCOPS_INLINE bool any_lane(IntVec<double> mask) { return _mm512_movepi64_mask((__m512i)mask) != 0; }

NCOPS_INLINE unsigned lane_bits(IntVec<float> mask) { return _mm512_movepi32_mask((__m512i)mask); }
NCOPS_INLINE unsigned lane_bits(IntVec<double> mask) { return _mm512_movepi64_mask((__m512i)mask); }

// The compiler would widen the mask to a vector first.
NCOPS_INLINE IntVec<float> count_above(IntVec<float> counts, Vec<float> z, Vec<float> bound) {
  const __mmask16 above = _mm512_cmp_ps_mask((__m512)z, (__m512)bound, _CMP_GT_OQ);
  return (IntVec<float>)_mm512_mask_add_epi32((__m512i)counts, above, (__m512i)counts, _mm512_set1_epi32(1));
}

NCOPS_INLINE Vec<float> round_to_integer(Vec<float> x) {
  return (Vec<float>)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
}
// x - floor(x), and p * 2^floor(x).
NCOPS_INLINE Vec<float> above_floor(Vec<float> x) { return (Vec<float>)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF); }
NCOPS_INLINE Vec<float> scale(Vec<float> p, Vec<float> x) { return (Vec<float>)_mm512_scalef_ps((__m512)p, (__m512)x); }
// p * 2^n where x >= low, else 0.
NCOPS_INLINE Vec<float> scale_where(Vec<float> x, Vec<float> low, Vec<float> p, Vec<float> n) {
  return (Vec<float>)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)x, (__m512)low, _CMP_GE_OQ), (__m512)p, (__m512)n);
}

// The compiler would convert by halves of the vector: 1.1x the time of logit_stats in bfloat16.
NCOPS_INLINE IntVec<float> to_ints(Halves h) { return (IntVec<float>)_mm512_cvtepu16_epi32((__m256i)h); }
NCOPS_INLINE Halves to_halves(IntVec<float> v) { return (Halves)_mm512_cvtepi32_epi16((__m512i)v); }
NCOPS_INLINE Vec<float> widen(Halves h, F16) { return (Vec<float>)_mm512_cvtph_ps((__m256i)h); }
NCOPS_INLINE Halves narrow(Vec<float> v, F16) { return (Halves)_mm512_cvtps_ph((__m512)v, 0); }

NCOPS_INLINE void stream(void* p, Vec<float> v) { _mm512_stream_si512((__m512i*)p, (__m512i)v); }
NCOPS_INLINE void stream(void* p, Vec<double> v) { _mm512_stream_si512((__m512i*)p, (__m512i)v); }
NCOPS_INLINE void stream(void* p, Halves h) { _mm256_stream_si256((__m256i*)p, (__m256i)h); }

}  // namespace ncops::NCOPS_ISA
