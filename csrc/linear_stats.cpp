#include "tensors.h"

#ifdef NCOPS_WITH_CUDA
#include "cuda/kernels.h"
#include "cuda_stream.h"
#endif

namespace ncops {

// What forward and backward take alike, checked. Holds the dense copies that the arguments point into.
struct Inputs {
  OptionalTensor bias, target, target_logit;

  template <class Args>
  Inputs(Args& args, const Tensor& x, const Tensor& weight, const OptionalTensor& given_bias,
         const OptionalTensor& given_target, double scale, int64_t ignore_index) {
    args.x = rows_of(x, "x", &x);
    args.w = rows_of(weight, "weight", &x);
    STD_TORCH_CHECK(args.w.dtype == args.x.dtype, "weight: expected the dtype of x");
    STD_TORCH_CHECK(args.w.rows > 0, "weight: expected at least one row");
    check_size(weight, "weight", 1, args.x.dim);
    if (given_bias) {
      bias = dense(*given_bias, "bias", x.scalar_type(), &x);
      check_size(*bias, "bias", 0, args.w.rows);
      args.bias.data = bias->const_data_ptr();
      args.bias.dtype = args.x.dtype;
    }
    if (given_target) {
      target = dense_labels(*given_target, "target", args.x.rows, &x);
      args.target = pointer<int64_t>(target);
    }
    args.scale = scale;
    args.ignore_index = ignore_index;
  }
};

// On any device: run(args) starts the kernels.
template <class Args, class Run>
static LogitOutputs::Tuple linear_columns(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                          const OptionalTensor& target, double scale, int64_t ignore_index,
                                          const OptionalTensor& target_logit, Run run) {
  Args args{};
  Inputs inputs(args, x, weight, bias, target, scale, ignore_index);
  if (target_logit) {
    STD_TORCH_CHECK(target.has_value(), "target_logit: expected a target beside it");
    inputs.target_logit = dense(*target_logit, "target_logit", compute_type(x), &x);
    check_size(*inputs.target_logit, "target_logit", 0, args.x.rows);
    args.target_logit = inputs.target_logit->const_data_ptr();
  }
  LogitOutputs out(x, args.x.rows, target.has_value());
  args.out = out.columns();
  run(args);
  return out.tuple();
}

// The same for the targets' logits alone: (N) in the compute dtype, +inf where the target is no class.
template <class Args, class Run>
static Tensor linear_targets(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& target,
                             double scale, int64_t ignore_index, Run run) {
  Args args{};
  const Inputs inputs(args, x, weight, bias, target, scale, ignore_index);
  Tensor out = fresh(x, {args.x.rows}, compute_type(x));
  args.out.target_logit = out.mutable_data_ptr();
  run(args);
  return out;
}

static LogitOutputs::Tuple linear_stats_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                            const OptionalTensor& target, double scale, int64_t ignore_index,
                                            bool /*allow_tf32: always exact here*/, const OptionalTensor& target_logit) {
  return linear_columns<LinearStatsArgs>(x, weight, bias, target, scale, ignore_index, target_logit,
                                         [](const LinearStatsArgs& args) { linear_stats(args); });
}

static Tensor linear_stats_targets_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& target,
                                       double scale, int64_t ignore_index, bool /*allow_tf32*/) {
  return linear_targets<LinearStatsArgs>(x, weight, bias, target, scale, ignore_index,
                                         [](const LinearStatsArgs& args) { linear_stats_targets(args); });
}

static std::tuple<Tensor, Tensor, Tensor> linear_stats_backward_cpu(
    const Tensor& g_lse, const Tensor& g_gap, const Tensor& g_max, const Tensor& g_second, const Tensor& g_target_logit,
    const Tensor& g_nll, const Tensor& g_entropy, const Tensor& g_mean, const Tensor& g_var, const Tensor& gap,
    const Tensor& max, const Tensor& entropy, const Tensor& mean, const Tensor& argmax, const Tensor& second_index,
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& target, double scale,
    int64_t ignore_index, bool /*allow_tf32: always exact here*/, bool need_x, bool need_weight, bool need_bias) {
  LinearStatsBackwardArgs args;
  const Inputs inputs(args, x, weight, bias, target, scale, ignore_index);
  const ScalarType type = compute_type(x);
  const LogitGradientInputs columns(args, args.x.rows, type, g_lse, g_gap, g_max, g_second, g_target_logit, g_nll, g_entropy,
                                    g_mean, g_var, gap, max, entropy, mean, argmax, second_index);
  const auto empty = [&] { return fresh(x, {0}, type); };
  Tensor g_x = need_x ? fresh(x, {args.x.rows, args.x.dim}, type) : empty();
  Tensor g_weight = need_weight ? fresh(x, {args.w.rows, args.x.dim}, type) : empty();
  Tensor g_bias = need_bias ? fresh(x, {args.w.rows}, type) : empty();
  if (need_x) args.g_x = g_x.mutable_data_ptr();
  if (need_weight) args.g_weight = g_weight.mutable_data_ptr();
  if (need_bias) args.g_bias = g_bias.mutable_data_ptr();
  linear_stats_backward(args);
  const auto stored = [&](const Tensor& t) { return x.scalar_type() == type ? t : torch::stable::to(t, x.scalar_type()); };
  return {stored(g_x), stored(g_weight), stored(g_bias)};
}

STABLE_TORCH_LIBRARY_FRAGMENT(ncops_C, m) {
  m.def(
      "linear_stats(Tensor x, Tensor weight, Tensor? bias, Tensor? target, float scale, int ignore_index, bool allow_tf32,"
      " Tensor? target_logit)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "linear_stats_targets(Tensor x, Tensor weight, Tensor? bias, Tensor target, float scale, int ignore_index,"
      " bool allow_tf32) -> Tensor");
  m.def(
      "linear_stats_backward(Tensor g_lse, Tensor g_gap, Tensor g_max, Tensor g_second, Tensor g_target_logit, Tensor g_nll,"
      " Tensor g_entropy, Tensor g_mean, Tensor g_var, Tensor gap, Tensor max, Tensor entropy, Tensor mean, Tensor argmax,"
      " Tensor second_index, Tensor x, Tensor weight, Tensor? bias, Tensor? target, float scale, int ignore_index,"
      " bool allow_tf32, bool need_x, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) {
  m.impl("linear_stats", TORCH_BOX(&linear_stats_cpu));
  m.impl("linear_stats_targets", TORCH_BOX(&linear_stats_targets_cpu));
  m.impl("linear_stats_backward", TORCH_BOX(&linear_stats_backward_cpu));
}

#ifdef NCOPS_WITH_CUDA

static LogitOutputs::Tuple linear_stats_cuda(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                             const OptionalTensor& target, double scale, int64_t ignore_index,
                                             bool /*allow_tf32: always exact here*/, const OptionalTensor& target_logit) {
  const CudaCall call(x);
  return linear_columns<cuda::LinearStatsArgs>(
      x, weight, bias, target, scale, ignore_index, target_logit, [&](cuda::LinearStatsArgs& args) {
        const Tensor memory = workspace(x, cuda::linear_stats_workspace(args.x.dtype, args.x.rows, args.w.rows));
        args.workspace = memory.mutable_data_ptr();
        args.stream = call.stream();
        cuda::linear_stats(args);
      });
}

static Tensor linear_stats_targets_cuda(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                        const Tensor& target, double scale, int64_t ignore_index, bool /*allow_tf32*/) {
  const CudaCall call(x);
  return linear_targets<cuda::LinearStatsArgs>(x, weight, bias, target, scale, ignore_index, [&](cuda::LinearStatsArgs& args) {
    args.stream = call.stream();
    cuda::linear_stats_targets(args);
  });
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CUDA, m) {
  m.impl("linear_stats", TORCH_BOX(&linear_stats_cuda));
  m.impl("linear_stats_targets", TORCH_BOX(&linear_stats_targets_cuda));
}

#endif

}  // namespace ncops
