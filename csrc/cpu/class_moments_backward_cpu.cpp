// class_moments_backward: one pass over x, g_sums[y] + 2 g_sqnorms[y] (x - center[y]) row by row.
#include "kernels.h"
#include "blocks/store.h"

namespace ncops::NCOPS_ISA {
namespace {

constexpr int64_t kRows = 64;  // rows per task

template <class T>
inline void combine(const T* g, const T* x, const T* center, T slope, int64_t n, T* out) {
  if (center)
    for (int64_t i = 0; i < n; ++i) out[i] = g[i] + slope * (x[i] - center[i]);
  else
    for (int64_t i = 0; i < n; ++i) out[i] = g[i] + slope * x[i];
}

template <class T>
void run(const ClassMomentsBackwardArgs& args) {
  const Rows& x = args.x;
  const int64_t dim = x.dim;
  const bool direct = !is_half(x.dtype);  // the gradient is stored in T
  for_tasks((x.rows + kRows - 1) / kRows, [&](int64_t task, int) {
    for (int64_t row = task * kRows; row < std::min(x.rows, (task + 1) * kRows); ++row) {
      const int64_t c = args.labels[row];
      const bool counts = is_class(c, args.num_classes, args.ignore_index);
      const T slope = counts ? 2 * T(args.g_sqnorms[c]) : T(0);
      for (int64_t k = 0; k < dim; k += kLoadBlock) {
        const int64_t n = std::min(kLoadBlock, dim - k);
        alignas(64) T own[kLoadBlock], given[kLoadBlock], result[kLoadBlock];
        T* out = direct ? static_cast<T*>(args.g_x) + row * dim + k : result;
        if (!counts) {
          std::memset(out, 0, n * sizeof(T));
        } else {
          const T* rows = Plain<T>::in_place(x, row, k, n);
          const T* g = Plain<T>::in_place(args.g_sums, c, k, n);
          if (!rows) load_raw<T>(x, row, k, n, own), rows = own;
          if (!g) load_raw<T>(args.g_sums, c, k, n, given), g = given;
          combine<T>(g, rows, args.center ? static_cast<const T*>(args.center) + c * dim + k : nullptr, slope, n, out);
        }
        if (!direct) store_row<T>(result, n, x.dtype, args.g_x, row * dim + k);
      }
    }
  });
}

}  // namespace

void class_moments_backward(const ClassMomentsBackwardArgs& args) {
  if (args.x.dtype == DType::f64) run<double>(args);
  else run<float>(args);
}

}  // namespace ncops::NCOPS_ISA
