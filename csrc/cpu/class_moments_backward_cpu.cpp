// class_moments_backward: one pass over x, g_sums[y] + 2 g_sqnorms[y] (x - center[y]) row by row.
#include "blocks/store.h"
#include "kernels.h"

namespace ncops::NCOPS_ISA {
namespace {

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
  for_blocks(x.rows, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t c = args.labels[row];
      const bool counts = is_class(c, args.num_classes, args.ignore_index);
      const T slope = counts ? 2 * T(args.g_sqnorms[c]) : T(0);
      for_columns(dim, [&](int64_t k, int64_t n) {
        alignas(64) T own[kLoadBlock], given[kLoadBlock], result[kLoadBlock];
        T* out = direct ? static_cast<T*>(args.g_x) + row * dim + k : result;
        if (!counts) {
          std::memset(out, 0, n * sizeof(T));
        } else {
          const T* rows = steps_of<Plain<T>>(x, row, true, k, n, own);
          const T* g = steps_of<Plain<T>>(args.g_sums, c, true, k, n, given);
          combine<T>(g, rows, args.center ? static_cast<const T*>(args.center) + c * dim + k : nullptr, slope, n, out);
        }
        if (!direct) store_row<T>(result, n, x.dtype, args.g_x, row * dim + k);
      });
    }
  });
}

}  // namespace

void class_moments_backward(const ClassMomentsBackwardArgs& args) {
  with_compute(args.x.dtype, [&](auto t) { run<decltype(t)>(args); });
}

}  // namespace ncops::NCOPS_ISA
