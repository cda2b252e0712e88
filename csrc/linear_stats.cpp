#include "tensors.h"

#ifdef NCOPS_WITH_CUDA
#include "cuda/kernels.h"
#include "cuda_stream.h"
#endif

namespace ncops {

// What forward and backward take alike, checked. Holds the dense copies that the arguments point into.
namespace {
struct Inputs {
  OptionalTensor bias, target;

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
    target = attach_target(args, given_target, args.x.rows, x, scale, ignore_index);
  }
};
}  // namespace

// How the kernels of a device start. allow_tf32 of the ops means nothing to them: they are always exact.
struct OnCpu {
  using Args = LinearStatsArgs;
  explicit OnCpu(const Tensor&) {}
  void columns(Args& args) const { linear_stats(args); }
  void targets(Args& args) const { linear_stats_targets(args); }
};

template <class Device>
static Planes::Tuple linear_stats_on(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                     const OptionalTensor& target, double scale, int64_t ignore_index, bool /*allow_tf32*/) {
  const Device device(x);
  typename Device::Args args{};
  const Inputs inputs(args, x, weight, bias, target, scale, ignore_index);
  const Planes out(x, args.x.rows);
  args.out = out.columns();
  device.columns(args);
  return out.tuple();
}

// The shares of these classes; ranks are counted against target_logit (N), where it is given.
template <class Device>
static Planes::Tuple linear_stats_share_on(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                           const OptionalTensor& target_logit, double scale, bool /*allow_tf32*/) {
  const Device device(x);
  typename Device::Args args{};
  const Inputs inputs(args, x, weight, bias, std::nullopt, scale, -1);
  OptionalTensor level;
  if (target_logit) {
    level = dense(*target_logit, "target_logit", compute_type(x), &x);
    check_size(*level, "target_logit", 0, args.x.rows);
    args.target_logit = const_cast<void*>(level->const_data_ptr());  // only read where there are shares
  }
  const Planes out = Planes::of_shares(x, args.x.rows);
  args.shares = out.shares();
  device.columns(args);
  return out.tuple();
}

// The targets' logits alone: (N) in the compute dtype, +inf where the target is no class.
template <class Device>
static Tensor linear_stats_targets_on(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& target,
                                      double scale, int64_t ignore_index, bool /*allow_tf32*/) {
  const Device device(x);
  typename Device::Args args{};
  const Inputs inputs(args, x, weight, bias, target, scale, ignore_index);
  Tensor out = fresh(x, {args.x.rows}, compute_type(x));
  args.target_logit = out.mutable_data_ptr();
  device.targets(args);
  return out;
}

static std::tuple<Tensor, Tensor, Tensor> linear_stats_backward_cpu(
    const Tensor& grad, const Tensor& floats, const Tensor& indices, const Tensor& x, const Tensor& weight,
    const OptionalTensor& bias, const OptionalTensor& target, double scale, int64_t ignore_index, bool /*allow_tf32*/,
    bool need_x, bool need_weight, bool need_bias) {
  LinearStatsBackwardArgs args;
  const Inputs inputs(args, x, weight, bias, target, scale, ignore_index);
  const ScalarType type = compute_type(x);
  const GradientPlanes planes(args, args.x.rows, type, grad, floats, indices);
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

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) {
  m.impl("linear_stats", TORCH_BOX(&linear_stats_on<OnCpu>));
  m.impl("linear_stats_share", TORCH_BOX(&linear_stats_share_on<OnCpu>));
  m.impl("linear_stats_targets", TORCH_BOX(&linear_stats_targets_on<OnCpu>));
  m.impl("linear_stats_backward", TORCH_BOX(&linear_stats_backward_cpu));
}

#ifdef NCOPS_WITH_CUDA

struct OnCuda {
  using Args = cuda::LinearStatsArgs;
  CudaCall call;
  const Tensor& x;
  explicit OnCuda(const Tensor& x) : call(x), x(x) {}
  void columns(Args& args) const {
    const Tensor memory = workspace(x, cuda::linear_stats_workspace(args.x.dtype, args.x.rows, args.w.rows));
    args.workspace = memory.mutable_data_ptr();
    args.stream = call.stream();
    cuda::linear_stats(args);
  }
  void targets(Args& args) const {
    args.stream = call.stream();
    cuda::linear_stats_targets(args);
  }
};

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CUDA, m) {
  m.impl("linear_stats", TORCH_BOX(&linear_stats_on<OnCuda>));
  m.impl("linear_stats_share", TORCH_BOX(&linear_stats_share_on<OnCuda>));
  m.impl("linear_stats_targets", TORCH_BOX(&linear_stats_targets_on<OnCuda>));
}

#endif

}  // namespace ncops
