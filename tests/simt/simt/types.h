// CUDA's keywords and plain types: dim3, vectors, streams, errors.
#pragma once

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

// Vectors have CUDA's alignment, so that a misaligned access is one here too (UBSan names it).
#define SIMT_VECTOR2(T, name, bytes)   \
  struct alignas(bytes) name##2 {      \
    T x, y;                            \
  };                                   \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }
#define SIMT_VECTOR4(T, name, bytes)   \
  struct alignas(bytes) name##4 {      \
    T x, y, z, w;                      \
  };                                   \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SIMT_VECTOR2(float, float, 8)
SIMT_VECTOR4(float, float, 16)
SIMT_VECTOR2(double, double, 16)
SIMT_VECTOR2(int, int, 8)
SIMT_VECTOR4(int, int, 16)
SIMT_VECTOR2(unsigned, uint, 8)
SIMT_VECTOR4(unsigned, uint, 16)
SIMT_VECTOR2(long long, longlong, 16)
SIMT_VECTOR2(unsigned long long, ulonglong, 16)
SIMT_VECTOR2(short, short, 4)
SIMT_VECTOR4(short, short, 8)
SIMT_VECTOR2(unsigned short, ushort, 4)
SIMT_VECTOR4(unsigned short, ushort, 8)
SIMT_VECTOR4(unsigned char, uchar, 4)
#undef SIMT_VECTOR2
#undef SIMT_VECTOR4

// Streams are in order and there is one; what a GPU would answer with an error code is thrown as simt::Error instead.
using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : "error"; }
inline const char* cudaGetErrorName(cudaError_t e) { return e == cudaSuccess ? "cudaSuccess" : "cudaError"; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t = nullptr) {
  for (size_t i = 0; i < bytes; ++i) static_cast<unsigned char*>(to)[i] = static_cast<unsigned char>(value);
  return cudaSuccess;
}
