// Products of very few rows of x with all of w: reading w is all there is to do, so it is read once as it lies, lanes along
// D, without packing. Every pair's product is formed alike, so a target's logit equals its entry among the tiles.
#pragma once

#include "../isa/dispatch.h"
#include "product.h"

namespace ncops::NCOPS_ISA {

constexpr int64_t kFewRows = std::min(8, kWidth<float>);

// out[r] = x[r] . w for R rows of x, each padded with zeros to `padded`, a multiple of the vector width. Chains of 256 vectors.
template <class T, int R, class Stored>
NCOPS_INLINE void multiply_row(const T* x, int64_t padded, const Stored* w, int64_t dim, T* out) {
  constexpr int W = kWidth<T>;
  constexpr int64_t chain = 256 * W;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) out[r] = 0;
  for (int64_t start = 0; start < dim; start += chain) {
    const int64_t end = std::min(dim, start + chain);
    Vec<T> acc[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r] = Vec<T>{};
    const auto add = [&](int64_t k, const Stored* from) __attribute__((always_inline)) {
      const Vec<T> wv = load_stored(from);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r] = fma(load(x + r * padded + k), wv, acc[r]);
    };
    int64_t k = start;
    for (; k + W <= end; k += W) add(k, w + k);
    if (k < end) {
      Stored rest[W] = {};
      std::memcpy(rest, w + k, (end - k) * sizeof(Stored));
      add(k, rest);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) out[r] += reduce_add<T>(acc[r]);
  }
}

// The rows of x in T, padded, for multiply_row.
template <class T>
struct FewRows {
  int64_t padded;
  Scratch data;

  explicit FewRows(const Rows& x)
      : padded(round_up(x.dim, kWidth<T>)), data(size_t(kFewRows) * round_up(x.dim, kWidth<T>) * sizeof(T)) {
    std::memset(data.at<T>(), 0, size_t(kFewRows) * padded * sizeof(T));
    for (int64_t r = 0; r < x.rows; ++r)
      for_columns(x.dim, [&](int64_t k, int64_t n) { load_row<T>(x, r, k, n, data.at<T>() + r * padded + k); });
  }
};

// The products of one row of w, which is read in place, as `Stored`, with up to R rows of x.
template <class T, int R, class Stored>
struct FewProducts {
  const Rows& w;
  FewRows<T> x;
  FewProducts(const Rows& x, const Rows& w) : w(w), x(x) {}

  void operator()(int64_t c, T* out) const {
    multiply_row<T, R>(x.data.template at<T>(), x.padded, static_cast<const Stored*>(w.data) + c * w.row_stride, w.dim, out);
  }
  // run_product with these products; begin(state) stands for the epilogue's own.
  template <class Epilogue, class Begin>
  void run(int64_t rows, const Plan& plan, Epilogue& epilogue, Begin begin) const {
    for_tasks(plan.splits, [&](int64_t split, int) {
      constexpr int64_t at_once = 64;
      constexpr int L = kWidth<T>;
      alignas(64) T tile[at_once * L] = {};
      typename Epilogue::State state;
      begin(state, split);
      const int64_t end = std::min(w.rows, (split + 1) * plan.w_per_split);
      for (int64_t first = split * plan.w_per_split; first < end; first += at_once) {
        const int64_t count = std::min(at_once, end - first);
        for (int64_t j = 0; j < count; ++j) (*this)(first + j, tile + j * L);
        epilogue.tile(state, tile, first, count);
      }
      epilogue.end(state, 0, rows, split);
    });
  }
};

// Calls run(products) where the rows are few and w can be read in place; false where it cannot.
template <class Mode, int NV, class Run>
bool with_few_rows(const Rows& x, const Rows& w, Run run) {
  using T = typename Mode::T;
  if constexpr (NV == 1 && std::is_same_v<Mode, Plain<T>>) {
    if (x.rows > std::min<int64_t>(kFewRows, kWidth<T>) || w.col_stride != 1 || w.index) return false;
    const auto by_rows = [&](auto stored) {
      using Stored = decltype(stored);
      if (x.rows == 1) run(FewProducts<T, 1, Stored>(x, w));
      else if (x.rows == 2) run(FewProducts<T, 2, Stored>(x, w));
      else if (x.rows <= 4 || kWidth<T> < 8) run(FewProducts<T, std::min(4, kWidth<T>), Stored>(x, w));
      else run(FewProducts<T, std::min(8, kWidth<T>), Stored>(x, w));
      return true;
    };
    if (w.dtype == DType::bf16)
      if constexpr (sizeof(T) == 4) return by_rows(Bf16());
    if (w.dtype == DType::f32 || w.dtype == DType::f64) return by_rows(T());
  }
  return false;
}

// Calls run(mode, NV) with the arithmetic that the shape and dtype ask for.
template <class Run>
void by_shape(const Rows& x, Run run) {
  if (x.rows == 0) return;
  const auto by_rows = [&](auto mode) {
    with_vectors<typename decltype(mode)::T>(x.rows, [&](auto vectors) { run(mode, vectors); });
  };
  // Few rows are bound by reading w, which the plain mode does in place.
  if (x.rows > kFewRows && with_bf16_products(x.dtype, by_rows)) return;
  if (x.dtype == DType::f64) by_rows(Plain<double>());
  else by_rows(Plain<float>());
}

}  // namespace ncops::NCOPS_ISA
