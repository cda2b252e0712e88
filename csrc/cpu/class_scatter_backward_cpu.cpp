// class_scatter_backward: g_x = (x - center) (G + G^T), centred while x is packed, each tile written out as it is formed.
//
// The product is linear in the rows, so a class's centre needs no rows: its gradient is the same product of minus the sum
// of its deviations. Workspace: one D x D.
#include "blocks/product.h"
#include "blocks/store.h"
#include "kernels.h"

namespace ncops::NCOPS_ISA {
namespace {

template <class T, int NV>
struct WriteRows {
  static constexpr int L = NV * kWidth<T>;
  struct State {
    int64_t row, count;
  };
  const Rows& x;
  void* out;

  void begin(State& state, int64_t row, int64_t count, int64_t, const T*) { state = {row, count}; }
  void tile(State& state, const T* tile, int64_t first, int64_t columns) {
    store_lanes<T, L>(tile, columns, x, state.row, state.count, first, out);
  }
  void end(State&, int64_t, int64_t, int64_t) {}
};

// `out` may be x itself: rows are packed for all splits before any of them is written.
template <class T, int NV>
void multiply(const Rows& x, const Rows& matrix, void* out) {
  if (x.rows == 0 || x.dim == 0) return;
  WriteRows<T, NV> epilogue{x, out};
  run_product<Plain<T>, NV>(x, matrix, plan_product<T>(x.rows, matrix.rows, x.dim, NV * kWidth<T>), epilogue);
}

// g + g^T, row-major.
template <class T>
void symmetrise(const Rows& g, T* out) {
  Rows turned = g;
  std::swap(turned.row_stride, turned.col_stride);
  for_tasks(g.dim, [&](int64_t i, int) {
    for_columns(g.dim, [&](int64_t k, int64_t n) {
      alignas(64) T a[kLoadBlock], b[kLoadBlock];
      load_raw<T>(g, i, k, n, a);
      load_raw<T>(turned, i, k, n, b);
      for (int64_t j = 0; j < n; ++j) out[i * g.dim + k + j] = a[j] + b[j];
    });
  });
}

template <class T>
void run(const ClassScatterBackwardArgs& args) {
  const int64_t dim = args.x.dim;
  Scratch square(size_t(dim) * dim * sizeof(T));
  Rows matrix = args.g;
  matrix.data = square.at<T>();
  matrix.row_stride = dim;
  matrix.col_stride = 1;
  symmetrise<T>(args.g, square.at<T>());
  if (args.g_x) {
    with_vectors<T>(args.x.rows, [&](auto nv) { multiply<T, nv>(args.x, matrix, args.g_x); });
    clear_other_rows<T>(args.x, args.total, args.g_x);
  }
  if (args.g_center) {
    Rows sums = matrix;
    sums.data = args.g_center;
    sums.rows = args.centers;
    with_vectors<T>(sums.rows, [&](auto nv) { multiply<T, nv>(sums, matrix, args.g_center); });
  }
}

}  // namespace

void class_scatter_backward(const ClassScatterBackwardArgs& args) {
  with_compute(args.x.dtype, [&](auto t) { run<decltype(t)>(args); });
}

}  // namespace ncops::NCOPS_ISA
