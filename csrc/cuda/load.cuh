// Elements of any input dtype as the compute dtype, one at a time or 16 bytes at once.
#pragma once

#include <cstdint>

#include "../cpu/rows.h"
#include "device.cuh"

namespace ncops::cuda {

template <class In> struct ComputeOf { using type = float; };
template <> struct ComputeOf<double> { using type = double; };
template <class In> using Compute = typename ComputeOf<In>::type;

__device__ __forceinline__ float to_compute(float v) { return v; }
__device__ __forceinline__ double to_compute(double v) { return v; }
__device__ __forceinline__ float to_compute(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_compute(__half v) { return __half2float(v); }

template <class In> constexpr int kVector = 16 / int(sizeof(In));  // elements of one 16-byte access

// 16 bytes that are read and written as one; a struct of T, so that both compilers know what it may alias.
template <class T>
struct alignas(16) Packet {
  T v[kVector<T>];
};

// V consecutive elements: by 16-byte accesses where they are that long, else element by element.
template <class T, int V>
__device__ __forceinline__ void load_columns(T (&v)[V], const T* p) {
  if constexpr (V >= kVector<T>) {
#pragma unroll
    for (int i = 0; i < V; i += kVector<T>) {
      const Packet<T> packet = *reinterpret_cast<const Packet<T>*>(p + i);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) v[i + j] = packet.v[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = p[i];
  }
}

// For float and double. nvcc splits a stored Packet into four stores; its own vector types stay whole.
template <class T, int V>
__device__ __forceinline__ void store_columns(T* p, const T (&v)[V]) {
  if constexpr (V >= kVector<T>) {
#pragma unroll
    for (int i = 0; i < V; i += kVector<T>) {
      if constexpr (sizeof(T) == 4) *reinterpret_cast<float4*>(p + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
      else *reinterpret_cast<double2*>(p + i) = make_double2(v[i], v[i + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) p[i] = v[i];
  }
}

// Rows on the device, of known dtype.
template <class In>
struct RowsView {
  const In* data;
  int64_t rows, dim, row_stride, col_stride;

  explicit RowsView(const Rows& r)
      : data(static_cast<const In*>(r.data)),
        rows(r.rows),
        dim(r.dim),
        row_stride(r.row_stride),
        col_stride(r.col_stride) {}
  __device__ __forceinline__ const In* at(int64_t row, int64_t col) const {
    return data + row * row_stride + col * col_stride;
  }
};

// The sum over a warp, in every lane.
template <class N>
__device__ __forceinline__ N warp_sum(N v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
  return v;
}

inline bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Whether every row can be read 16 bytes at a time, and a dense matrix of compute dtype with rows of dim likewise.
template <class In>
inline bool vectors_fit(const Rows& r) {
  return r.col_stride == 1 && r.dim % kVector<In> == 0 && r.row_stride % kVector<In> == 0 && aligned16(r.data);
}

template <class Run>
inline void dispatch_dtype(DType dtype, Run run) {
  switch (dtype) {
    case DType::f32: return run(float());
    case DType::f64: return run(double());
    case DType::bf16: return run(__nv_bfloat16());
    case DType::f16: return run(__half());
  }
}

}  // namespace ncops::cuda
