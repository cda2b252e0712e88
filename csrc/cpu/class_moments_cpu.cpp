// class_moments and accumulate_class_moments: rows sorted by label, then a segmented reduction in fixed chunks.
//
// Chunks of 512 sorted rows are the unit of work, so one hot class is spread over threads like any other. A class inside a
// chunk is finished there; the two classes that a chunk's borders may cut leave partial sums, merged in order afterwards.
// Bits depend on the rows alone, never on the number of threads. Workspace: 16 bytes a row and 2 rows of D per chunk.
#include "blocks/pack.h"
#include "blocks/scratch.h"
#include "blocks/sorted_rows.h"
#include "kernels.h"

namespace ncops::NCOPS_ISA {
namespace {

constexpr int64_t kChunk = 512;
constexpr int kAccumulators = kRegisters / 2;

// Sum and squared norm of rows order[0..n) minus `center` (may be null), A vectors of columns: accumulators stay in registers
// and rows are fetched ahead (no prefetch: 1.1-1.3x slower). Rows have unit column stride.
template <class T, int A, class Stored>
double reduce_block(const Stored* data, int64_t stride, const int64_t* order, int64_t n, const T* center, T* sum) {
  constexpr int W = kWidth<T>;
  constexpr int64_t rows = 32;  // squares of one chain: 512 rows in one had errors of 5e-6
  double total = 0;
  Vec<T> acc[A], square[2] = {};
#pragma GCC unroll 16
  for (int a = 0; a < A; ++a) acc[a] = Vec<T>{};
  for (int64_t i = 0; i < n; ++i) {
    if (i % rows == 0) {
      total += double(reduce_add<T>(square[0])) + double(reduce_add<T>(square[1]));
      square[0] = square[1] = Vec<T>{};
    }
    const Stored* row = data + order[i] * stride;
    const Stored* ahead = data + order[std::min(i + 4, n - 1)] * stride;
#pragma GCC unroll 16
    for (int a = 0; a < A; ++a) {
      prefetch(ahead + a * W);
      const Vec<T> x = load_stored(row + a * W), v = center ? x - load(center + a * W) : x;
      acc[a] += v;
      square[a % 2] = fma(v, v, square[a % 2]);
    }
  }
#pragma GCC unroll 16
  for (int a = 0; a < A; ++a) store(sum + a * W, acc[a]);
  return total + double(reduce_add<T>(square[0])) + double(reduce_add<T>(square[1]));
}

// The same for any dtype, strides and width.
template <class T>
double reduce_any(const Rows& x, const int64_t* order, int64_t n, int64_t k, int64_t width, const T* center, T* sum) {
  double square = 0;
  for_columns(width, [&](int64_t j, int64_t w) {
    alignas(64) T block[kLoadBlock], acc[kLoadBlock] = {}, sq[kLoadBlock] = {};
    for (int64_t i = 0; i < n; ++i) {
      load_raw<T>(x, order[i], k + j, w, block);
      if (center)
        for (int64_t c = 0; c < w; ++c) block[c] -= center[j + c];
      for (int64_t c = 0; c < w; ++c) acc[c] += block[c], sq[c] += block[c] * block[c];
    }
    std::memcpy(sum + j, acc, w * sizeof(T));
    for (int64_t c = 0; c < w; ++c) square += double(sq[c]);
  });
  return square;
}

template <class T, class Stored>
double reduce_direct(const Rows& x, const int64_t* order, int64_t n, const T* center, T* sum) {
  constexpr int W = kWidth<T>, A = kAccumulators;
  const Stored* data = static_cast<const Stored*>(x.data);
  double square = 0;
  int64_t k = 0;
  const auto blocks = [&](auto vectors) {
    constexpr int a = decltype(vectors)::value;
    for (; k + a * W <= x.dim; k += a * W)
      square += reduce_block<T, a>(data + k, x.row_stride, order, n, center ? center + k : nullptr, sum + k);
  };
  blocks(std::integral_constant<int, A>());
  blocks(std::integral_constant<int, A / 4>());
  blocks(std::integral_constant<int, 1>());
  if (k < x.dim) square += reduce_any<T>(x, order, n, k, x.dim - k, center ? center + k : nullptr, sum + k);
  return square;
}

template <class T>
double reduce_rows(const Rows& x, const int64_t* order, int64_t n, const T* center, T* sum) {
  if (x.col_stride == 1 && x.dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32))
    return reduce_direct<T, T>(x, order, n, center, sum);
  if constexpr (sizeof(T) == 4) {
    if (x.col_stride == 1 && x.dtype == DType::bf16) return reduce_direct<T, Bf16>(x, order, n, center, sum);
    if (x.col_stride == 1 && x.dtype == DType::f16) return reduce_direct<T, F16>(x, order, n, center, sum);
  }
  return reduce_any<T>(x, order, n, 0, x.dim, center, sum);
}

// Runs the reduction of every class for which wanted(c), about center_of(c), and hands the result to
// done(c, columns from, to, sum (of that range, T or double), squared norm or -1 when not the caller's turn).
template <class T, class Wanted, class Center, class Done>
void reduce_classes(const Rows& x, const SortedRows& sorted, Wanted wanted, Center center_of, Done done) {
  const int64_t* starts = sorted.starts();
  const int64_t chunks = pieces(sorted.kept(), kChunk), dim = x.dim;
  if (chunks == 0) return;
  // Slot 2q holds the part of the class that enters chunk q from before, slot 2q + 1 of the one that leaves it behind.
  Scratch partial_sums(size_t(2) * chunks * dim * sizeof(T)), partial_squares(size_t(2) * chunks * sizeof(double));
  T* sums = partial_sums.at<T>();
  double* squares = partial_squares.at<double>();
  const size_t row_bytes = round_up(dim * sizeof(T), 64);
  Scratch rows(row_bytes * std::min<int64_t>(chunks, workers()));
  for_blocks(sorted.kept(), kChunk, [&](int64_t begin, int64_t end, int worker) {
    int64_t c = sorted.class_at(begin);
    for (int64_t i = begin; i < end; ++c) {
      const int64_t stop = std::min(end, starts[c + 1]), n = stop - i;
      if (n > 0 && wanted(c)) {
        const bool enters = starts[c] < begin, leaves = starts[c + 1] > end;
        const int64_t slot = begin / kChunk * 2 + !enters;
        T* sum = enters || leaves ? sums + slot * dim : rows.at<T>(worker * row_bytes);
        const double square = reduce_rows<T>(x, sorted.order() + i, n, center_of(c), sum);
        if (enters || leaves) squares[slot] = square;
        else done(c, 0, dim, sum, square);
      }
      i = stop;
    }
  });
  // Classes cut by chunk borders: column blocks side by side, chunks in order.
  constexpr int64_t width = 256;
  for_blocks(dim, width, [&](int64_t from, int64_t to, int) {
    for (int64_t q = 0; q + 1 < chunks;) {
      const int64_t border = (q + 1) * kChunk;  // sorted position where the next chunk begins
      const int64_t c = sorted.class_at(border);
      if (starts[c] == border) {
        ++q;
        continue;
      }
      const int64_t last = (starts[c + 1] - 1) / kChunk;
      if (wanted(c)) {
        double total[width] = {}, square = 0;
        for (int64_t p = q; p <= last; ++p) {
          const int64_t slot = p == q ? 2 * p + 1 : 2 * p;
          for (int64_t k = from; k < to; ++k) total[k - from] += double(sums[slot * dim + k]);
          square += squares[slot];
        }
        done(c, from, to, total, from == 0 ? square : -1.0);
      }
      q = last;
    }
  });
}

template <class T>
void moments(const ClassMomentsArgs& args) {
  const SortedRows sorted(args.labels, args.x.rows, args.num_classes, args.ignore_index);
  const int64_t* starts = sorted.starts();
  const int64_t dim = args.x.dim;
  T* sums = static_cast<T*>(args.sums);
  *args.invalid = sorted.invalid();
  // Many tasks: with many classes, touching fresh memory is most of the time.
  for_blocks(args.num_classes, 256, [&](int64_t begin, int64_t end, int) {
    for (int64_t c = begin; c < end; ++c) {
      args.counts[c] = starts[c + 1] - starts[c];
      args.sqnorms[c] = 0;
      if (args.counts[c] == 0) std::memset(sums + c * dim, 0, dim * sizeof(T));
    }
  });
  const T* center = static_cast<const T*>(args.center);
  reduce_classes<T>(
      args.x, sorted, [](int64_t) { return true; },
      [&](int64_t c) { return center ? center + c * dim : nullptr; },
      [&](int64_t c, int64_t from, int64_t to, const auto* sum, double square) {
        for (int64_t k = from; k < to; ++k) sums[c * dim + k] = T(sum[k - from]);
        if (square >= 0 || square != square) args.sqnorms[c] = square;
      });
}

template <class T>
void accumulate(const AccumulateClassMomentsArgs& args) {
  const SortedRows sorted(args.labels, args.x.rows, args.num_classes, args.ignore_index);
  *args.invalid = sorted.invalid();
  if (sorted.invalid() > 0) return;
  const int64_t* starts = sorted.starts();
  const int64_t dim = args.x.dim;
  T* center = static_cast<T*>(args.center);
  // Classes seen first are anchored at their mean in this call: one more read of their rows, none of the others.
  reduce_classes<T>(
      args.x, sorted, [&](int64_t c) { return args.counts[c] == 0; },
      [](int64_t) -> const T* { return nullptr; },
      [&](int64_t c, int64_t from, int64_t to, const auto* sum, double) {
        const double n = double(starts[c + 1] - starts[c]);
        for (int64_t k = from; k < to; ++k) center[c * dim + k] = T(double(sum[k - from]) / n);
      });
  reduce_classes<T>(
      args.x, sorted, [](int64_t) { return true; },
      [&](int64_t c) -> const T* { return center + c * dim; },
      [&](int64_t c, int64_t from, int64_t to, const auto* sum, double square) {
        for (int64_t k = from; k < to; ++k) args.sums[c * dim + k] += double(sum[k - from]);
        if (square >= 0 || square != square) args.sqnorms[c] += square;
      });
  for (int64_t c = 0; c < args.num_classes; ++c) args.counts[c] += starts[c + 1] - starts[c];
}

}  // namespace

void class_moments(const ClassMomentsArgs& args) {
  with_compute(args.x.dtype, [&](auto t) { moments<decltype(t)>(args); });
}

void accumulate_class_moments(const AccumulateClassMomentsArgs& args) {
  with_compute(args.x.dtype, [&](auto t) { accumulate<decltype(t)>(args); });
}

}  // namespace ncops::NCOPS_ISA
