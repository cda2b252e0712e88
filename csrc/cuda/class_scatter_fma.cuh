// Tiles of class_scatter for float32 and float64: register tiles of plain multiply-adds, exact as torch's without tf32.
//
// Included by class_scatter.cuh. 256 threads, 8 x 8 products each (4 x 4 for the 64-wide tiles), two stages of shared
// memory. Per row of a stage a thread reads 16 numbers for 64 multiply-adds: the multiply-add pipe is the limit, not
// shared memory. The chain of a register ends every 256 rows and joins the block's partial tile in global memory, as
// registers are full: 128 KB of L2 traffic per 4.2 M multiply-adds, 4 bytes a clock per multiprocessor.
#pragma once

namespace ncops::cuda {

template <class T, int kTile, bool vectors>
static __global__ void __launch_bounds__(kScatterThreads, vectors ? 2 : 1)
    scatter_fma_kernel(RowsView<T> x, Centers<T> centers, int side, int64_t chunk_rows, T* partial) {
  // A thread stages V columns a side; its products are groups of V, kStep apart.
  constexpr int V = kVector<T>, kPerRow = kTile / V, kRows = kScatterThreads / kPerRow;
  constexpr int kOwn = kTile / 16, kGroups = kOwn / V, kStep = kTile / kGroups;
  NCOPS_SHARED(T, stages, [2][2][kRows][kTile]);  // [buffer][side][row][feature]
  const ScatterBlock block(kTile, side, chunk_rows, x, &centers.labels);
  const int t = int(threadIdx.x), lane = t % 32, warp = t / 32;
  const int k = t / kPerRow, c = t % kPerRow * V;
  // A warp covers 4 x 8 threads of the 16 x 16, so that its reads of one side are 64 and 128 bytes in a row: no bank
  // conflicts.
  const int ty = warp / 2 * 4 + lane / 8, tx = warp % 2 * 8 + lane % 8;
  const int right = block.diagonal ? 0 : 1;

  // One side after the other, so that registers hold 2 V numbers under way and not 4 V.
  StagedRow<T, V> staged;
  int label = label_of(centers, k, block.rows);
  const auto fetch = [&](int which, int row) {
    staged.template fetch<vectors>(x, centers, row + k, label, (which == 0 ? block.row : block.col) + c);
  };
  const auto store = [&](int which, int buffer) {
    T r[V];
    staged.deviations(r);
    store_columns(&stages[buffer][which][k][c], r);
  };

  T sum[kOwn][kOwn] = {};
  const auto join = [&](bool fresh) {  // the chain ends: into the partial tile, which no other block touches
    T* const own = partial + (int64_t(blockIdx.y) * gridDim.x + blockIdx.x) * (kTile * kTile) + ty * V * kTile + tx * V;
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        T* p = own + (i / V * kStep + i % V) * kTile + g * kStep;
        T v[V] = {};
        if (!fresh) load_columns(v, p);
#pragma unroll
        for (int j = 0; j < V; ++j) v[j] += sum[i][g * V + j], sum[i][g * V + j] = 0;
        store_columns(p, v);
      }
  };
  const auto multiply = [&](int buffer, int i) {
    T a[kOwn], b[kOwn];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      T v[V];
      load_columns(v, &stages[buffer][0][i][g * kStep + ty * V]);
#pragma unroll
      for (int j = 0; j < V; ++j) a[g * V + j] = v[j];
      load_columns(v, &stages[buffer][right][i][g * kStep + tx * V]);
#pragma unroll
      for (int j = 0; j < V; ++j) b[g * V + j] = v[j];
    }
#pragma unroll
    for (int p = 0; p < kOwn; ++p)
#pragma unroll
      for (int q = 0; q < kOwn; ++q) sum[p][q] += a[p] * b[q];
  };

  if (block.rows > 0) {
    fetch(0, 0), store(0, 0);
    if (!block.diagonal) fetch(1, 0), store(1, 0);
    label = label_of(centers, kRows + k, block.rows);
  }
  __syncthreads();
  int row = 0, buffer = 0;
  do {
    const int stop = min(row + kChainRows, block.rows);
    const bool first = row == 0;
    for (; row < stop; row += kRows, buffer ^= 1) {
      const bool more = row + kRows < block.rows;
      if (more) fetch(0, row + kRows);
#pragma unroll 1  // unrolled, ptxas fetches ahead beyond 128 registers; four warps a scheduler hide the reads
      for (int i = 0; i < kRows / 2; ++i) multiply(buffer, i);
      if (more) {
        store(0, buffer ^ 1);
        if (!block.diagonal) fetch(1, row + kRows);
        label = label_of(centers, row + 2 * kRows + k, block.rows);
      }
#pragma unroll 1
      for (int i = kRows / 2; i < kRows; ++i) multiply(buffer, i);
      if (more && !block.diagonal) store(1, buffer ^ 1);
      if (!NCOPS_DEFECT(scatter_no_barrier_between_stages)) __syncthreads();
    }
    join(first);
  } while (row < block.rows);
}

template <int kTile, class T>
void launch_fma(const RowsView<T>& x, const Centers<T>& centers, const ScatterPlan& plan, bool vectors, T* partial,
                cudaStream_t stream) {
  const dim3 grid{unsigned(plan.tiles), unsigned(plan.chunks)};
  const auto run = [&](auto fits) {
    NCOPS_START("class_scatter", (scatter_fma_kernel<T, kTile, decltype(fits)::value>), grid, dim3(kScatterThreads), 0,
                stream, x, centers, int(plan.side), plan.chunk_rows, partial);
  };
  if (vectors) run(std::true_type());
  else run(std::false_type());
}

}  // namespace ncops::cuda
