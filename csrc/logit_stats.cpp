#include "tensors.h"

#ifdef NCOPS_WITH_CUDA
#include "cuda/kernels.h"
#include "cuda_stream.h"
#endif

namespace ncops {

// On any device: run(args) starts the kernels.
template <class Args, class Run>
static LogitOutputs::Tuple logit_columns(const Tensor& logits, const OptionalTensor& target, double scale, int64_t ignore_index,
                                         Run run) {
  Args args{};
  args.logits = rows_of(logits, "logits", &logits);
  STD_TORCH_CHECK(args.logits.dim > 0, "logits: expected at least one column");
  OptionalTensor dense_target;
  if (target) {
    dense_target = dense_labels(*target, "target", args.logits.rows, &logits);
    args.target = pointer<int64_t>(dense_target);
  }
  args.scale = scale;
  args.ignore_index = ignore_index;
  LogitOutputs out(logits, args.logits.rows, target.has_value());
  args.out = out.columns();
  run(args);
  return out.tuple();
}

static LogitOutputs::Tuple logit_stats_cpu(const Tensor& logits, const OptionalTensor& target, double scale,
                                           int64_t ignore_index) {
  return logit_columns<LogitStatsArgs>(logits, target, scale, ignore_index,
                                       [](const LogitStatsArgs& args) { logit_stats(args); });
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

#ifdef NCOPS_WITH_CUDA

static LogitOutputs::Tuple logit_stats_cuda(const Tensor& logits, const OptionalTensor& target, double scale,
                                            int64_t ignore_index) {
  const CudaCall call(logits);
  return logit_columns<cuda::LogitStatsArgs>(logits, target, scale, ignore_index, [&](cuda::LogitStatsArgs& args) {
    const Tensor memory = workspace(logits, cuda::logit_stats_workspace(args.logits.rows, args.logits.dim));
    args.workspace = memory.mutable_data_ptr();
    args.stream = call.stream();
    cuda::logit_stats(args);
  });
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CUDA, m) { m.impl("logit_stats", TORCH_BOX(&logit_stats_cuda)); }

#endif

}  // namespace ncops
