#include "tensors.h"

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

}  // namespace ncops
