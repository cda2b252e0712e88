#include "linear_inputs.h"

#ifdef NCOPS_WITH_CUDA
#include "cuda_stream.h"
#endif

namespace ncops {

// How the kernels of a device start. allow_tf32 of the ops means nothing to them: they are always exact.
static void columns(const LinearStatsArgs& args, const Tensor&) { linear_stats(args); }
static void targets(const LinearStatsArgs& args, const Tensor&) { linear_stats_targets(args); }

#ifdef NCOPS_WITH_CUDA
static void columns(cuda::LinearStatsArgs& args, const Tensor& x) {
  const CudaCall call(args, x, cuda::linear_stats_workspace(args.x.dtype, args.x.rows, args.w.rows));
  cuda::linear_stats(args);
}
static void targets(cuda::LinearStatsArgs& args, const Tensor& x) {
  const CudaCall call(args, x);
  cuda::linear_stats_targets(args);
}
#endif

template <class Args>
static Planes::Tuple linear_stats_on(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                     const OptionalTensor& target, double scale, double softcap, int64_t ignore_index,
                                     bool /*allow_tf32*/) {
  Args args{};
  const auto inputs = attach(args, x, weight, bias, target, scale, softcap, ignore_index);
  const Planes out(x, args.x.rows);
  args.out = out.columns();
  columns(args, x);
  return out.tuple();
}

// The shares of these classes; ranks are counted against target_logit (N), where it is given.
template <class Args>
static Planes::Tuple linear_stats_share_on(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                           const OptionalTensor& target_logit, double scale, double softcap, bool /*allow_tf32*/) {
  Args args{};
  const auto inputs = attach(args, x, weight, bias, std::nullopt, scale, softcap, -1);
  OptionalTensor level;
  if (target_logit) {
    level = dense(*target_logit, "target_logit", compute_type(x), &x);
    check_size(*level, "target_logit", 0, args.x.rows);
    args.target_logit = const_cast<void*>(data_of(*level));  // only read where there are shares
  }
  const Planes out = Planes::of_shares(x, args.x.rows);
  args.shares = out.shares();
  columns(args, x);
  return out.tuple();
}

// The targets' logits alone: (N) in the compute dtype, +inf where the target is no class.
template <class Args>
static Tensor linear_stats_targets_on(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& target,
                                      double scale, double softcap, int64_t ignore_index, bool /*allow_tf32*/) {
  Args args{};
  const auto inputs = attach(args, x, weight, bias, target, scale, softcap, ignore_index);
  Tensor out = fresh(x, {args.x.rows}, compute_type(x));
  args.target_logit = writable(out);
  targets(args, x);
  return out;
}

static std::tuple<Tensor, Tensor, Tensor> linear_stats_backward_cpu(
    const Tensor& grad, const Tensor& floats, const Tensor& indices, const Tensor& x, const Tensor& weight,
    const OptionalTensor& bias, const OptionalTensor& target, double scale, double softcap, int64_t ignore_index,
    bool /*allow_tf32*/, bool need_x, bool need_weight, bool need_bias, bool wide) {
  LinearStatsBackwardArgs args;
  const auto inputs = attach(args, x, weight, bias, target, scale, softcap, ignore_index);
  const ScalarType type = compute_type(x);
  const auto planes = attach_planes(args, args.x.rows, type, grad, floats, indices);
  const Tensor g_x = gradient(x, need_x, {args.x.rows, args.x.dim}, type, args.g_x);
  const Tensor g_weight = gradient(x, need_weight, {args.w.rows, args.x.dim}, type, args.g_weight);
  const Tensor g_bias = gradient(x, need_bias, {args.w.rows}, type, args.g_bias);
  linear_stats_backward(args);
  const ScalarType stored = wide ? type : x.scalar_type();
  return {stored_as(g_x, stored), stored_as(g_weight, stored), stored_as(g_bias, stored)};
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) {
  m.impl("linear_stats", TORCH_BOX(&linear_stats_on<LinearStatsArgs>));
  m.impl("linear_stats_share", TORCH_BOX(&linear_stats_share_on<LinearStatsArgs>));
  m.impl("linear_stats_targets", TORCH_BOX(&linear_stats_targets_on<LinearStatsArgs>));
  m.impl("linear_stats_backward", TORCH_BOX(&linear_stats_backward_cpu));
}

#ifdef NCOPS_WITH_CUDA

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CUDA, m) {
  m.impl("linear_stats", TORCH_BOX(&linear_stats_on<cuda::LinearStatsArgs>));
  m.impl("linear_stats_share", TORCH_BOX(&linear_stats_share_on<cuda::LinearStatsArgs>));
  m.impl("linear_stats_targets", TORCH_BOX(&linear_stats_targets_on<cuda::LinearStatsArgs>));
}

#endif

}  // namespace ncops
