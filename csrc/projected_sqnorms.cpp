#include "tensors.h"

namespace ncops {

static Tensor projected_sqnorms_cpu(const Tensor& x, const Tensor& basis, const OptionalTensor& labels,
                                    const OptionalTensor& center, int64_t ignore_index, bool /*allow_tf32: always exact*/) {
  ProjectedSqnormsArgs args;
  args.x = rows_of(x, "x");
  args.basis = rows_of(basis, "basis");
  check_size(basis, "basis", 1, args.x.dim);
  OptionalTensor y, anchors, safe, keep;
  if (labels) {
    // Rows without a class are packed with class 0's centre, and their result is dropped.
    y = dense_labels(*labels, "labels", args.x.rows);
    STD_TORCH_CHECK(center.has_value() && center->dim() == 2, "center: expected (C, D) with labels");
    const int64_t classes = center->size(0);
    safe = fresh(*y, {args.x.rows}, ScalarType::Long);
    keep = fresh(*y, {args.x.rows}, ScalarType::Bool);
    const int64_t* label = pointer<int64_t>(y);
    int64_t* out = static_cast<int64_t*>(safe->mutable_data_ptr());
    bool* inside = static_cast<bool*>(keep->mutable_data_ptr());
    bool any = false;
    for (int64_t i = 0; i < args.x.rows; ++i) {
      inside[i] = is_class(label[i], classes, ignore_index);
      out[i] = inside[i] ? label[i] : 0;
      any |= inside[i];
    }
    args.keep = inside;
    if (any) anchors = attach_center(args.x, x, *center, true, out);
  } else if (center) {
    anchors = attach_center(args.x, x, *center, false, nullptr);
  }
  const Tensor out = fresh(x, {args.x.rows}, compute_type(x));
  args.out = out.mutable_data_ptr();
  projected_sqnorms(args);
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ncops_C, m) {
  m.def(
      "projected_sqnorms(Tensor x, Tensor basis, Tensor? labels, Tensor? center, int ignore_index, bool allow_tf32) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) { m.impl("projected_sqnorms", TORCH_BOX(&projected_sqnorms_cpu)); }

}  // namespace ncops
