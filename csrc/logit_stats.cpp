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

STABLE_TORCH_LIBRARY_FRAGMENT(ncops_C, m) {
  m.def(
      "logit_stats(Tensor logits, Tensor? target, float scale, int ignore_index)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) { m.impl("logit_stats", TORCH_BOX(&logit_stats_cpu)); }

}  // namespace ncops
