// __half and __nv_bfloat16: conversions round to nearest, ties to even, as cuda_fp16.h and cuda_bf16.h do on the GPU.
// Conversions are explicit here, although CUDA has implicit ones: kernels say where they round.
#pragma once

#include "intrinsics.h"
#include "types.h"

namespace simt {

inline uint16_t bf16_bits(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  if (f != f) return 0x7FFF;
  return uint16_t((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

inline uint16_t f16_bits(float f) {
  if (f != f) return 0x7FFF;
  return std::bit_cast<uint16_t>(static_cast<_Float16>(f));
}

}  // namespace simt

struct alignas(2) __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float f) : bits(simt::bf16_bits(f)) {}
  explicit operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }
};
struct alignas(2) __half {
  uint16_t bits;
  __half() = default;
  explicit __half(float f) : bits(simt::f16_bits(f)) {}
  explicit operator float() const { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct alignas(4) __half2 {
  __half x, y;
};
using __nv_half = __half;
using __nv_half2 = __half2;

inline float __bfloat162float(__nv_bfloat16 h) { return float(h); }
inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) { return std::bit_cast<__nv_bfloat16>(v); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {float(v.x), float(v.y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__nv_bfloat16(a), __nv_bfloat16(b)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }

inline float __half2float(__half h) { return float(h); }
inline __half __float2half(float f) { return __half(f); }
inline __half __float2half_rn(float f) { return __half(f); }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline __half __ushort_as_half(unsigned short v) { return std::bit_cast<__half>(v); }
inline float2 __half22float2(__half2 v) { return {float(v.x), float(v.y)}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }

inline float __low2float(__nv_bfloat162 v) { return float(v.x); }
inline float __high2float(__nv_bfloat162 v) { return float(v.y); }
inline float __low2float(__half2 v) { return float(v.x); }
inline float __high2float(__half2 v) { return float(v.y); }
