#include "tensors.h"

namespace ncops {

static LogitDivergenceArgs attach(const Tensor& logits, const Tensor& other_logits, double scale, double softcap, double beta) {
  LogitDivergenceArgs args;
  args.scale = scale, args.softcap = softcap, args.beta = beta;
  args.logits = rows_of(logits, "logits", &logits);
  args.other = rows_of(other_logits, "other_logits", &logits);
  STD_TORCH_CHECK(args.logits.dim > 0, "logits: expected at least one column");
  STD_TORCH_CHECK(args.other.dtype == args.logits.dtype, "other_logits: expected the dtype of logits");
  check_size(other_logits, "other_logits", 0, args.logits.rows);
  check_size(other_logits, "other_logits", 1, args.logits.dim);
  return args;
}

static std::tuple<Tensor, Tensor> logit_divergence_cpu(const Tensor& logits, const Tensor& other_logits, double scale, double softcap,
                                                       double beta) {
  LogitDivergenceArgs args = attach(logits, other_logits, scale, softcap, beta);
  const Tensor floats = fresh(logits, {divergence::kColumns, args.logits.rows}, compute_type(logits));
  const Tensor agree = fresh(logits, {args.logits.rows}, ScalarType::Bool);
  args.out = writable(floats);
  args.agree = writable<bool>(agree);
  logit_divergence(args);
  return {floats, agree};
}

static std::tuple<Tensor, Tensor> logit_divergence_backward_cpu(const Tensor& grad, const Tensor& floats, const Tensor& logits,
                                                                const Tensor& other_logits, double scale, double softcap,
                                                                double beta, bool need_logits, bool need_other_logits) {
  LogitDivergenceArgs args = attach(logits, other_logits, scale, softcap, beta);
  const auto planes = attach_divergences(args, args.logits.rows, compute_type(logits), grad, floats);
  const std::initializer_list<int64_t> sizes = {args.logits.rows, args.logits.dim};
  const Tensor g_logits = gradient(logits, need_logits, sizes, logits.scalar_type(), args.g_logits);
  const Tensor g_other = gradient(logits, need_other_logits, sizes, logits.scalar_type(), args.g_other);
  logit_divergence_backward(args);
  return {g_logits, g_other};
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) {
  m.impl("logit_divergence", TORCH_BOX(&logit_divergence_cpu));
  m.impl("logit_divergence_backward", TORCH_BOX(&logit_divergence_backward_cpu));
}

}  // namespace ncops
