// AArch64's vectors (NEON), which every machine of that architecture has: compiled without a target pragma.
#include <arm_neon.h>

namespace ncops::NCOPS_ISA {

constexpr int kVectorBytes = 16, kRegisters = 32;
constexpr bool kFuses = true, kScales = false, kBf16Pairs = true, kBf16Tiles = false;

}  // namespace ncops::NCOPS_ISA

#include "lanes.h"

namespace ncops::NCOPS_ISA {

// The compiler would contract a * b + c by itself, or not, as its flags have it.
NCOPS_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
NCOPS_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
// BFDOT, behind bf16_products(). As an instruction by itself: a target with bf16 would let the compiler emit what ARMv8.0 lacks.
// Both sums are rounded to odd, within one unit in the last place where a rounding to the nearest is within half of one.
NCOPS_INLINE Vec<float> multiply_add_pairs(Vec<float> a, Vec<float> b, Vec<float> c) {
  asm(".arch_extension bf16\n\tbfdot %0.4s, %1.8h, %2.8h" : "+w"(c) : "w"(a), "w"(b));
  return c;
}

NCOPS_INLINE bool any_lane(IntVec<float> mask) { return vmaxvq_u32((uint32x4_t)mask) != 0; }
NCOPS_INLINE bool any_lane(IntVec<double> mask) { return vmaxvq_u32((uint32x4_t)mask) != 0; }

NCOPS_INLINE unsigned lane_bits(IntVec<float> mask) { return vaddvq_u32((uint32x4_t)(mask & IntVec<float>{1, 2, 4, 8})); }
NCOPS_INLINE unsigned lane_bits(IntVec<double> mask) { return unsigned(vaddvq_u64((uint64x2_t)(mask & IntVec<double>{1, 2}))); }

NCOPS_INLINE Vec<float> widen(Halves h, F16) { return (Vec<float>)vcvt_f32_f16((float16x4_t)h); }
NCOPS_INLINE Halves narrow(Vec<float> v, F16) { return (Halves)vcvt_f16_f32((float32x4_t)v); }
NCOPS_INLINE float widen(F16 h) { return load_bits<__fp16>(&h); }
NCOPS_INLINE F16 narrow(float value, F16) {
  const __fp16 rounded = value;
  return load_bits<F16>(&rounded);
}

NCOPS_INLINE void finish_streams() {}  // stream is a plain store: cores see by themselves that whole lines are written

}  // namespace ncops::NCOPS_ISA
