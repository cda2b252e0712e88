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
    int64_t* out = writable<int64_t>(*safe);
    bool* inside = writable<bool>(*keep);
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
  args.out = writable(out);
  projected_sqnorms(args);
  return out;
}

static std::tuple<Tensor, Tensor, Tensor> projected_sqnorms_backward_cpu(
    const Tensor& g, const Tensor& x, const Tensor& basis, const OptionalTensor& labels, const OptionalTensor& center,
    int64_t ignore_index, bool /*allow_tf32: always exact*/, bool need_x, bool need_basis, bool need_center) {
  const ScalarType type = compute_type(x);
  const Deviations deviations(x, labels, center);
  const Rows& rows = deviations.rows;
  const int64_t n = rows.rows, dim = rows.dim, classes = deviations.classes;
  ProjectedSqnormsBackwardArgs args;
  args.basis = rows_of(basis, "basis");
  STD_TORCH_CHECK(basis.scalar_type() == type, "basis: unexpected dtype");
  check_size(basis, "basis", 1, dim);
  const Tensor given = dense(g, "g", type);
  check_size(given, "g", 0, n);
  const Tensor factor = fresh(x, {n}, type);
  std::vector<int64_t> index;  // of the rows with a gradient, whose factor is twice that; 0 is that of the others
  const auto select = [&](auto zero) {
    using T = decltype(zero);
    const T* gradient = data_of<T>(given);
    T* twice = writable<T>(factor);
    for (int64_t i = 0; i < n; ++i) {
      twice[i] = !rows.labels || is_class(rows.labels[i], classes, ignore_index) ? 2 * gradient[i] : zero;
      if (twice[i] != 0) index.push_back(i);
    }
  };
  if (type == ScalarType::Double) select(0.0);
  else select(0.0f);
  const Tensor g_x = gradient(x, need_x, {n, dim}, x.scalar_type(), args.g_x);
  const Tensor g_basis = gradient(x, need_basis, {args.basis.rows, dim}, type, args.g_basis);
  Tensor g_center = fresh(x, {0}, type);
  if (need_x || need_basis) {
    args.x = rows;
    args.x.index = index.data();
    args.x.rows = int64_t(index.size());
    args.factor = data_of(factor);
    args.total = n;
    projected_sqnorms_backward(args);
  }
  if (need_center) {
    // The gradient is linear in the rows: a centre's is minus that of the weighted sum of its rows.
    STD_TORCH_CHECK(center.has_value(), "center: its gradient is asked for, got None");
    g_center = labels ? fresh(x, {classes, dim}, type) : fresh(x, {dim}, type);
    void* const sums = writable(g_center);
    class_sums({rows, classes, ignore_index, data_of(factor), -1, sums});
    ProjectedSqnormsBackwardArgs centers;
    centers.x.data = sums;
    centers.x.dtype = args.basis.dtype;
    centers.x.rows = centers.total = classes;
    centers.x.dim = centers.x.row_stride = dim;
    centers.basis = args.basis;
    centers.g_x = sums;
    projected_sqnorms_backward(centers);
  }
  return {g_x, g_basis, g_center};
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) {
  m.impl("projected_sqnorms", TORCH_BOX(&projected_sqnorms_cpu));
  m.impl("projected_sqnorms_backward", TORCH_BOX(&projected_sqnorms_backward_cpu));
}

}  // namespace ncops
