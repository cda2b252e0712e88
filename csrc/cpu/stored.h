// Vectors of stored elements of any dtype, loaded into the compute dtype and stored from it. Kernels are instantiated with
// float, double, Bf16 or F16, so that a row is read and written as it lies.
#pragma once

#include "pack.h"

namespace ncops::NCOPS_ISA {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
typedef uint16_t Halves __attribute__((vector_size(2 * kWidth<float>)));  // as many as a vector of float has lanes

NCOPS_INLINE Vec<float> load_stored(const float* p) { return load(p); }
NCOPS_INLINE Vec<double> load_stored(const double* p) { return load(p); }
NCOPS_INLINE Vec<float> load_stored(const Bf16* p) { return load_as<float>(&p->bits); }
NCOPS_INLINE Vec<float> load_stored(const F16* p) {
#if NCOPS_ISA_ID == 1
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif NCOPS_ISA_ID == 2
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Vec<float> v;
  for (int i = 0; i < kWidth<float>; ++i) v[i] = f16_to_float(p[i].bits);
  return v;
#endif
}

NCOPS_INLINE uint16_t float_to_f16(float value) {
#if NCOPS_ISA_ID != 3
  return uint16_t(_cvtss_sh(value, 0));
#else
  uint32_t wide;
  std::memcpy(&wide, &value, 4);
  const uint32_t sign = wide >> 16 & 0x8000, size = wide & 0x7fffffff;
  if (size > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (size >= 0x47800000) return uint16_t(sign | 0x7c00);  // 65536 and above
  if (size < 0x38800000) {                                 // subnormal: half's last place is that of a float at 1/2
    std::memcpy(&value, &size, 4);
    value += 0.5f;
    std::memcpy(&wide, &value, 4);
    return uint16_t(sign | (wide - 0x3f000000));
  }
  return uint16_t(sign | ((size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13));
#endif
}

// To nearest, ties to even.
NCOPS_INLINE Halves to_halves(Vec<float> v, Bf16) {
  const IntVec<float> bits = (IntVec<float>)v;
  const IntVec<float> rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(v == v ? rounded : IntVec<float>{} + 0x7fc0, Halves);
}
NCOPS_INLINE Halves to_halves(Vec<float> v, F16) {
#if NCOPS_ISA_ID == 1
  return (Halves)_mm512_cvtps_ph((__m512)v, 0);
#elif NCOPS_ISA_ID == 2
  return (Halves)_mm256_cvtps_ph((__m256)v, 0);
#else
  Halves out;
  for (int i = 0; i < kWidth<float>; ++i) out[i] = float_to_f16(v[i]);
  return out;
#endif
}

NCOPS_INLINE void store_as(float* p, Vec<float> v) { store(p, v); }
NCOPS_INLINE void store_as(double* p, Vec<double> v) { store(p, v); }
template <class Half>
NCOPS_INLINE void store_as(Half* p, Vec<float> v) {
  const Halves h = to_halves(v, Half{});
  std::memcpy(p, &h, sizeof h);
}

// Past the caches, to an address aligned to the vector: a result that is larger than they are is not read into them first.
template <class Stored, class V>
NCOPS_INLINE void stream_as(Stored* p, V v) {
#if NCOPS_ISA_ID == 1
  if constexpr (sizeof(Stored) >= 4) _mm512_stream_si512((__m512i*)p, (__m512i)v);
  else _mm256_stream_si256((__m256i*)p, (__m256i)to_halves(v, Stored{}));
#elif NCOPS_ISA_ID == 2
  if constexpr (sizeof(Stored) >= 4) _mm256_stream_si256((__m256i*)p, (__m256i)v);
  else _mm_stream_si128((__m128i*)p, (__m128i)to_halves(v, Stored{}));
#else
  store_as(p, v);
#endif
}
NCOPS_INLINE void finish_streams() {
#if NCOPS_ISA_ID != 3
  _mm_sfence();
#endif
}

}  // namespace ncops::NCOPS_ISA
