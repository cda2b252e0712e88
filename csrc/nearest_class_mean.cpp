#include "tensors.h"

namespace ncops {

static std::tuple<Tensor, Tensor> nearest_class_mean_cpu(const Tensor& x, const Tensor& means, const OptionalTensor& valid,
                                                         bool /*allow_tf32: always exact*/) {
  NearestClassMeanArgs args;
  args.x = rows_of(x, "x");
  args.means = rows_of(means, "means");
  check_size(means, "means", 1, args.x.dim);
  Rows kept_means = args.means;
  OptionalTensor mask;
  std::vector<int64_t> kept;
  if (valid) {
    mask = dense(*valid, "valid", ScalarType::Bool);
    check_size(*mask, "valid", 0, args.means.rows);
    args.valid = pointer<bool>(mask);
    kept = keep_rows(kept_means, [&](int64_t i) { return args.valid[i]; });
  }
  std::vector<double> origin(args.x.dim);
  row_center({kept_means, origin.data()});
  args.x.offset = args.means.offset = origin.data();
  const Tensor sqdist = fresh(x, {args.x.rows}, compute_type(x)), index = fresh(x, {args.x.rows}, ScalarType::Long);
  args.sqdist = writable(sqdist);
  args.index = writable<int64_t>(index);
  nearest_class_mean(args);
  return {sqdist, index};
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) { m.impl("nearest_class_mean", TORCH_BOX(&nearest_class_mean_cpu)); }

}  // namespace ncops
