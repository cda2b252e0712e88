#include "tensors.h"

namespace ncops {

static LogitOutputs::Tuple linear_stats_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                            const OptionalTensor& target, double scale, int64_t ignore_index,
                                            bool /*allow_tf32: always exact here*/) {
  LinearStatsArgs args;
  args.x = rows_of(x, "x");
  args.w = rows_of(weight, "weight");
  STD_TORCH_CHECK(args.w.dtype == args.x.dtype, "weight: expected the dtype of x");
  STD_TORCH_CHECK(args.w.rows > 0, "weight: expected at least one row");
  check_size(weight, "weight", 1, args.x.dim);
  OptionalTensor dense_bias, dense_target;
  if (bias) {
    dense_bias = dense(*bias, "bias", x.scalar_type());
    check_size(*dense_bias, "bias", 0, args.w.rows);
    args.bias.data = dense_bias->const_data_ptr();
    args.bias.dtype = args.x.dtype;
  }
  if (target) {
    dense_target = dense_labels(*target, "target", args.x.rows);
    args.target = pointer<int64_t>(dense_target);
  }
  args.scale = scale;
  args.ignore_index = ignore_index;
  LogitOutputs out(x, args.x.rows, target.has_value());
  args.out = out.columns();
  linear_stats(args);
  return out.tuple();
}

STABLE_TORCH_LIBRARY_FRAGMENT(ncops_C, m) {
  m.def(
      "linear_stats(Tensor x, Tensor weight, Tensor? bias, Tensor? target, float scale, int ignore_index, bool allow_tf32)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) { m.impl("linear_stats", TORCH_BOX(&linear_stats_cpu)); }

}  // namespace ncops
