// class_moments and accumulate_class_moments_: a segmented reduction over rows sorted by class, in splits of fixed
// size.
//
// A block owns a split of sorted rows, whatever their classes, so a hot class costs no more per row than many small
// ones. A class inside a split is finished there; the two that a split's borders may cut leave partial sums, merged in
// order by a second kernel. Bits depend on the rows alone. One read of x decides the time: 4 to 8 independent 16-byte
// loads a lane keep 2 to 4 KB a warp under way, so the 16 to 24 warps that fit a multiprocessor 32 KB or more, where
// 3.3 TB/s over 132 multiprocessors at 600 ns of latency ask for 15 KB.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "sorted_labels.cuh"

namespace ncops::cuda {

constexpr int kMomentWarps = 8;     // most warps of a block; each takes every 8th slab of 32 vectors of columns
constexpr int kMostSplitRows = 256;  // also the longest float32 chain of a sum, as in the products of this library
// Rows loaded before the first is used. Also the squares of one float32 chain (32 at most), beyond which they are
// float64.
template <int V> constexpr int kRowsAhead = V == 8 ? 4 : 8;
constexpr uint32_t kSkip = ~0u;

enum class Moments { fresh, anchor, add };  // what becomes of a class: its results, its anchor, its running state

// Sorted rows per split: enough blocks for the device when there are few rows, few partial sums when there are many.
inline int split_rows(int64_t rows) {
  int size = 8;
  while (size < kMostSplitRows && rows > int64_t(size) * 1024) size *= 2;
  return size;
}

// Where a finished class goes.
template <Moments kind, class T>
struct MomentTarget {
  T* matrix;         // (C, D): fresh sums, or anchors to set
  double* sums;      // (C, D) running sums
  double* sqnorms;   // (C)

  template <class S>
  __device__ __forceinline__ T value(S sum, double inverse_n) const {
    return kind == Moments::anchor ? T(double(sum) * inverse_n) : T(sum);
  }
  template <int V, class S>
  __device__ __forceinline__ void add(int64_t at, const S (&sum)[V]) const {
    constexpr int step = V == 1 ? 1 : kVector<double>;
#pragma unroll
    for (int i = 0; i < V; i += step) {
      double total[step];
      load_columns(total, sums + at + i);
#pragma unroll
      for (int j = 0; j < step; ++j) total[j] += double(sum[i + j]);
      store_columns(sums + at + i, total);
    }
  }
  __device__ __forceinline__ void squares(int64_t c, double square) const {
    if constexpr (kind == Moments::fresh) sqnorms[c] = square;
    if constexpr (kind == Moments::add) sqnorms[c] += square;
  }
};

// Slot 2s holds the part of the class that enters split s from before, slot 2s + 1 of the one that leaves it behind.
template <class T>
struct MomentPartials {
  T* sums;          // (2 splits, D)
  double* squares;  // (2 splits)
};

// kind == anchor reads only rows of classes with no rows in the state (seen[c] == 0), about the origin.
template <class In, int V, Moments kind>
static __global__ void __launch_bounds__(32 * kMomentWarps, kind == Moments::add || sizeof(In) == 8 ? 2 : 3)
    reduce_sorted_rows_kernel(RowsView<In> x, SortedLabels sorted, int64_t num_classes, int split_rows,
                              const int64_t* seen, const Compute<In>* center,
                              MomentTarget<kind, Compute<In>> target, MomentPartials<Compute<In>> partials) {
  using T = Compute<In>;
  NCOPS_SHARED(uint32_t, row_of, [kMostSplitRows]);
  NCOPS_SHARED(uint32_t, class_of, [kMostSplitRows]);
  NCOPS_SHARED(double, squares, [kMostSplitRows][kMomentWarps]);  // by first row of a class in this split
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  const int64_t split = blockIdx.x, begin = split * split_rows, kept = sorted.starts[num_classes];
  if (begin >= kept) return;
  const int rows = int(min(int64_t(split_rows), kept - begin));
  int wanted = 0;
  for (int i = int(threadIdx.x); i < rows; i += int(blockDim.x)) {
    const uint32_t c = sorted.keys[begin + i];
    const bool take = kind != Moments::anchor || seen[c] == 0;
    class_of[i] = c;
    row_of[i] = take ? sorted.order[begin + i] : kSkip;
    wanted |= take;
  }
  if (!__syncthreads_or(wanted)) return;
  const bool enters = begin > 0 && sorted.keys[begin - 1] == class_of[0];
  const bool leaves = begin + rows < kept && sorted.keys[begin + rows] == class_of[rows - 1];

  for (int64_t slab = warp; slab * 32 * V < x.dim; slab += warps) {
    const int64_t col = (slab * 32 + lane) * V;
    const bool active = col < x.dim;
    uint32_t current = class_of[0];
    int first = 0;
    T sum[V] = {}, anchor[V] = {}, chain = 0;
    double square = 0;
    const auto enter_class = [&] {
      if (center != nullptr && active) load_columns<T, V>(anchor, center + int64_t(current) * x.dim + col);
    };
    const auto leave_class = [&](int end) {
      if (row_of[first] == kSkip) return;
      const bool entered = enters && first == 0, cut = entered || (leaves && end == rows);
      const int64_t at = int64_t(current) * x.dim + col;
      if (active && kind == Moments::add && !cut) {
        target.add(at, sum);
      } else if (active) {  // one store for both, or nvcc merges two into scalar ones
        const int64_t slot = 2 * split + (!entered && !NCOPS_DEFECT(moments_one_slot));
        T* const to = cut ? partials.sums + slot * x.dim + col : target.matrix + at;
        const double inverse_n = kind == Moments::anchor && !cut ? 1 / double(end - first) : 1;
        T value[V];
#pragma unroll
        for (int j = 0; j < V; ++j) value[j] = cut ? sum[j] : target.value(sum[j], inverse_n);
        store_columns(to, value);
      }
      if constexpr (kind != Moments::anchor) {
        square = warp_sum(square + double(chain));
        if (lane == 0) squares[first][warp] = slab == warp ? square : squares[first][warp] + square;
      }
    };
    enter_class();
    for (int i = 0; i < rows; i += kRowsAhead<V>) {
      In ahead[kRowsAhead<V>][V] = {};
#pragma unroll
      for (int u = 0; u < kRowsAhead<V>; ++u)
        if (i + u < rows && active && row_of[i + u] != kSkip) load_columns<In, V>(ahead[u], x.at(row_of[i + u], col));
#pragma unroll
      for (int u = 0; u < kRowsAhead<V>; ++u) {
        if (i + u >= rows) break;
        if (class_of[i + u] != current) {
          leave_class(i + u);
#pragma unroll
          for (int j = 0; j < V; ++j) sum[j] = 0;
          chain = 0, square = 0;
          first = i + u;
          current = class_of[first];
          enter_class();
        }
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const T deviation = to_compute(ahead[u][j]) - anchor[j];
          sum[j] += deviation;
          if constexpr (kind != Moments::anchor) chain += deviation * deviation;
        }
      }
      square += double(chain);
      chain = 0;
    }
    leave_class(rows);
  }
  if constexpr (kind != Moments::anchor) {
    if (!NCOPS_DEFECT(moments_squares_without_barrier)) __syncthreads();
    const int used = int(min(int64_t(warps), (x.dim + 32 * V - 1) / (32 * V)));
    for (int i = int(threadIdx.x); i < rows; i += int(blockDim.x)) {
      if (i > 0 && class_of[i] == class_of[i - 1]) continue;
      double total = 0;
      for (int w = 0; w < used; ++w) total += squares[i][w];
      if (enters && i == 0) partials.squares[2 * split] = total;
      else if (leaves && class_of[i] == class_of[rows - 1]) partials.squares[2 * split + 1] = total;
      else target.squares(class_of[i], total);
    }
  }
}

// A class that leaves split s behind, and began in it, is added up over its splits in order: by 8 warps, each its share
// of the splits (a hot class may fill all of them), then warp after warp. 128 columns a block.
template <class T, Moments kind>
static __global__ void __launch_bounds__(32 * kMomentWarps)
    merge_splits_kernel(SortedLabels sorted, int64_t dim, int64_t num_classes, int split_rows, const int64_t* seen,
                        MomentTarget<kind, T> target, MomentPartials<T> partials) {
  NCOPS_SHARED(double, totals, [kMomentWarps][128]);
  NCOPS_SHARED(double, squares, [kMomentWarps]);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t split = blockIdx.x, border = (split + 1) * split_rows, kept = sorted.starts[num_classes];
  if (border >= kept) return;
  const uint32_t c = sorted.keys[border - 1];
  if (sorted.keys[border] != c || int64_t(sorted.starts[c]) < border - split_rows) return;
  if (kind == Moments::anchor && seen[c] != 0) return;
  const int64_t stop = sorted.starts[c + 1], n = stop - sorted.starts[c];
  const int64_t length = (stop - 1) / split_rows - split + 1, share = (length + kMomentWarps - 1) / kMomentWarps;
  const int64_t from = min(length, warp * share), to = min(length, from + share);
  const auto slot = [&](int64_t e) { return e == 0 ? 2 * split + 1 : 2 * (split + e); };

  const int64_t columns = int64_t(blockIdx.y) * 128;
  double total[4] = {};
#pragma unroll 4
  for (int64_t e = from; e < to; ++e)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t col = columns + 32 * j + lane;
      if (col < dim) total[j] += double(partials.sums[slot(e) * dim + col]);
    }
#pragma unroll
  for (int j = 0; j < 4; ++j) totals[warp][32 * j + lane] = total[j];
  if (kind != Moments::anchor && blockIdx.y == 0) {
    double square = 0;
    for (int64_t e = from + lane; e < to; e += 32) square += partials.squares[slot(e)];
    square = warp_sum(square);
    if (lane == 0) squares[warp] = square;
  }
  __syncthreads();
  const int64_t col = columns + threadIdx.x;
  if (threadIdx.x < 128 && col < dim) {
    double sum[1] = {};
    for (int w = 0; w < kMomentWarps; ++w) sum[0] += totals[w][threadIdx.x];
    if constexpr (kind == Moments::add) target.add(int64_t(c) * dim + col, sum);
    else target.matrix[int64_t(c) * dim + col] = target.value(sum[0], 1 / double(n));
  }
  if (kind != Moments::anchor && blockIdx.y == 0 && threadIdx.x == 0) {
    double square = 0;
    for (int w = 0; w < kMomentWarps; ++w) square += squares[w];
    target.squares(c, square);
  }
}

// Counts of all classes, and zeros for those that do not occur: one warp a class. sums is written once per class by
// whoever owns it, never cleared first: with 50k classes of 4096 columns clearing would be half the time.
template <class T>
static __global__ void __launch_bounds__(32 * kMomentWarps)
    clear_absent_classes_kernel(const uint32_t* starts, int64_t num_classes, int64_t dim, int64_t* counts, T* sums,
                                double* sqnorms) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t c = int64_t(blockIdx.x) * kMomentWarps + threadIdx.x / 32;
  if (c >= num_classes) return;
  const int64_t n = int64_t(starts[c + 1]) - int64_t(starts[c]);
  if (lane == 0) counts[c] = n, sqnorms[c] = 0;
  if (n > 0) return;
  for (int64_t k = lane; k < dim; k += 32) sums[c * dim + k] = 0;
}

static __global__ void __launch_bounds__(kLabelThreads)
    add_counts_kernel(const uint32_t* starts, int64_t num_classes, int64_t* counts) {
  const int64_t c = int64_t(blockIdx.x) * kLabelThreads + threadIdx.x;
  if (c < num_classes && starts[c + 1] != starts[c]) counts[c] += int64_t(starts[c + 1]) - int64_t(starts[c]);
}

// The workspace, carved into arrays; sort_bytes is what the sort wants for itself.
struct MomentWorkspace {
  uint32_t *keys[2], *order[2], *starts, *invalid_parts;
  void *sort, *sums;
  double* squares;
  size_t bytes = 0;

  MomentWorkspace(void* base, DType dtype, int64_t rows, int64_t dim, int64_t num_classes, size_t sort_bytes) {
    const size_t splits = size_t((rows + split_rows(rows) - 1) / split_rows(rows));
    const auto carve = [&](auto*& pointer, size_t size) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(static_cast<char*>(base) + bytes);
      bytes += (size + 255) / 256 * 256;
    };
    for (auto& p : keys) carve(p, rows * sizeof(uint32_t));
    for (auto& p : order) carve(p, rows * sizeof(uint32_t));
    carve(starts, (num_classes + 1) * sizeof(uint32_t));
    carve(invalid_parts, label_blocks(rows) * sizeof(uint32_t));
    carve(squares, 2 * splits * sizeof(double));
    carve(sums, 2 * splits * dim * (dtype == DType::f64 ? sizeof(double) : sizeof(float)));
    carve(sort, sort_bytes);
  }
};

// Both passes over the sorted rows for one kind of target.
template <class In, Moments kind>
void launch_reduction(const Rows& rows, const SortedLabels& sorted, int64_t num_classes, const int64_t* seen,
                      const void* center, const MomentTarget<kind, Compute<In>>& target, const MomentWorkspace& work,
                      cudaStream_t stream) {
  using T = Compute<In>;
  const RowsView<In> x(rows);
  if (x.rows == 0 || x.dim == 0 || num_classes == 0) return;
  const int size = split_rows(x.rows);
  const int64_t splits = (x.rows + size - 1) / size;
  const T* anchors = static_cast<const T*>(center);
  const MomentPartials<T> partials{static_cast<T*>(work.sums), work.squares};
  const auto run = [&](auto width) {
    constexpr int V = decltype(width)::value;
    const int64_t slabs = (x.dim + 32 * V - 1) / (32 * V);
    const unsigned threads = 32 * unsigned(std::min<int64_t>(kMomentWarps, slabs));
    NCOPS_START("class_moments", (reduce_sorted_rows_kernel<In, V, kind>), dim3(unsigned(splits)), dim3(threads), 0,
                stream, x, sorted, num_classes, size, seen, anchors, target, partials);
  };
  const bool vectors = vectors_fit<In>(rows) && aligned16(center) && aligned16(target.matrix) && aligned16(target.sums);
  if (vectors) run(std::integral_constant<int, kVector<In>>());
  else run(std::integral_constant<int, 1>());
  if (splits > 1)
    NCOPS_START("class_moments", (merge_splits_kernel<T, kind>),
                dim3(unsigned(splits - 1), unsigned((x.dim + 127) / 128)), dim3(32 * kMomentWarps), 0, stream, sorted,
                x.dim, num_classes, size, seen, target, partials);
}

// Everything after the sort; keys and order are sorted.
template <class In>
void launch_class_moments(const ClassMomentsArgs& args, const MomentWorkspace& work, const uint32_t* keys,
                          const uint32_t* order) {
  using T = Compute<In>;
  const auto stream = static_cast<cudaStream_t>(args.stream);
  const int64_t classes = args.num_classes, dim = args.x.dim;
  launch_class_starts(keys, args.x.rows, classes, work.starts, work.invalid_parts, args.invalid, nullptr, stream);
  if (classes == 0) return;
  T* sums = static_cast<T*>(args.sums);
  NCOPS_START("class_moments", clear_absent_classes_kernel<T>,
              dim3(unsigned((classes + kMomentWarps - 1) / kMomentWarps)), dim3(32 * kMomentWarps), 0, stream,
              work.starts, classes, dim, args.counts, sums, args.sqnorms);
  launch_reduction<In, Moments::fresh>(args.x, {keys, order, work.starts}, classes, nullptr, args.center,
                                       {sums, nullptr, args.sqnorms}, work, stream);
}

template <class In>
void launch_accumulate(const AccumulateClassMomentsArgs& args, const MomentWorkspace& work, const uint32_t* keys,
                       const uint32_t* order) {
  using T = Compute<In>;
  const auto stream = static_cast<cudaStream_t>(args.stream);
  const int64_t classes = args.num_classes;
  const SortedLabels sorted{keys, order, work.starts};
  launch_class_starts(keys, args.x.rows, classes, work.starts, work.invalid_parts, args.invalid, args.invalid_total,
                      stream);
  if (classes == 0) return;
  launch_reduction<In, Moments::anchor>(args.x, sorted, classes, args.counts, nullptr,
                                        {static_cast<T*>(args.center), nullptr, nullptr}, work, stream);
  launch_reduction<In, Moments::add>(args.x, sorted, classes, nullptr, args.center,
                                     {nullptr, args.sums, args.sqnorms}, work, stream);
  NCOPS_START("class_moments", add_counts_kernel, dim3(unsigned(classes / kLabelThreads + 1)), dim3(kLabelThreads), 0,
              stream, work.starts, classes, args.counts);
}

}  // namespace ncops::cuda
