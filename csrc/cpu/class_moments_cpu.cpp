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

// Rows of one class, by their numbers, and how many follow in the same chunk: those too are fetched ahead.
struct Members {
  const int64_t* order;
  int64_t count, more;
};

// Fetches rows in their order, each as it lies, while others are reduced some columns at a time. Rows lie anywhere, so the machine
// does not do it; where each block of columns fetched its own, into the first-level cache, 1000 classes took 1.4x as long.
class NextRows {
 public:
  NextRows(const Rows& x, const Members& rows) : x_(x), order_(rows.order), last_(rows.count + rows.more - 1) {}

  // From row number `at` on.
  void begin(int64_t at) {
    at_ = std::min(at, last_);
    next_ = x_.at(order_[at_]), end_ = next_ + x_.dim * element_bytes(x_.dtype);
  }
  template <int lines>
  NCOPS_INLINE void fetch() {
#pragma GCC unroll 16
    for (int i = 0; i < lines; ++i) prefetch_further(next_ + i * 64);
    next_ += lines * 64;
    if (next_ >= end_) begin(at_ + 1);
  }

 private:
  const Rows& x_;
  const int64_t* order_;
  int64_t last_, at_ = 0;
  const char *next_ = nullptr, *end_ = nullptr;
};

constexpr int64_t kGroup = 32;              // rows summed in one chain: of 512 in one squares had errors of 5e-6
constexpr int64_t kAheadBytes = 64 << 10;  // of rows on their way, in the second-level cache

// Adds to `sum`, or begins with, the sum over n <= kGroup rows of A vectors of columns minus `center` (may be null); returns the sum of
// squares. Accumulators stay in registers.
template <class T, int A, class Stored>
double reduce_block(const Stored* data, int64_t stride, const int64_t* order, int64_t n, const T* center, bool onto, T* sum,
                    NextRows& ahead) {
  constexpr int W = kWidth<T>;
  constexpr int lines = std::max<int>(1, A * W * sizeof(Stored) / 64);
  constexpr int squares = std::min(A, 4);  // sums of them: with two, NEON's of 64 equal columns were 2.5e-6 off
  Vec<T> acc[A], square[squares] = {};
#pragma GCC unroll 16
  for (int a = 0; a < A; ++a) acc[a] = Vec<T>{};
  for (int64_t i = 0; i < n; ++i) {
    const Stored* row = data + order[i] * stride;
    ahead.template fetch<lines>();
#pragma GCC unroll 16
    for (int a = 0; a < A; ++a) {
      const Vec<T> x = load_stored(row + a * W), v = center ? x - load(center + a * W) : x;
      acc[a] += v;
      square[a % squares] = fma(v, v, square[a % squares]);
    }
  }
#pragma GCC unroll 16
  for (int a = 0; a < A; ++a) store(sum + a * W, onto ? load(sum + a * W) + acc[a] : acc[a]);
  double total = 0;
#pragma GCC unroll 4
  for (int s = 0; s < squares; ++s) total += double(reduce_add<T>(square[s]));
  return total;
}

// The same for any dtype, strides and width.
template <class T>
double reduce_any(const Rows& x, const Members& rows, int64_t k, int64_t width, const T* center, T* sum) {
  double square = 0;
  for_columns(width, [&](int64_t j, int64_t w) {
    alignas(64) T block[kLoadBlock], acc[kLoadBlock] = {}, sq[kLoadBlock] = {};
    for (int64_t i = 0; i < rows.count; ++i) {
      load_raw<T>(x, rows.order[i], k + j, w, block);
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
double reduce_direct(const Rows& x, const Members& rows, const T* center, T* sum) {
  constexpr int W = kWidth<T>, A = kAccumulators;
  const Stored* data = static_cast<const Stored*>(x.data);
  const int64_t distance = std::clamp<int64_t>(kAheadBytes / std::max<int64_t>(1, x.dim * sizeof(Stored)), 1, kGroup);
  NextRows ahead(x, rows);
  double square = 0;
  int64_t k = 0;
  for (int64_t i = 0; i < rows.count; i += kGroup) {
    const int64_t n = std::min(kGroup, rows.count - i);
    ahead.begin(i + distance);
    k = 0;
    const auto blocks = [&](auto vectors) {
      constexpr int a = decltype(vectors)::value;
      for (; k + a * W <= x.dim; k += a * W)
        square += reduce_block<T, a>(data + k, x.row_stride, rows.order + i, n, center ? center + k : nullptr, i > 0, sum + k, ahead);
    };
    blocks(std::integral_constant<int, A>());
    blocks(std::integral_constant<int, A / 4>());
    blocks(std::integral_constant<int, 1>());
  }
  if (k < x.dim) square += reduce_any<T>(x, rows, k, x.dim - k, center ? center + k : nullptr, sum + k);
  return square;
}

template <class T>
double reduce_rows(const Rows& x, const Members& rows, const T* center, T* sum) {
  if (x.col_stride == 1 && x.dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32))
    return reduce_direct<T, T>(x, rows, center, sum);
  if constexpr (sizeof(T) == 4) {
    if (x.col_stride == 1 && x.dtype == DType::bf16) return reduce_direct<T, Bf16>(x, rows, center, sum);
    if (x.col_stride == 1 && x.dtype == DType::f16) return reduce_direct<T, F16>(x, rows, center, sum);
  }
  return reduce_any<T>(x, rows, 0, x.dim, center, sum);
}

// Reduces the rows of every class c that job.wanted(c), about job.center(c) and into job.place(c, somewhere else), and calls
// job.done(c, columns from, to, sum (of that range, T or double), squared norm or -1 when not the caller's turn); of a class
// without rows job.empty(c).
template <class T, class Job>
void reduce_classes(const Rows& x, const SortedRows& sorted, const Job& job) {
  const int64_t* starts = sorted.starts();
  const int64_t chunks = pieces(sorted.kept(), kChunk), dim = x.dim, classes = sorted.num_classes();
  // Where chunks are too few to share the classes without rows, these are tasks of their own.
  const bool apart = chunks < 8 * workers();
  if (apart)
    for_blocks(classes, 256, [&](int64_t begin, int64_t end, int) {
      for (int64_t c = begin; c < end; ++c)
        if (starts[c] == starts[c + 1]) job.empty(c);
    });
  if (chunks == 0) return;
  // Slot 2q holds the part of the class that enters chunk q from before, slot 2q + 1 of the one that leaves it behind.
  Scratch partial_sums(size_t(2) * chunks * dim * sizeof(T)), partial_squares(size_t(2) * chunks * sizeof(double));
  T* sums = partial_sums.at<T>();
  double* squares = partial_squares.at<double>();
  const size_t row_bytes = round_up(dim * sizeof(T), 64);
  Scratch rows(row_bytes * std::min<int64_t>(chunks, workers()));
  for_blocks(sorted.kept(), kChunk, [&](int64_t begin, int64_t end, int worker) {
    const int64_t first = sorted.class_at(begin);
    int64_t c = begin == 0 ? 0 : first;
    for (int64_t i = begin; c < classes && starts[c] < end; ++c) {
      const int64_t stop = std::min(end, starts[c + 1]), n = stop - i;
      if (n == 0) {
        if (!apart) job.empty(c);
      } else if (job.wanted(c)) {
        const bool enters = starts[c] < begin, leaves = starts[c + 1] > end;
        const int64_t slot = begin / kChunk * 2 + !enters;
        T* sum = enters || leaves ? sums + slot * dim : job.place(c, rows.at<T>(worker * row_bytes));
        const double square = reduce_rows<T>(x, {sorted.order() + i, n, end - stop}, job.center(c), sum);
        if (enters || leaves) squares[slot] = square;
        else job.done(c, 0, dim, sum, square);
      }
      i = stop;
    }
    for (; !apart && c < classes && starts[c + 1] == end; ++c) job.empty(c);
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
      if (job.wanted(c)) {
        double total[width] = {}, square = 0;
        for (int64_t p = q; p <= last; ++p) {
          const int64_t slot = p == q ? 2 * p + 1 : 2 * p;
          for (int64_t k = from; k < to; ++k) total[k - from] += double(sums[slot * dim + k]);
          square += squares[slot];
        }
        job.done(c, from, to, total, from == 0 ? square : -1.0);
      }
      q = last;
    }
  });
}

// The results of class_moments. Sums are formed where they lie, and classes without rows cleared beside their neighbours: of
// fresh pages, which the system has just filled with zeros, much is in the cache then (1.07x the speed with 50257 classes).
template <class T>
struct Moments {
  const ClassMomentsArgs& args;
  const int64_t dim = args.x.dim;

  T* place(int64_t c, T*) const { return static_cast<T*>(args.sums) + c * dim; }
  bool wanted(int64_t) const { return true; }
  const T* center(int64_t c) const { return args.center ? static_cast<const T*>(args.center) + c * dim : nullptr; }
  template <class S>
  void done(int64_t c, int64_t from, int64_t to, const S* sum, double square) const {
    T* own = place(c, nullptr);
    if (static_cast<const void*>(own) != sum)
      for (int64_t k = from; k < to; ++k) own[k] = T(sum[k - from]);
    if (square >= 0 || square != square) args.sqnorms[c] = square;
  }
  void empty(int64_t c) const {
    args.sqnorms[c] = 0;
    std::memset(place(c, nullptr), 0, dim * sizeof(T));
  }
};

template <class T>
void moments(const ClassMomentsArgs& args) {
  const SortedRows sorted(args.labels, args.x.rows, args.num_classes, args.ignore_index);
  const int64_t* starts = sorted.starts();
  *args.invalid = sorted.invalid();
  for (int64_t c = 0; c < args.num_classes; ++c) args.counts[c] = starts[c + 1] - starts[c];
  reduce_classes<T>(args.x, sorted, Moments<T>{args});
}

// The state of accumulate_class_moments: with `anchors` the centres of classes not seen before, else the sums.
template <class T, bool anchors>
struct State {
  const AccumulateClassMomentsArgs& args;
  const int64_t* starts;
  const int64_t dim = args.x.dim;

  T* place(int64_t, T* elsewhere) const { return elsewhere; }
  bool wanted(int64_t c) const { return !anchors || args.counts[c] == 0; }
  T* anchor(int64_t c) const { return static_cast<T*>(args.center) + c * dim; }
  const T* center(int64_t c) const { return anchors ? nullptr : anchor(c); }
  template <class S>
  void done(int64_t c, int64_t from, int64_t to, const S* sum, double square) const {
    const double n = double(starts[c + 1] - starts[c]);
    for (int64_t k = from; k < to; ++k) {
      if constexpr (anchors) anchor(c)[k] = T(double(sum[k - from]) / n);
      else args.sums[c * dim + k] += double(sum[k - from]);
    }
    if (!anchors && (square >= 0 || square != square)) args.sqnorms[c] += square;
  }
  void empty(int64_t) const {}
};

template <class T>
void accumulate(const AccumulateClassMomentsArgs& args) {
  const SortedRows sorted(args.labels, args.x.rows, args.num_classes, args.ignore_index);
  *args.invalid = sorted.invalid();
  if (sorted.invalid() > 0) return;
  const int64_t* starts = sorted.starts();
  // Classes seen first are anchored at their mean in this call: one more read of their rows, none of the others.
  reduce_classes<T>(args.x, sorted, State<T, true>{args, starts});
  reduce_classes<T>(args.x, sorted, State<T, false>{args, starts});
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
