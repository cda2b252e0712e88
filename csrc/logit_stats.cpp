#include "tensors.h"

namespace ncops {

static LogitOutputs::Tuple logit_stats_cpu(const Tensor& logits, const OptionalTensor& target, double scale,
                                           int64_t ignore_index) {
  LogitStatsArgs args;
  args.logits = rows_of(logits, "logits");
  STD_TORCH_CHECK(args.logits.dim > 0, "logits: expected at least one column");
  OptionalTensor dense_target;
  if (target) {
    dense_target = dense_labels(*target, "target", args.logits.rows);
    args.target = pointer<int64_t>(dense_target);
  }
  args.scale = scale;
  args.ignore_index = ignore_index;
  LogitOutputs out(logits, args.logits.rows, target.has_value());
  args.out = out.columns();
  logit_stats(args);
  return out.tuple();
}

static Tensor logit_stats_backward_cpu(
    const Tensor& g_lse, const Tensor& g_gap, const Tensor& g_max, const Tensor& g_second, const Tensor& g_target_logit,
    const Tensor& g_nll, const Tensor& g_entropy, const Tensor& g_mean, const Tensor& g_var, const Tensor& gap,
    const Tensor& max, const Tensor& entropy, const Tensor& mean, const Tensor& argmax, const Tensor& second_index,
    const Tensor& logits, const OptionalTensor& target, double scale, int64_t ignore_index) {
  LogitStatsBackwardArgs args;
  args.logits = rows_of(logits, "logits");
  STD_TORCH_CHECK(args.logits.dim > 0, "logits: expected at least one column");
  OptionalTensor dense_target;
  if (target) {
    dense_target = dense_labels(*target, "target", args.logits.rows);
    args.target = pointer<int64_t>(dense_target);
  }
  args.scale = scale;
  args.ignore_index = ignore_index;
  const LogitGradientInputs columns(args, args.logits.rows, compute_type(logits), g_lse, g_gap, g_max, g_second,
                                    g_target_logit, g_nll, g_entropy, g_mean, g_var, gap, max, entropy, mean, argmax,
                                    second_index);
  Tensor grad = fresh(logits, {args.logits.rows, args.logits.dim}, logits.scalar_type());
  args.g_logits = grad.mutable_data_ptr();
  logit_stats_backward(args);
  return grad;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ncops_C, m) {
  m.def(
      "logit_stats(Tensor logits, Tensor? target, float scale, int ignore_index)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "logit_stats_backward(Tensor g_lse, Tensor g_gap, Tensor g_max, Tensor g_second, Tensor g_target_logit, Tensor g_nll,"
      " Tensor g_entropy, Tensor g_mean, Tensor g_var, Tensor gap, Tensor max, Tensor entropy, Tensor mean, Tensor argmax,"
      " Tensor second_index, Tensor logits, Tensor? target, float scale, int ignore_index) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) {
  m.impl("logit_stats", TORCH_BOX(&logit_stats_cpu));
  m.impl("logit_stats_backward", TORCH_BOX(&logit_stats_backward_cpu));
}

}  // namespace ncops
