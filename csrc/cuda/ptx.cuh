// All inline PTX of the project, one instruction per function, each with its host model (tests/simt/simt).
// Portable instructions of sm_80 and later only.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "device.cuh"

namespace ncops {

// Starts copying 16 bytes from global to shared memory (both 16-byte aligned); zeros where !valid, and then the source
// is not read. Between the start and the wait the destination holds nothing of use.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid NCOPS_CALL_SITE) {
#if defined(__CUDA_ARCH__)
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid ? 16 : 0) : "memory");
#elif defined(__CUDACC__)
  (void)shared, (void)global, (void)valid;
#else
  simt::cp_async(shared, global, 16, valid, site);
#endif
}

// Closes a group of copies.
__device__ __forceinline__ void cp_async_commit() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#elif !defined(__CUDACC__)
  simt::cp_async_commit();
#endif
}

// Waits until at most `Newest` of this thread's groups are under way. Other threads need a barrier besides.
template <int Newest>
__device__ __forceinline__ void cp_async_wait() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(Newest) : "memory");
#elif !defined(__CUDACC__)
  simt::cp_async_wait(Newest);
#endif
}

// Reads one, two or four 8x8 matrices of 16-bit elements. Lane 8*i + r names row r of matrix i (16 bytes, aligned);
// afterwards lane l holds elements 2*(l%4), 2*(l%4) + 1 of row l/4 of matrix i in r[i].
// _trans: the same of the transposed matrices.
#if defined(__CUDA_ARCH__)
#define NCOPS_LDMATRIX(shape, transposed, registers, address, ...)                                                  \
  asm volatile("ldmatrix.sync.aligned.m8n8." shape transposed ".shared.b16 {" registers "}, [" address "];"         \
               : __VA_ARGS__                                                                                        \
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(shared_row)))                                   \
               : "memory")
#elif defined(__CUDACC__)
#define NCOPS_LDMATRIX(...) (void)r, (void)shared_row
#else
#define NCOPS_LDMATRIX(shape, transposed, ...) simt::ldmatrix(r, shared_row, sizeof(transposed) > 1, site)
#endif
#define NCOPS_LDMATRIX_X1(transposed) NCOPS_LDMATRIX("x1", transposed, "%0", "%1", "=r"(r[0]))
#define NCOPS_LDMATRIX_X2(transposed) NCOPS_LDMATRIX("x2", transposed, "%0, %1", "%2", "=r"(r[0]), "=r"(r[1]))
#define NCOPS_LDMATRIX_X4(transposed) \
  NCOPS_LDMATRIX("x4", transposed, "%0, %1, %2, %3", "%4", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]))

__device__ __forceinline__ void ldmatrix_x1(uint32_t (&r)[1], const void* shared_row NCOPS_CALL_SITE) {
  NCOPS_LDMATRIX_X1("");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* shared_row NCOPS_CALL_SITE) {
  NCOPS_LDMATRIX_X2("");
}
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row NCOPS_CALL_SITE) {
  NCOPS_LDMATRIX_X4("");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared_row NCOPS_CALL_SITE) {
  NCOPS_LDMATRIX_X2(".trans");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row NCOPS_CALL_SITE) {
  NCOPS_LDMATRIX_X4(".trans");
}

// d += A B for A (16x16, rows), B (16x8, columns) of T = __nv_bfloat16 or __half, d float32. With g = lane/4 and
// q = lane%4, elements 2q and 2q+1 of a pair lie in the low and the high half of a register:
//   a[0] (row g, columns 2q..), a[1] (row g+8, 2q..), a[2] (row g, 2q+8..), a[3] (row g+8, 2q+8..)
//   b[0] (rows 2q.., column g), b[1] (rows 2q+8.., column g)
//   d[0], d[1] (row g, columns 2q, 2q+1), d[2], d[3] (row g+8)
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2] NCOPS_CALL_SITE) {
  static_assert(sizeof(T) == 2, "T is __nv_bfloat16 or __half");
#if defined(__CUDA_ARCH__)
#define NCOPS_MMA(type)                                                                                                \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                                          \
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                       \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<T, __half>) NCOPS_MMA("f16");
  else NCOPS_MMA("bf16");
#elif defined(__CUDACC__)
  (void)d, (void)a, (void)b;
#else
  simt::mma_m16n8k16<T>(d, a, b, site);
#endif
}

// 2^x, two units in the last place; results below the smallest normal number are 0.
__device__ __forceinline__ float ex2_approx(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#elif defined(__CUDACC__)
  return x;
#else
  const float y = std::exp2(x);
  return y < std::numeric_limits<float>::min() ? 0.0f : y;
#endif
}

}  // namespace ncops
