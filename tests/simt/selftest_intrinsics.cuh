// What every lane gets from every warp function, to be held against a model in Python; and the conversions.
#pragma once

#include "cuda/device.cuh"
#include "cuda/ptx.cuh"

namespace selftest {

// out is (12, 32): one row per function, of lane values x.
__global__ void warp_functions_kernel(const int* __restrict__ x, int* __restrict__ out, int width, int amount) {
  const int lane = int(threadIdx.x), value = x[lane];
  const unsigned all = 0xffffffffu;
  int row = 0;
  const auto put = [&](int result) { out[32 * row++ + lane] = result; };
  put(__shfl_sync(all, value, amount, width));
  put(__shfl_xor_sync(all, value, amount, width));
  put(__shfl_up_sync(all, value, unsigned(amount), width));
  put(__shfl_down_sync(all, value, unsigned(amount), width));
  put(int(__ballot_sync(all, value > 0)));
  put(__any_sync(all, value > 1000));
  put(__all_sync(all, value > -1000));
  put(int(__match_any_sync(all, value % 3)));
  put(__reduce_add_sync(all, value));
  // The even lanes and the odd lanes each among themselves.
  const unsigned half = lane % 2 ? 0xaaaaaaaau : 0x55555555u;
  put(__shfl_xor_sync(half, value, 2));
  put(int(__ballot_sync(half, value > 0)));
  put(int(__shfl_sync(all, double(value) * 0.5, 31) * 2));
}

inline cudaError_t warp_functions(const int* x, int* out, int width, int amount) {
  return NCOPS_LAUNCH(warp_functions_kernel, dim3(1), dim3(32), 0, nullptr, x, out, width, amount);
}

// out is (blocks, 4): and, or, count of the predicates of a block, of which the first `leave` threads exit early.
__global__ void block_votes_kernel(const int* __restrict__ x, int* __restrict__ out, int leave) {
  if (int(threadIdx.x) < leave) return;
  const int value = x[blockIdx.x * blockDim.x + threadIdx.x];
  const int all = __syncthreads_and(value), any = __syncthreads_or(value), count = __syncthreads_count(value);
  if (threadIdx.x == blockDim.x - 1) {
    int* row = out + 4 * blockIdx.x;
    row[0] = all, row[1] = any, row[2] = count, row[3] = int(gridDim.x);
  }
}

inline cudaError_t block_votes(const int* x, int* out, int blocks, int threads, int leave) {
  return NCOPS_LAUNCH(block_votes_kernel, dim3(unsigned(blocks)), dim3(unsigned(threads)), 0, nullptr, x, out, leave);
}

// Whichever block ends last adds up what the others left: ordered by __threadfence and a counter alone.
__global__ void last_block_kernel(const int* __restrict__ x, int* partial, unsigned* arrived, int* sum) {
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = x[blockIdx.x];
    __threadfence();
    if (atomicAdd(arrived, 1u) == gridDim.x - 1) {
      __threadfence();
      int total = 0;
      for (unsigned b = 0; b < gridDim.x; ++b) total += partial[b];
      *sum = total;
    }
  }
}

inline cudaError_t last_block(const int* x, int* partial, unsigned* arrived, int* sum, int blocks) {
  return NCOPS_LAUNCH(last_block_kernel, dim3(unsigned(blocks)), dim3(32), 0, nullptr, x, partial, arrived, sum);
}

template <class T>
__global__ void convert_kernel(const float* __restrict__ x, T* __restrict__ y, float* __restrict__ back, int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  y[i] = T(x[i]);
  back[i] = float(y[i]);
}

template <class T>
cudaError_t convert(const float* x, T* y, float* back, int64_t n) {
  return NCOPS_LAUNCH(convert_kernel<T>, dim3(unsigned((n + 255) / 256)), dim3(256), 0, nullptr, x, y, back, n);
}

// out is (8, n): per-thread functions of pairs.
__global__ void scalar_functions_kernel(const float* __restrict__ a, const float* __restrict__ b,
                                        float* __restrict__ out, int n) {
  const int i = int(threadIdx.x);
  if (i >= n) return;
  const float x = a[i], y = b[i];
  out[i] = min(x, y);
  out[n + i] = max(x, y);
  out[2 * n + i] = fmaf(x, y, 1.0f);
  out[3 * n + i] = __fadd_rn(__fmul_rn(x, y), 1.0f);  // rounded twice
  out[4 * n + i] = float(__clz(__float_as_int(x)));
  out[5 * n + i] = float(__popc(__float_as_uint(x)));
  out[6 * n + i] = expf(x);
  out[7 * n + i] = log1pf(fabsf(x));
}

inline cudaError_t scalar_functions(const float* a, const float* b, float* out, int n) {
  return NCOPS_LAUNCH(scalar_functions_kernel, dim3(1), dim3(64), 0, nullptr, a, b, out, n);
}

// All ldmatrix forms on a (32, 8) tile: out is (13, 32), the registers of x1, x2, x4, x2.trans, x4.trans.
__global__ void ldmatrix_kernel(const uint16_t* __restrict__ x, unsigned* __restrict__ out) {
  NCOPS_SHARED(uint16_t, tile, [32][8]);
  const int lane = int(threadIdx.x);
  for (int i = 0; i < 8; ++i) tile[lane][i] = x[lane * 8 + i];
  __syncthreads();
  uint32_t one[1], two[2], four[4], two_trans[2], four_trans[4];
  ncops::ldmatrix_x1(one, tile[lane]);
  ncops::ldmatrix_x2(two, tile[lane]);
  ncops::ldmatrix_x4(four, tile[lane]);
  ncops::ldmatrix_x2_trans(two_trans, tile[lane]);
  ncops::ldmatrix_x4_trans(four_trans, tile[lane]);
  int row = 0;
  const auto put = [&](uint32_t value) { out[32 * row++ + lane] = value; };
  put(one[0]);
  for (uint32_t value : two) put(value);
  for (uint32_t value : four) put(value);
  for (uint32_t value : two_trans) put(value);
  for (uint32_t value : four_trans) put(value);
}

inline cudaError_t ldmatrix(const uint16_t* x, unsigned* out) {
  return NCOPS_LAUNCH(ldmatrix_kernel, dim3(1), dim3(32), 0, nullptr, x, out);
}

}  // namespace selftest
