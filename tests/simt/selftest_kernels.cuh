// Small kernels of the kinds that the library has, each with defects to plant: what the harness must be able to find.
#pragma once

#include "cuda/device.cuh"
#include "cuda/ptx.cuh"

namespace selftest {

// ---- Sum of each row by a block: shuffles, then one value per warp through shared memory.
__global__ void row_sums_kernel(const float* __restrict__ x, float* __restrict__ sums, int64_t dim) {
  NCOPS_SHARED(float, partial, [32]);
  const float* row = x + blockIdx.x * dim;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int64_t end = dim + NCOPS_DEFECT(global_overrun);
  float sum = 0;
  for (int64_t i = threadIdx.x; i < end; i += blockDim.x) sum += __ldg(row + i);
  if (!(NCOPS_DEFECT(divergent_shuffle) && lane >= 20)) {
#pragma unroll
    for (int offset = 16; offset; offset /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);  // line: divergent shuffle
    }
  }
  if (lane == 0) partial[warp] = sum;
  if (!NCOPS_DEFECT(no_barrier_before_read)) __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (unsigned w = 0; w < warps; ++w) {
      total += partial[NCOPS_DEFECT(shared_overrun) ? w + 31 : w];  // line: partial sums
    }
    sums[blockIdx.x] = total;
  }
}

inline cudaError_t row_sums(const float* x, float* sums, int64_t rows, int64_t dim, cudaStream_t stream) {
  return NCOPS_LAUNCH(row_sums_kernel, dim3(unsigned(rows)), dim3(64), 0, stream, x, sums, dim);
}

// ---- Histogram of labels: counts of a block in dynamic shared memory, then added to the global ones.
__global__ void histogram_kernel(const int64_t* __restrict__ labels, int* counts, int64_t n, int bins) {
  NCOPS_SHARED_DYNAMIC(int, local);
  const int tid = int(threadIdx.x);
  for (int b = tid; b < bins + NCOPS_DEFECT(shared_overrun_write); b += int(blockDim.x)) local[b] = 0;
  __syncthreads();
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + tid;
  if (i < n) {
    if (NCOPS_DEFECT(shared_not_atomic)) {
      ++local[labels[i]];  // line: shared update
    } else {
      atomicAdd(&local[labels[i]], 1);
    }
  }
  __syncthreads();
  for (int b = tid; b < bins; b += int(blockDim.x)) {
    if (NCOPS_DEFECT(blocks_race)) {
      counts[b] += local[b];  // line: global update
    } else {
      atomicAdd(&counts[b], local[b]);
    }
  }
  if (NCOPS_DEFECT(global_overrun_write) && blockIdx.x == 0 && tid == 0) counts[bins] = 1;
}

inline cudaError_t histogram(const int64_t* labels, int* counts, int64_t n, int bins, cudaStream_t stream) {
  const unsigned threads = 96;
  return NCOPS_LAUNCH(histogram_kernel, dim3(unsigned((n + threads - 1) / threads)), dim3(threads),
                      sizeof(int) * size_t(bins), stream, labels, counts, n, bins);
}

// ---- C = A B^T, 16 x 16 of C per block of 256 threads, tiles of depth 16.
__global__ void tiled_product_kernel(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c,
                                     int depth) {
  NCOPS_SHARED(float, tile_a, [16][17]);
  NCOPS_SHARED(float, tile_b, [16][17]);
  const int tx = int(threadIdx.x), ty = int(threadIdx.y), n = int(gridDim.x) * 16;
  const int64_t row = int64_t(blockIdx.y) * 16 + ty, column = int64_t(blockIdx.x) * 16 + tx;
  float sum = 0;
  for (int k = 0; k < depth; k += 16) {
    tile_a[ty][tx] = a[row * depth + k + tx];
    tile_b[ty][tx] = b[(int64_t(blockIdx.x) * 16 + ty) * depth + k + tx];
    __syncthreads();
    for (int i = 0; i < 16; ++i) sum = fmaf(tile_a[ty][i], tile_b[tx][i], sum);
    if (!NCOPS_DEFECT(no_barrier_after_tile)) __syncthreads();
  }
  c[row * n + column] = sum;
}

inline cudaError_t tiled_product(const float* a, const float* b, float* c, int m, int n, int depth,
                                 cudaStream_t stream) {
  return NCOPS_LAUNCH(tiled_product_kernel, dim3(unsigned(n / 16), unsigned(m / 16)), dim3(16, 16), 0, stream, a, b, c,
                      depth);
}

// ---- C = A B^T on tensor cores: two warps, each 16 x 16 of C; cp.async into two buffers, ldmatrix, mma.
template <class T>
__global__ void __launch_bounds__(64) tensor_product_kernel(const T* __restrict__ a, const T* __restrict__ b,
                                                            float* __restrict__ c, int m, int depth) {
  constexpr int pitch = 24;  // 16 columns and 8 of padding: rows 48 bytes apart
  NCOPS_SHARED(T, tile_a, [2][32 * pitch]);
  NCOPS_SHARED(T, tile_b, [2][16 * pitch]);
  const int tid = int(threadIdx.x), lane = tid % 32, warp = tid / 32, n = int(gridDim.x) * 16;
  const int64_t first_row = int64_t(blockIdx.y) * 32, first_column = int64_t(blockIdx.x) * 16;
  const auto fill = [&](int buffer, int k) {
    const int row = tid / 2, part = tid % 2 * 8;
    const bool exists = first_row + row < m;  // rows past the end are zeros
    const T* from = exists ? a + (first_row + row) * depth + k + part : a;
    ncops::cp_async16(&tile_a[buffer][row * pitch + part], from, exists);
    if (tid < 32) {
      ncops::cp_async16(&tile_b[buffer][row * pitch + part], b + (first_column + row) * depth + k + part, true);
    }
    ncops::cp_async_commit();
  };
  float sums[2][4] = {};
  fill(0, 0);
  for (int k = 0, buffer = 0; k < depth; k += 16, buffer ^= 1) {
    if (k + 16 < depth) {
      fill(buffer ^ 1, k + 16);
      if (NCOPS_DEFECT(weak_async_wait)) {
        ncops::cp_async_wait<2>();
      } else {
        ncops::cp_async_wait<1>();
      }
    } else {
      ncops::cp_async_wait<0>();
    }
    __syncthreads();
    uint32_t left[4], right[4];
    const int matrix = lane / 8, row = lane % 8;
    // Matrices of a by (row, column): (0, 0), (8, 0), (0, 8), (8, 8); of b: (0, 0), (0, 8), (8, 0), (8, 8).
    const int low = (NCOPS_DEFECT(fragment_order) ? matrix / 2 : matrix % 2) * 8;
    const int column = (NCOPS_DEFECT(fragment_order) ? matrix % 2 : matrix / 2) * 8;
    ncops::ldmatrix_x4(left, &tile_a[buffer][(warp * 16 + low + row) * pitch + column]);
    ncops::ldmatrix_x4(right, &tile_b[buffer][(matrix / 2 * 8 + row) * pitch + matrix % 2 * 8]);
    for (int half = 0; half < 2; ++half) {
      const uint32_t operand[2] = {right[2 * half], right[2 * half + 1]};
      ncops::mma_m16n8k16<T>(sums[half], left, operand);
    }
    if (!NCOPS_DEFECT(no_barrier_before_refill)) __syncthreads();
  }
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 4; ++i) {
      const int quad = NCOPS_DEFECT(accumulator_index) ? 3 - lane % 4 : lane % 4;
      const int64_t row = first_row + warp * 16 + lane / 4 + i / 2 * 8;
      if (row < m) c[row * n + first_column + half * 8 + quad * 2 + i % 2] = sums[half][i];
    }
  }
}

template <class T>
cudaError_t tensor_product(const T* a, const T* b, float* c, int m, int n, int depth, cudaStream_t stream) {
  return NCOPS_LAUNCH(tensor_product_kernel<T>, dim3(unsigned(n / 16), unsigned((m + 31) / 32)), dim3(64), 0, stream, a,
                      b, c, m, depth);
}

// ---- Each warp reverses its 32 values through shared memory.
__global__ void reverse_warps_kernel(const int* __restrict__ x, int* __restrict__ y) {
  NCOPS_SHARED(int, values, [128]);
  const unsigned lane = threadIdx.x % 32, start = threadIdx.x - lane;
  values[threadIdx.x] = x[threadIdx.x];
  if (!NCOPS_DEFECT(no_syncwarp)) __syncwarp();
  y[threadIdx.x] = values[start + 31 - lane];
}

inline cudaError_t reverse_warps(const int* x, int* y, cudaStream_t stream) {
  return NCOPS_LAUNCH(reverse_warps_kernel, dim3(1), dim3(128), 0, stream, x, y);
}

}  // namespace selftest
