#include "tensors.h"

#ifdef NCOPS_WITH_CUDA
#include "cuda/kernels.h"
#include "cuda_stream.h"
#endif

namespace ncops {

static Tensor class_scatter_cpu(const Tensor& x, const OptionalTensor& labels, const OptionalTensor& center,
                                int64_t ignore_index, bool /*allow_tf32: always exact here*/) {
  ClassScatterArgs args;
  args.x = rows_of(x, "x");
  OptionalTensor y, anchors;
  std::optional<KeptRows> kept;
  if (labels) {
    STD_TORCH_CHECK(center.has_value(), "center: expected (C, D) with labels");
    y = dense_labels(*labels, "labels", args.x.rows);
    kept.emplace(pointer<int64_t>(y), args.x.rows, center->size(0), ignore_index);
    kept->select(args.x);
  }
  if (center) anchors = attach_center(args.x, x, *center, labels.has_value(), pointer<int64_t>(y));
  const Tensor out = fresh(x, {args.x.dim, args.x.dim}, compute_type(x));
  args.out = out.mutable_data_ptr();
  class_scatter(args);
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ncops_C, m) {
  m.def("class_scatter(Tensor x, Tensor? labels, Tensor? center, int ignore_index, bool allow_tf32) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) { m.impl("class_scatter", TORCH_BOX(&class_scatter_cpu)); }

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
