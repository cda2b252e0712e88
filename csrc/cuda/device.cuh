// The only file that knows which compiler is at work: nvcc, or g++ with the host harness of tests/simt
// (docs/cuda-without-a-gpu.md). Kernels are CUDA C++17 plus the spellings below.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// Last parameter of a device function that contains a barrier, a shuffle or an access worth naming: the harness fills
// in file and line of the call. Nothing here.
#define NCOPS_CALL_SITE

// Static shared memory: NCOPS_SHARED(float, tile, [16][68]); aligned for float4.
#define NCOPS_SHARED(T, name, ...) __shared__ __align__(16) T name __VA_ARGS__

// All dynamic shared memory of the block, as T*; aligned for ldmatrix and cp.async.
#define NCOPS_SHARED_DYNAMIC(T, name)                            \
  extern __shared__ __align__(128) unsigned char name##_bytes[]; \
  T* name = reinterpret_cast<T*>(name##_bytes)

// True where a test has planted this defect (tests/simt/test_defects_simt.py); never on a GPU.
#define NCOPS_DEFECT(name) false

namespace ncops {

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   const Args&... args) {
  constexpr size_t without_asking = 48 * 1024;  // more dynamic shared memory has to be asked for
  if (shared_bytes > without_asking) {
    const cudaError_t refused = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     static_cast<int>(shared_bytes));
    if (refused != cudaSuccess) return refused;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(args...);
  return cudaGetLastError();
}

}  // namespace ncops

// cudaError_t NCOPS_LAUNCH((kernel<float, 4>), grid, block, dynamic shared bytes, stream, arguments...)
#define NCOPS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::ncops::launch(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

#else

#include "simt.h"

#define NCOPS_CALL_SITE , ::simt::Site site = ::simt::Site::current()
#define NCOPS_SHARED(T, name, ...)              \
  static constinit ::simt::SharedSlot name##_slot; \
  auto& name = ::simt::shared_array<T __VA_ARGS__>(name##_slot)
#define NCOPS_SHARED_DYNAMIC(T, name) T* name = ::simt::shared_dynamic<T>()
#define NCOPS_DEFECT(name) (::simt::planted_defect == ::simt::defect_id(#name))
#define NCOPS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::simt::launch(#kernel, ::simt::Site::current(), kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

#endif
