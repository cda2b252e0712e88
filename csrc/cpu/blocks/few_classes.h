// Products of x with very few rows of w: those stay in the first-level cache, and rows of x are read as they lie, lanes along D.
// To turn a row of 512 features into lanes takes longer than its products with 10 classes.
#pragma once

#include "tiles.h"

namespace ncops::NCOPS_ISA {

constexpr int kMostAtOnce = kRegisters < 32 ? 6 : 14;  // rows of w whose sums with two rows of x are in registers
constexpr int64_t kFewClasses = kRegisters < 32 ? 12 : 14;  // of more, and of fewer steps, panels take less time
constexpr int64_t kFewestSteps = kRegisters < 32 ? 192 : 128;
constexpr int64_t kFewSteps = 512;  // at a time: 28 KB of w
constexpr int64_t kRowsAhead = 8;   // are fetched: 0.66 of the time of fetching none, from memory

// The sum of the lanes of vector i in lane i. Vectors W elements apart; halves, quarters, ... are folded onto each other.
template <class T, int Bit = 1>
NCOPS_INLINE Vec<T> sum_each(const T* from) {
  constexpr int W = kWidth<T>;
  if constexpr (Bit == W) return load(from);
  else {
    const Vec<T> a = sum_each<T, 2 * Bit>(from), b = sum_each<T, 2 * Bit>(from + Bit * W);
    return shuffle<T, Low<W, Bit>>(a, b) + shuffle<T, High<W, Bit>>(a, b);
  }
}

// sums[m][r], of a vector each and W of them from m to m, (+)= w[j][m] * x[r][j] over vectors j, for M rows of w and R of x. `line`
// more bytes from `next` on are fetched with each of them.
template <class Mode, int M, int R, class T = typename Mode::T>
__attribute__((noinline)) void multiply_few(const T* const* x, const char* const* next, int64_t line, const T* w, int64_t vectors, bool onto,
                                           T* sums) {
  constexpr int W = kWidth<T>;
  Vec<T> acc[M][R];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) acc[m][r] = Vec<T>{};
  const T* rows[R];
  const char* ahead[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) rows[r] = x[r], ahead[r] = next[r];
  for (int64_t k = 0, soon = 0; k < vectors * W; k += W, w += M * W, soon += line) {
    Vec<T> xv[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) xv[r] = load(rows[r] + k), prefetch_further(ahead[r] + soon);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Vec<T> wv = in_register(load(w + m * W));
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[m][r] = Mode::multiply_add(wv, xv[r], acc[m][r]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      T* p = sums + (m * W + r) * W;
      store(p, onto ? load(p) + acc[m][r] : acc[m][r]);
    }
}

// The kernel for M rows of w, and how many rows of x it takes.
template <class Mode>
struct FewKernel {
  using T = typename Mode::T;
  static constexpr int kGrain = kRegisters < 32 ? 1 : 2, kMostRows = 4;
  int classes, rows;
  void (*run)(const T* const* x, const char* const* next, int64_t line, const T* w, int64_t vectors, bool onto, T* sums);

  template <int M = kMostAtOnce>
  static FewKernel of(int64_t classes) {
    if constexpr (M > kGrain)
      if (classes <= M - kGrain) return of<M - kGrain>(classes);
    constexpr int R = std::min(4 * M + 4 < kRegisters ? 4 : 2, kWidth<T>);
    return {M, R, multiply_few<Mode, M, R>};
  }
};

// w packed for it: [steps at a time][group of rows][vector][row][lane], padded with zeros.
template <class Mode>
class FewClasses {
 public:
  using T = typename Mode::T;
  static constexpr int W = kWidth<T>;

  explicit FewClasses(const Rows& w)
      : depth_(Mode::depth(w.dim)), groups_(pieces(w.rows, kMostAtOnce)), kernel_(FewKernel<Mode>::of(pieces(w.rows, groups_))),
        packed_(padded_classes() * round_up(depth_, W) * sizeof(T)) {
    T* out = packed_.template at<T>();
    for_steps([&](int64_t k, int64_t n) {
      for (int64_t first = 0; first < padded_classes(); first += kernel_.classes, out += kernel_.classes * round_up(n, W))
        for (int64_t m = 0; m < kernel_.classes; ++m)
          for (int64_t i = 0; i < n; i += kLoadBlock) {
            alignas(64) T block[kLoadBlock];
            const int64_t count = std::min(kLoadBlock, n - i);
            const T* steps = steps_of<Mode, W>(w, first + m, first + m < w.rows, k + i, count, block);
            for (int64_t j = 0; j < count; j += W) store(out + ((i + j) / W * kernel_.classes + m) * W, load(steps + j));
          }
    });
  }

  // Classes of a tile, some of which are not real; how much memory multiply() asks for.
  int64_t padded_classes() const { return groups_ * kernel_.classes; }
  int64_t memory() const { return padded_classes() * W * W + kFewSteps * FewKernel<Mode>::kMostRows; }

  // tile[class * L + lane] of rows [row, row + count) of x, one per lane; lanes past `count` are zero.
  template <int L>
  void multiply(const Rows& x, int64_t row, int64_t count, T* memory, T* tile) const {
    T *block = memory, *sums = memory + kFewSteps * FewKernel<Mode>::kMostRows;
    const T* w = packed_.template at<T>();
    const int R = kernel_.rows;
    const int64_t step_bytes = element_bytes(x.dtype) * (x.dim > depth_ ? 2 : 1);
    for_steps([&](int64_t k, int64_t n) {
      const int64_t vectors = pieces(n, W), line = W * step_bytes / groups_;
      for (int r = 0; r < W; r += R) {
        const T* rows[FewKernel<Mode>::kMostRows];
        const char* next[FewKernel<Mode>::kMostRows];
        for (int i = 0; i < R; ++i) {
          rows[i] = steps_of<Mode, W>(x, row + r + i, r + i < count, k, n, block + i * kFewSteps);
          next[i] = x.at(std::min(row + r + kRowsAhead + i, x.rows - 1)) + k * step_bytes;
        }
        for (int64_t g = 0; g < groups_; ++g) {  // each fetches its share
          kernel_.run(rows, next, line, w + g * kernel_.classes * vectors * W, vectors, k > 0,
                      sums + (g * kernel_.classes * W + r) * W);
          for (int i = 0; i < R; ++i) next[i] += vectors * line;
        }
      }
      w += padded_classes() * vectors * W;
    });
    for (int64_t c = 0; c < padded_classes(); ++c) store(tile + c * L, sum_each<T>(sums + c * W * W));
  }

 private:
  int64_t depth_, groups_;
  FewKernel<Mode> kernel_;
  Scratch packed_;

  template <class F>
  void for_steps(F f) const {
    for (int64_t k = 0; k == 0 || k < depth_; k += kFewSteps) f(k, std::min(kFewSteps, depth_ - k));
  }
};

}  // namespace ncops::NCOPS_ISA
