// class_sums: weighted sums of x - center per class, in double: what the gradient of a class's centre is made of.
//
// A task owns 64 columns of a range of classes and adds the rows of each class in their order.
#include "blocks/pack.h"
#include "blocks/scratch.h"
#include "blocks/sorted_rows.h"
#include "kernels.h"

namespace ncops::NCOPS_ISA {
namespace {

template <class T>
void run(const ClassSumsArgs& args) {
  const Rows& x = args.x;
  const int64_t dim = x.dim, columns = pieces(dim, kLoadBlock), classes = args.num_classes;
  const SortedRows sorted(x.labels, x.labels ? x.rows : 0, x.labels ? classes : 0, args.ignore_index);
  const T* weights = static_cast<const T*>(args.weights);
  T* out = static_cast<T*>(args.out);
  const int64_t ranges = std::min<int64_t>(classes, 16), per_range = ranges ? pieces(classes, ranges) : 0;
  for_tasks(columns * ranges, [&](int64_t task, int) {
    const int64_t k = task % columns * kLoadBlock, n = std::min(kLoadBlock, dim - k), range = task / columns;
    for (int64_t c = range * per_range; c < std::min(classes, (range + 1) * per_range); ++c) {
      alignas(64) T block[kLoadBlock];
      double total[kLoadBlock] = {};
      const int64_t begin = x.labels ? sorted.starts()[c] : 0, end = x.labels ? sorted.starts()[c + 1] : x.rows;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = x.labels ? sorted.order()[i] : i;
        const double weight = weights ? double(weights[row]) : 1.0;
        if (weight == 0) continue;
        load_row<T>(x, row, k, n, block);
        for (int64_t j = 0; j < n; ++j) total[j] += weight * double(block[j]);
      }
      for (int64_t j = 0; j < n; ++j) out[c * dim + k + j] = T(args.factor * total[j]);
    }
  });
}

}  // namespace

void class_sums(const ClassSumsArgs& args) {
  with_compute(args.x.dtype, [&](auto t) { run<decltype(t)>(args); });
}

}  // namespace ncops::NCOPS_ISA
