// Tiles of class_scatter for bfloat16 and float16 on tensor cores, accumulated in float32.
//
// Included by class_scatter.cuh. 128 x 128 tiles, 8 warps of 64 x 32. Without centres the input is the operand, exact,
// and goes to shared memory by cp.async. A deviation x - centre is a float32: rounded to bfloat16 its product would be
// off by 2^-8, and in two bfloat16 parts one row alone by 2^-16, where the bound is 8 eps = 2^-20. So it is split into
// three parts, which hold all 24 bits, and six products: those left out are below 2^-25. That is 6 tensor operations
// against 15 times the multiply-add rate.
//
// Tensor cores truncate where they accumulate (Fasi et al., PeerJ CS 7:e330), which adds up to a bias in sums of
// squares: a chain is at most 64 rows here, and chains are added by ordinary rounded additions. Both sums stay in
// registers (128 of them, so one block a multiprocessor): adding them up in L2 as the multiply-add tiles do would ask
// for 78 bytes a clock.
#pragma once

#include "ptx.cuh"

namespace ncops::cuda {

// 272 bytes a row of shared memory: the 8 rows of an ldmatrix touch all 32 banks once.
constexpr int kMmaTile = 128, kMmaPitch = kMmaTile + 8;

struct MmaTile {
  float sum[4][4][4] = {}, chain[4][4][4] = {};  // [16 rows][8 columns][fragment] of the warp's 64 x 32
  int row, col, lane;                            // first feature of the warp on either side

  __device__ __forceinline__ MmaTile()
      : row(int(threadIdx.x) / 32 / 4 * 64), col(int(threadIdx.x) / 32 % 4 * 32), lane(int(threadIdx.x) % 32) {}

  // 16 rows of either side, [row][feature] with kMmaPitch: transposed by ldmatrix into what the product wants.
  template <class Half>
  __device__ __forceinline__ void left(uint32_t (&a)[4][4], const Half* rows) const {
    const Half* p = rows + (lane / 16 * 8 + lane % 8) * kMmaPitch + row + lane / 8 % 2 * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) ldmatrix_x4_trans(a[i], p + 16 * i);
  }
  template <class Half>
  __device__ __forceinline__ void right(uint32_t (&b)[2][4], const Half* rows) const {
    const Half* p = rows + (lane / 8 % 2 * 8 + lane % 8) * kMmaPitch + col + lane / 16 * 8;
#pragma unroll
    for (int j = 0; j < 2; ++j) ldmatrix_x4_trans(b[j], p + 16 * j);
  }
  template <class Half>
  __device__ __forceinline__ void multiply(const uint32_t (&a)[4][4], const uint32_t (&b)[2][4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t columns[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
#pragma unroll
      for (int i = 0; i < 4; ++i) mma_m16n8k16<Half>(chain[i][j], a[i], columns);
    }
  }
  __device__ __forceinline__ void end_chain() {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int f = 0; f < 4; ++f) sum[i][j][f] += chain[i][j][f], chain[i][j][f] = 0;
  }
  __device__ __forceinline__ void store(float* tile) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          *reinterpret_cast<float2*>(tile + (row + 16 * i + 8 * h + lane / 4) * kMmaTile + col + 8 * j + lane % 4 * 2) =
              make_float2(sum[i][j][2 * h], sum[i][j][2 * h + 1]);
  }
};

// ---- no centre: stages of 32 rows, three on their way while one is multiplied (70 KB)

constexpr int kAsyncRows = 32, kAsyncStages = 4, kAsyncChain = 64;
constexpr int kAsyncSide = kAsyncRows * kMmaPitch;  // elements of one side of a stage
template <class Half> constexpr size_t kAsyncBytes = size_t(kAsyncStages) * 2 * kAsyncSide * sizeof(Half);

template <class Half, bool vectors>
static __global__ void __launch_bounds__(kScatterThreads)
    scatter_mma_kernel(RowsView<Half> x, int side, int64_t chunk_rows, float* partial) {
  NCOPS_SHARED_DYNAMIC(Half, stages);
  const ScatterBlock block(kMmaTile, side, chunk_rows, x, nullptr);
  const int t = int(threadIdx.x);
  const auto fill_side = [&](Half* to, int row, int col) {
#pragma unroll
    for (int u = 0; u < kAsyncRows * kMmaTile / 8 / kScatterThreads; ++u) {
      const int r = t / 16 + u * (kScatterThreads / 16), c = t % 16 * 8;
      if constexpr (vectors) {
        const bool inside = row + r < block.rows && col + c < x.dim;
        cp_async16(to + r * kMmaPitch + c, inside ? x.at(row + r, col + c) : x.data, inside);
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j)
          to[r * kMmaPitch + c + j] =
              row + r < block.rows && col + c + j < x.dim ? *x.at(row + r, col + c + j) : Half(0.0f);
      }
    }
  };
  const auto fill = [&](int stage) {
    const int row = stage * kAsyncRows;
    if (row < block.rows) {
      Half* to = stages + stage % kAsyncStages * 2 * kAsyncSide;
      fill_side(to, row, block.row);
      if (!block.diagonal) fill_side(to + kAsyncSide, row, block.col);
    }
    cp_async_commit();  // one group a stage, empty ones too: the wait below counts them
  };

  MmaTile product;
  const int count = (block.rows + kAsyncRows - 1) / kAsyncRows;
#pragma unroll
  for (int stage = 0; stage < kAsyncStages - 1; ++stage) fill(stage);
  for (int stage = 0; stage < count; ++stage) {
    if (NCOPS_DEFECT(scatter_wait_too_weak)) cp_async_wait<kAsyncStages - 1>();
    else cp_async_wait<kAsyncStages - 2>();
    __syncthreads();  // this stage is there for all, and all are done with the one before: its place is filled next
    fill(stage + kAsyncStages - 1);
    const Half* left = stages + stage % kAsyncStages * 2 * kAsyncSide;
    const Half* right = block.diagonal ? left : left + kAsyncSide;
#pragma unroll
    for (int k = 0; k < kAsyncRows; k += 16) {
      uint32_t a[4][4], b[2][4];
      product.left(a, left + k * kMmaPitch);
      product.right(b, right + k * kMmaPitch);
      product.template multiply<Half>(a, b);
    }
    if ((stage + 1) % (kAsyncChain / kAsyncRows) == 0) product.end_chain();
  }
  cp_async_wait<0>();
  product.end_chain();
  product.store(partial + (int64_t(blockIdx.y) * gridDim.x + blockIdx.x) * kMmaTile * kMmaTile);
}

// ---- centred: stages of 16 rows in three bfloat16 parts, two buffers (52 KB)

constexpr int kSplitRows = 16, kParts = 3;
constexpr int kSplitSide = kSplitRows * kMmaPitch;  // elements of one part of one side of a stage
constexpr size_t kSplitBytes = size_t(2) * 2 * kParts * kSplitSide * sizeof(__nv_bfloat16);

template <class In, bool vectors>
static __global__ void __launch_bounds__(kScatterThreads)
    scatter_split_mma_kernel(RowsView<In> x, Centers<float> centers, int side, int64_t chunk_rows, float* partial) {
  using Half = __nv_bfloat16;  // for float16 input too: its parts would underflow
  NCOPS_SHARED_DYNAMIC(Half, stages);  // [buffer][side][part][row][feature]
  const ScatterBlock block(kMmaTile, side, chunk_rows, x, &centers.labels);
  const int k = int(threadIdx.x) / 16, c = int(threadIdx.x) % 16 * 8;

  StagedRow<In, 8> staged;
  int label = label_of(centers, k, block.rows);
  const auto fetch = [&](int which, int row) {
    staged.template fetch<vectors>(x, centers, row + k, label, (which == 0 ? block.row : block.col) + c);
  };
  const auto store = [&](int which, int buffer) {
    Half* to = stages + (buffer * 2 + which) * kParts * kSplitSide + k * kMmaPitch + c;
    float r[8];
    staged.deviations(r);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      Packet<Half> packet;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        packet.v[j] = __float2bfloat16(r[j]);
        r[j] -= __bfloat162float(packet.v[j]);  // exact
      }
      *reinterpret_cast<Packet<Half>*>(to + part * kSplitSide) = packet;
    }
  };

  MmaTile product;
  if (block.rows > 0) {
    fetch(0, 0), store(0, 0);
    if (!block.diagonal) fetch(1, 0), store(1, 0);
    label = label_of(centers, kSplitRows + k, block.rows);
  }
  __syncthreads();
  int buffer = 0;
  for (int row = 0; row < block.rows; row += kSplitRows, buffer ^= 1) {
    const bool more = row + kSplitRows < block.rows;
    const Half* left = stages + buffer * 2 * kParts * kSplitSide;
    const Half* right = block.diagonal ? left : left + kParts * kSplitSide;
    uint32_t a[4][4], b[kParts][2][4];
    if (more) fetch(0, row + kSplitRows);
#pragma unroll
    for (int part = 0; part < kParts; ++part) product.right(b[part], right + part * kSplitSide);
    // Small products first: only the last is as large as the sum that is truncated.
#pragma unroll
    for (int p = kParts - 1; p >= 0; --p) {
      product.left(a, left + p * kSplitSide);
#pragma unroll
      for (int q = kParts - 1 - p; q >= 0; --q) product.template multiply<Half>(a, b[q]);
      if (p == 1 && more) {
        store(0, buffer ^ 1);
        if (!block.diagonal) fetch(1, row + kSplitRows);
        label = label_of(centers, row + 2 * kSplitRows + k, block.rows);
      }
    }
    product.end_chain();
    if (more && !block.diagonal) store(1, buffer ^ 1);
    __syncthreads();
  }
  product.store(partial + (int64_t(blockIdx.y) * gridDim.x + blockIdx.x) * kMmaTile * kMmaTile);
}

template <class In>
void launch_mma(const RowsView<In>& x, const Centers<float>& centers, const ScatterPlan& plan, bool vectors,
                float* partial, cudaStream_t stream) {
  const dim3 grid{unsigned(plan.tiles), unsigned(plan.chunks)}, block{kScatterThreads};
  const auto run = [&](auto fits) {
    constexpr bool v = decltype(fits)::value;
    if (centers.data == nullptr && centers.labels == nullptr)  // no classes at all: null too, and no row counts
      NCOPS_START("class_scatter", (scatter_mma_kernel<In, v>), grid, block, kAsyncBytes<In>, stream, x, int(plan.side),
                  plan.chunk_rows, partial);
    else
      NCOPS_START("class_scatter", (scatter_split_mma_kernel<In, v>), grid, block, kSplitBytes, stream, x, centers,
                  int(plan.side), plan.chunk_rows, partial);
  };
  if (vectors) run(std::true_type());
  else run(std::false_type());
}

}  // namespace ncops::cuda
