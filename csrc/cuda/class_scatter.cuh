// class_scatter: the upper triangle of sum r r^T over rows r = x - centre, in tiles; centring is fused into the loads.
//
// Rows are cut into chunks whose number depends on the shape alone; a block owns one tile of one chunk and leaves it in
// the workspace. Features are contiguous in a row, so both operands of the product r^T r are read as they lie in
// memory. The chunks are merged in order and mirrored by a second kernel.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "launch_error.h"
#include "load.cuh"

namespace ncops::cuda {

constexpr int kScatterThreads = 256;
constexpr int kChainRows = 256;  // longest float32 chain of plain multiply-adds: longer ones lose torch's accuracy

struct ScatterPlan {
  int tile;
  int64_t side, tiles, chunks, chunk_rows;  // tiles per side and in the upper triangle; whole chains per chunk
  size_t bytes;                             // of partial tiles

  ScatterPlan(DType dtype, int64_t rows, int64_t dim) {
    const size_t element = dtype == DType::f64 ? 8 : 4;
    const bool half = dtype == DType::bf16 || dtype == DType::f16;
    tile = half || (dtype == DType::f32 && dim > 256) ? 128 : 64;
    side = (dim + tile - 1) / tile;
    tiles = side * (side + 1) / 2;
    const size_t chunk_bytes = size_t(tiles) * tile * tile * element;
    // 8 D x D float32, or 4 MB where that is more: 64 features in 8 chunks would keep 8 of 132 multiprocessors busy.
    const size_t limit = std::max(size_t(8) * dim * dim * 4, size_t(4) << 20);
    const int64_t most = chunk_bytes == 0 ? 1 : int64_t(limit / chunk_bytes);
    const int64_t wanted = tiles == 0 ? 1 : (1024 + tiles - 1) / tiles;  // several waves on any device
    const int64_t chains = std::max<int64_t>(1, (rows + kChainRows - 1) / kChainRows);
    chunks = std::max<int64_t>(1, std::min({most, wanted, chains}));
    chunks = std::max(chunks, rows >> 30);  // rows of a chunk are counted in 32 bits
    chunk_rows = (chains + chunks - 1) / chunks * kChainRows;
    chunks = std::max<int64_t>(1, (rows + chunk_rows - 1) / chunk_rows);
    bytes = chunks * chunk_bytes;
  }
};

template <class T>
struct Centers {
  const T* data;          // (C, D) with labels, else (D) or null
  const int64_t* labels;  // (N), or null
  int64_t num_classes, ignore_index;
};

// The block's tile (blockIdx.x runs along the rows of the upper triangle) and its rows (blockIdx.y is the chunk).
// Numbers inside a block have 32 bits, for want of registers: 64 of 128 hold sums.
struct ScatterBlock {
  int row, col;   // first features of the tile on either side
  int rows;       // of this chunk
  bool diagonal;  // both sides are the same features

  // Moves x and the labels to the chunk's first row.
  template <class In>
  __device__ __forceinline__ ScatterBlock(int tile, int side, int64_t chunk_rows, RowsView<In>& x,
                                          const int64_t** labels) {
    int i = 0, rest = int(blockIdx.x);
    while (rest >= side - i) rest -= side - i++;
    row = i * tile, col = (i + rest) * tile, diagonal = rest == 0;
    const int64_t begin = int64_t(blockIdx.y) * chunk_rows;
    rows = int(max(int64_t(0), min(x.rows - begin, chunk_rows)));
    x.data += begin * x.row_stride;
    if (labels != nullptr && *labels != nullptr) *labels += begin;
  }
};

// One row's columns on their way to shared memory: x and its centre, subtracted when both have arrived.
template <class In, int V>
struct StagedRow {
  In x[V];
  Compute<In> center[V];

  // label: of the row, -1 where it does not count; read half a stage earlier, as the centre's address depends on it.
  // Such rows give zeros, and so do columns beyond D.
  template <bool vectors>
  __device__ __forceinline__ void fetch(const RowsView<In>& from, const Centers<Compute<In>>& centers, int row,
                                        int64_t label, int col) {
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = In(0.0f), center[j] = 0;
    if (label < 0) return;
    const Compute<In>* c = centers.data == nullptr ? nullptr : centers.data + label * from.dim + col;
    if constexpr (vectors) {
      if (col >= from.dim) return;
      load_columns(x, from.at(row, col));
      if (c != nullptr) load_columns(center, c);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j)
        if (col + j < from.dim) {
          x[j] = *from.at(row, col + j);
          if (c != nullptr) center[j] = c[j];
        }
    }
  }
  __device__ __forceinline__ void deviations(Compute<In> (&r)[V]) const {
#pragma unroll
    for (int j = 0; j < V; ++j) r[j] = to_compute(x[j]) - center[j];
  }
};

// The label of a row; 0 where there are no labels, -1 for a row that does not count.
template <class T>
__device__ __forceinline__ int label_of(const Centers<T>& centers, int row, int rows) {
  if (row >= rows + NCOPS_DEFECT(scatter_row_overrun)) return -1;
  if (centers.labels == nullptr) return 0;
  const int64_t label = centers.labels[row];
  return label < 0 || label >= centers.num_classes || label == centers.ignore_index ? -1 : int(label);
}

}  // namespace ncops::cuda

#include "class_scatter_fma.cuh"
#include "class_scatter_mma.cuh"

namespace ncops::cuda {

// Chunks in order, in float64, and the lower triangle from the upper one. A block takes 32 x 32 elements at and above
// the diagonal, and writes them and their mirror image through shared memory.
template <class T>
static __global__ void __launch_bounds__(256)
    merge_tiles_kernel(const T* partial, int64_t dim, int tile, int64_t side, int64_t tiles, int64_t chunks, T* out) {
  NCOPS_SHARED(T, block, [32][33]);
  const int64_t i0 = int64_t(blockIdx.y) * 32, j0 = int64_t(blockIdx.x) * 32;
  if (i0 > j0) return;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t ti = i0 / tile, tj = j0 / tile, index = ti * side - ti * (ti - 1) / 2 + tj - ti;
  const int64_t size = int64_t(tile) * tile;
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    const int row = warp + 8 * u;
    const T* p = partial + index * size + (i0 % tile + row) * tile + j0 % tile + lane;
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += double(p[chunk * tiles * size]);
    block[row][lane] = T(total);
  }
  __syncthreads();
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    const int row = warp + 8 * u;
    const T own = i0 < j0 || row <= lane ? block[row][lane] : block[lane][row];
    if (i0 + row < dim && j0 + lane < dim) out[(i0 + row) * dim + j0 + lane] = own;
    if (i0 < j0 && j0 + row < dim && i0 + lane < dim) out[(j0 + row) * dim + i0 + lane] = block[lane][row];
  }
}

template <class In>
void launch_class_scatter(const ClassScatterArgs& args) {
  using T = Compute<In>;
  const auto stream = static_cast<cudaStream_t>(args.stream);
  const RowsView<In> x(args.x);
  if (x.dim == 0) return;
  const ScatterPlan plan(args.x.dtype, x.rows, x.dim);
  const Centers<T> centers{static_cast<const T*>(args.center), args.labels, args.num_classes, args.ignore_index};
  T* const partial = static_cast<T*>(args.workspace);
  const bool vectors = vectors_fit<In>(args.x) && aligned16(args.center);
  if constexpr (sizeof(In) == 2) launch_mma(x, centers, plan, vectors, partial, stream);
  else if (plan.tile == 64) launch_fma<64>(x, centers, plan, vectors, partial, stream);
  else if constexpr (sizeof(In) == 4) launch_fma<128>(x, centers, plan, vectors, partial, stream);
  const unsigned blocks = unsigned((x.dim + 31) / 32);
  NCOPS_START("class_scatter", merge_tiles_kernel<T>, dim3(blocks, blocks), dim3(256), 0, stream, partial, x.dim,
              plan.tile, plan.side, plan.tiles, plan.chunks, static_cast<T*>(args.out));
}

}  // namespace ncops::cuda
