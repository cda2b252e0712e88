#include "tensors.h"

#ifdef NCOPS_WITH_CUDA
#include "cuda_stream.h"
#endif

namespace ncops {

// Leaves of `rows` those whose label is a class, all of them without labels; see keep_rows.
static std::vector<int64_t> keep_classes(Rows& rows, int64_t classes, int64_t ignore_index) {
  const int64_t* labels = rows.labels;
  if (!labels) return {};
  return keep_rows(rows, [&](int64_t i) { return is_class(labels[i], classes, ignore_index); });
}

static Tensor class_scatter_cpu(const Tensor& x, const OptionalTensor& labels, const OptionalTensor& center,
                                int64_t ignore_index, bool /*allow_tf32: always exact here*/) {
  const Deviations deviations(x, labels, center);
  ClassScatterArgs args;
  args.x = deviations.rows;
  const auto kept = keep_classes(args.x, deviations.classes, ignore_index);
  const Tensor out = fresh(x, {args.x.dim, args.x.dim}, compute_type(x));
  args.out = writable(out);
  class_scatter(args);
  return out;
}

static std::tuple<Tensor, Tensor> class_scatter_backward_cpu(const Tensor& g, const Tensor& x, const OptionalTensor& labels,
                                                             const OptionalTensor& center, int64_t ignore_index,
                                                             bool /*allow_tf32: always exact here*/, bool need_x,
                                                             bool need_center) {
  const Deviations deviations(x, labels, center);
  const ScalarType type = compute_type(x);
  ClassScatterBackwardArgs args;
  args.x = deviations.rows;
  const auto kept = keep_classes(args.x, deviations.classes, ignore_index);
  args.g = rows_of(g, "g");
  STD_TORCH_CHECK(g.scalar_type() == type, "g: unexpected dtype");
  check_size(g, "g", 0, args.x.dim);
  check_size(g, "g", 1, args.x.dim);
  args.total = deviations.rows.rows;
  const Tensor g_x = gradient(x, need_x, {args.total, args.x.dim}, x.scalar_type(), args.g_x);
  Tensor g_center = fresh(x, {0}, type);
  if (need_center) {
    STD_TORCH_CHECK(center.has_value(), "center: its gradient is asked for, got None");
    args.centers = deviations.classes;
    g_center = labels ? fresh(x, {args.centers, args.x.dim}, type) : fresh(x, {args.x.dim}, type);
    args.g_center = writable(g_center);
    class_sums({deviations.rows, args.centers, ignore_index, nullptr, -1, args.g_center});
  }
  class_scatter_backward(args);
  return {g_x, g_center};
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) {
  m.impl("class_scatter", TORCH_BOX(&class_scatter_cpu));
  m.impl("class_scatter_backward", TORCH_BOX(&class_scatter_backward_cpu));
}

#ifdef NCOPS_WITH_CUDA

static Tensor class_scatter_cuda(const Tensor& x, const OptionalTensor& labels, const OptionalTensor& center,
                                 int64_t ignore_index, bool /*allow_tf32: always exact here*/) {
  const Deviations deviations(x, labels, center);
  STD_TORCH_CHECK(deviations.classes < (int64_t(1) << 31), "center: expected fewer than 2^31 classes, got ",
                  deviations.classes);
  cuda::ClassScatterArgs args{};
  args.x = deviations.rows;
  args.labels = deviations.rows.labels;
  args.center = deviations.rows.center;
  args.num_classes = deviations.classes;
  args.ignore_index = ignore_index;
  const Tensor out = fresh(x, {args.x.dim, args.x.dim}, compute_type(x));
  args.out = writable(out);
  const CudaCall call(args, x, cuda::class_scatter_workspace(args.x.dtype, args.x.rows, args.x.dim));
  cuda::class_scatter(args);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CUDA, m) { m.impl("class_scatter", TORCH_BOX(&class_scatter_cuda)); }

#endif

}  // namespace ncops
