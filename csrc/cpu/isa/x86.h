// What AVX2 and AVX-512 share.
#pragma once

namespace ncops::NCOPS_ISA {

NCOPS_INLINE float widen(F16 h) { return _cvtsh_ss(h.bits); }
NCOPS_INLINE F16 narrow(float value, F16) { return {uint16_t(_cvtss_sh(value, 0))}; }

NCOPS_INLINE Vec<float> in_register(Vec<float> v) {
  asm("" : "+v"(v));
  return v;
}
NCOPS_INLINE Vec<double> in_register(Vec<double> v) {
  asm("" : "+v"(v));
  return v;
}

NCOPS_INLINE void finish_streams() { _mm_sfence(); }

}  // namespace ncops::NCOPS_ISA
