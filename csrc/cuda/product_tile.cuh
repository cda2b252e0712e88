// Tiles of X Wᵀ for an epilogue that wants them in registers: tensor cores for half and bfloat16, plain multiply-adds for
// float and double. One stream of tiles per block, fed by cp.async some steps ahead, across the borders of tiles too: while
// the epilogue of a tile runs, the next one's first steps arrive.
//
// Every element of a tile is summed in the same order wherever it lies in a tile, so a logit computed twice has the same
// bits: target_rank counts strictly greater ones.
#pragma once

#include "load.cuh"
#include "ptx.cuh"

namespace ncops::cuda {

constexpr int kTileThreads = 256;

// 128 x 128 by eight warps of 32 x 64. A thread holds 4 rows (two in each of two fragments) of 16 columns; the 4 lanes of a
// quad share them. Rows of 64 elements lie in shared memory without padding, their 16-byte chunks permuted by the row, so
// that ldmatrix reads eight rows from eight different groups of banks.
template <class E>
struct MmaTile {
  using Element = E;
  using T = float;
  static constexpr int kRows = 128, kCols = 128, kDepth = 64, kStages = 3;
  static constexpr int kThreadRows = 4, kThreadCols = 16, kLanes = 4, kParts = 2;  // parts: warps side by side on a row
  static constexpr int kPitch = kDepth;

  float sums[2][8][4];

  static __device__ __forceinline__ int place(int row, int chunk) { return row * kPitch + (chunk ^ row % 8) * kVector<E>; }
  static __device__ __forceinline__ int lane() { return int(threadIdx.x) % 32; }
  static __device__ __forceinline__ int first_row() { return int(threadIdx.x) / 64 * 32; }  // of the warp
  static __device__ __forceinline__ int part() { return int(threadIdx.x) / 32 % 2; }
  static __device__ __forceinline__ int row(int i) { return first_row() + i / 2 * 16 + i % 2 * 8 + lane() / 4; }
  static __device__ __forceinline__ int col(int j) { return part() * 64 + j / 2 * 8 + lane() % 4 * 2 + j % 2; }
  __device__ __forceinline__ float at(int i, int j) const { return sums[i / 2][j / 2][i % 2 * 2 + j % 2]; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (auto& fragments : sums)
#pragma unroll
      for (auto& fragment : fragments)
#pragma unroll
        for (float& v : fragment) v = 0;
  }

  __device__ __forceinline__ void multiply(const E* x, const E* w, int64_t) {
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      uint32_t a[2][4], b[4][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) ldmatrix_x4(a[m], x + place(first_row() + m * 16 + lane() % 16, 2 * k + lane() / 16));
#pragma unroll
      for (int n = 0; n < 4; ++n)
        ldmatrix_x4(b[n], w + place(part() * 64 + n * 16 + lane() / 16 * 8 + lane() % 8, 2 * k + lane() / 8 % 2));
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const int half = NCOPS_DEFECT(linear_wrong_fragment) ? 1 - n % 2 : n % 2;
          const uint32_t column[2] = {b[n / 2][2 * half], b[n / 2][2 * half + 1]};
          mma_m16n8k16<E>(sums[m][n], a[m], column);
        }
    }
  }
  __device__ __forceinline__ void finish() {}
};

// 16 x 16 threads, R x R elements each: 128 x 128 for float, 64 x 64 for double. Rows of 16 elements keep 16 bytes of padding:
// a quarter of a warp then reads 16 bytes of eight rows from eight different groups of banks.
template <class E>
struct FmaTile {
  using Element = E;
  using T = E;
  static constexpr int R = sizeof(E) == 4 ? 8 : 4;
  static constexpr int kRows = 16 * R, kCols = 16 * R, kDepth = 16, kStages = 4;
  static constexpr int kThreadRows = R, kThreadCols = R, kLanes = 16, kParts = 1;
  static constexpr int kPitch = kDepth + kVector<E>;
  // float32 sums of long rows are chains of 256, added up: torch's accuracy at any depth (the CPU kernels do the same).
  static constexpr int kChain = sizeof(E) == 4 ? 256 / kDepth : 0;

  E sums[R][R], chain[R][R];

  static __device__ __forceinline__ int place(int row, int chunk) { return row * kPitch + chunk * kVector<E>; }
  static __device__ __forceinline__ int part() { return 0; }
  static __device__ __forceinline__ int row(int i) { return i * 16 + int(threadIdx.x) / 16; }
  static __device__ __forceinline__ int col(int j) { return j * 16 + int(threadIdx.x) % 16; }
  __device__ __forceinline__ E at(int i, int j) const { return sums[i][j]; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
      for (int j = 0; j < R; ++j) sums[i][j] = chain[i][j] = 0;
  }

  __device__ __forceinline__ void multiply(const E* x, const E* w, int64_t step) {
    constexpr int V = kVector<E>;
    auto& into = kChain > 0 ? chain : sums;
#pragma unroll
    for (int chunk = 0; chunk < kDepth / V; ++chunk) {
      E a[R][V];
#pragma unroll
      for (int i = 0; i < R; ++i) load_columns(a[i], x + place(row(i), chunk));
#pragma unroll
      for (int j = 0; j < R; ++j) {
        E b[V];
        load_columns(b, w + place(col(j), chunk));
#pragma unroll
        for (int k = 0; k < V; ++k)
#pragma unroll
          for (int i = 0; i < R; ++i) into[i][j] = fma(a[i][k], b[k], into[i][j]);
      }
    }
    if constexpr (kChain > 0)
      if (step % kChain == kChain - 1) close_chain();
  }
  __device__ __forceinline__ void finish() {
    if constexpr (kChain > 0) close_chain();
  }

 private:
  __device__ __forceinline__ void close_chain() {
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
      for (int j = 0; j < R; ++j) sums[i][j] += chain[i][j], chain[i][j] = 0;
  }
};

template <class Tile> constexpr int kStageElements = (Tile::kRows + Tile::kCols) * Tile::kPitch;
template <class Tile>
constexpr size_t kTileBytes = size_t(Tile::kStages) * kStageElements<Tile> * sizeof(typename Tile::Element);

// Copies kDepth columns from `depth` on of Lines rows into a stage; row_of(line) is the row, or negative: zeros.
// Async: rows are vectors of 16 bytes. Else any strides and depths, element by element.
template <class Tile, bool Async, int Lines, class E, class RowOf>
__device__ __forceinline__ void fill_stage(E* stage, const RowsView<E>& rows, int64_t depth, RowOf row_of) {
  constexpr int V = kVector<E>, kChunks = Tile::kDepth / V;
  static_assert(Lines * kChunks % kTileThreads == 0, "every thread copies as many chunks");
  const auto copy = [&](int i) {
    const int at = i * kTileThreads + int(threadIdx.x), line = at / kChunks, chunk = at % kChunks;
    const int64_t row = row_of(line), col = depth + chunk * V;
    E* const to = stage + Tile::place(line, chunk);
    if constexpr (Async) {
      const bool inside = row >= 0 && col < rows.dim;
      cp_async16(to, inside ? rows.at(row, col) : rows.data, inside);
    } else {
      Packet<E> packet{};
#pragma unroll
      for (int j = 0; j < V; ++j)
        if (row >= 0 && col + j < rows.dim) packet.v[j] = *rows.at(row, col + j);
      *reinterpret_cast<Packet<E>*>(to) = packet;
    }
  };
  constexpr int kCopies = Lines * kChunks / kTileThreads;
  if constexpr (Async) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) copy(i);
  } else {
#pragma unroll 1
    for (int i = 0; i < kCopies; ++i) copy(i);  // unrolled, single elements under way take more registers than there are
  }
}

// Runs epilogue(n, tile) for the tiles n in [begin, end) of x's rows `first_row` to first_row + kRows - 1 and the rows
// column_row(n, line) of w (negative: none). All 256 threads; ends with every copy landed and every thread past its reads.
template <class Tile, bool Async, class E, class ColumnRow, class Epilogue>
__device__ __forceinline__ void for_each_tile(E* shared, const RowsView<E>& x, int64_t first_row, const RowsView<E>& w,
                                              int64_t begin, int64_t end, ColumnRow column_row, Epilogue epilogue) {
  constexpr int kStages = Tile::kStages, kStage = kStageElements<Tile>, kSecond = Tile::kRows * Tile::kPitch;
  const int64_t steps = x.dim == 0 ? 1 : (x.dim + Tile::kDepth - 1) / Tile::kDepth;
  int64_t filled_tile = begin, filled_step = 0;
  int filled_stage = 0;
  const auto fill = [&] {
    if (filled_tile < end) {
      E* const stage = shared + filled_stage * kStage;
      const int64_t depth = filled_step * Tile::kDepth;
      fill_stage<Tile, Async, Tile::kRows>(stage, x, depth, [&](int line) {
        return first_row + line < x.rows ? first_row + line : int64_t(-1);
      });
      fill_stage<Tile, Async, Tile::kCols>(stage + kSecond, w, depth, [&](int line) { return column_row(filled_tile, line); });
      filled_stage = filled_stage + 1 == kStages ? 0 : filled_stage + 1;
      if (++filled_step == steps) filled_step = 0, ++filled_tile;
    }
    cp_async_commit();  // empty groups too: the count of groups is the count of steps
  };
  for (int i = 0; i < kStages - 1; ++i) fill();
  Tile tile;
  int stage = 0;
  for (int64_t n = begin; n < end; ++n) {
    tile.clear();
    for (int64_t step = 0; step < steps; ++step) {
      if (NCOPS_DEFECT(linear_weak_wait)) cp_async_wait<kStages - 1>();
      else cp_async_wait<kStages - 2>();
      // This step has arrived for all, and all have read the step before, whose stage is filled next.
      if (!NCOPS_DEFECT(linear_missing_sync)) __syncthreads();
      fill();
      tile.multiply(shared + stage * kStage, shared + stage * kStage + kSecond, step);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    tile.finish();
    epilogue(n, tile);
  }
  cp_async_wait<0>();
  __syncthreads();
}

}  // namespace ncops::cuda
