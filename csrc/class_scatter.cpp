#include "tensors.h"

#ifdef NCOPS_WITH_CUDA
#include "cuda/kernels.h"
#include "cuda_stream.h"
#endif

namespace ncops {

// The rows that count, less their centres. Holds the dense copies that the rows point into.
struct Deviations {
  Rows rows;
  OptionalTensor labels, center;
  std::optional<KeptRows> kept;

  Deviations(const Tensor& x, const OptionalTensor& given_labels, const OptionalTensor& given_center, int64_t ignore_index) {
    rows = rows_of(x, "x");
    if (given_labels) {
      STD_TORCH_CHECK(given_center.has_value(), "center: expected (C, D) with labels");
      labels = dense_labels(*given_labels, "labels", rows.rows);
      kept.emplace(pointer<int64_t>(labels), rows.rows, given_center->size(0), ignore_index);
    }
    if (given_center) center = attach_center(rows, x, *given_center, labels.has_value(), pointer<int64_t>(labels));
  }

  Rows counting() const {
    Rows some = rows;
    if (kept) kept->select(some);
    return some;
  }
};

static Tensor class_scatter_cpu(const Tensor& x, const OptionalTensor& labels, const OptionalTensor& center,
                                int64_t ignore_index, bool /*allow_tf32: always exact here*/) {
  const Deviations deviations(x, labels, center, ignore_index);
  ClassScatterArgs args;
  args.x = deviations.counting();
  const Tensor out = fresh(x, {args.x.dim, args.x.dim}, compute_type(x));
  args.out = out.mutable_data_ptr();
  class_scatter(args);
  return out;
}

static std::tuple<Tensor, Tensor> class_scatter_backward_cpu(const Tensor& g, const Tensor& x, const OptionalTensor& labels,
                                                             const OptionalTensor& center, int64_t ignore_index,
                                                             bool /*allow_tf32: always exact here*/, bool need_x,
                                                             bool need_center) {
  const Deviations deviations(x, labels, center, ignore_index);
  const ScalarType type = compute_type(x);
  ClassScatterBackwardArgs args;
  args.x = deviations.counting();
  args.g = rows_of(g, "g");
  STD_TORCH_CHECK(g.scalar_type() == type, "g: unexpected dtype");
  check_size(g, "g", 0, args.x.dim);
  check_size(g, "g", 1, args.x.dim);
  args.total = deviations.rows.rows;
  const Tensor g_x = need_x ? fresh(x, {args.total, args.x.dim}, x.scalar_type()) : fresh(x, {0}, x.scalar_type());
  if (need_x) args.g_x = g_x.mutable_data_ptr();
  Tensor g_center = fresh(x, {0}, type);
  if (need_center) {
    STD_TORCH_CHECK(center.has_value(), "center: its gradient is asked for, got None");
    args.centers = labels ? center->size(0) : 1;
    g_center = labels ? fresh(x, {args.centers, args.x.dim}, type) : fresh(x, {args.x.dim}, type);
    args.g_center = g_center.mutable_data_ptr();
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
  const CudaCall call(x);
  cuda::ClassScatterArgs args{};
  args.x = rows_of(x, "x", &x);
  args.ignore_index = ignore_index;
  OptionalTensor y, anchors;
  Rows centred = args.x;
  if (labels) {
    STD_TORCH_CHECK(center.has_value(), "center: expected (C, D) with labels");
    y = dense_labels(*labels, "labels", args.x.rows, &x);
    args.num_classes = center->size(0);
    STD_TORCH_CHECK(args.num_classes < (int64_t(1) << 31), "center: expected fewer than 2^31 classes, got ", args.num_classes);
  }
  if (center) anchors = attach_center(centred, x, *center, labels.has_value(), nullptr);
  args.center = centred.center;
  args.labels = pointer<int64_t>(y);
  const Tensor out = fresh(x, {args.x.dim, args.x.dim}, compute_type(x));
  const Tensor memory = workspace(x, cuda::class_scatter_workspace(args.x.dtype, args.x.rows, args.x.dim));
  args.out = out.mutable_data_ptr();
  args.workspace = memory.mutable_data_ptr();
  args.stream = call.stream();
  cuda::class_scatter(args);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CUDA, m) { m.impl("class_scatter", TORCH_BOX(&class_scatter_cuda)); }

#endif

}  // namespace ncops
