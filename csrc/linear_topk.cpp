#include "linear_inputs.h"

namespace ncops {

static std::tuple<Tensor, Tensor, Tensor> linear_topk_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                                          int64_t k, double scale, double softcap, bool /*allow_tf32*/) {
  LinearTopkArgs args;
  args.x = rows_of(x, "x", &x);
  args.w = classifier_of(weight, "weight", x, args.x);
  const OptionalTensor held = attach_bias(args.bias, bias, "bias", x, args.w);
  STD_TORCH_CHECK(k >= 1 && k <= args.w.rows, "k: expected 1 to ", args.w.rows, ", got ", k);
  STD_TORCH_CHECK(args.w.rows <= INT32_MAX, "weight: expected fewer than 2^31 rows, got ", args.w.rows);
  args.k = k;
  args.scale = scale;
  args.softcap = softcap;
  const Tensor values = fresh(x, {args.x.rows, k}, compute_type(x)), sums = fresh(x, {2, args.x.rows}, compute_type(x));
  const Tensor indices = fresh(x, {args.x.rows, k}, ScalarType::Long);
  args.values = writable(values);
  args.sums = writable(sums);
  args.indices = writable<int64_t>(indices);
  linear_topk(args);
  return {values, sums, indices};
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) { m.impl("linear_topk", TORCH_BOX(&linear_topk_cpu)); }

}  // namespace ncops
