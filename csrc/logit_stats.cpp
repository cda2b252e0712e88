#include "tensors.h"

#ifdef NCOPS_WITH_CUDA
#include "cuda/kernels.h"
#include "cuda_stream.h"
#endif

namespace ncops {

// What forward and backward take alike, checked. Holds the dense copy that the arguments point into.
namespace {
struct Inputs {
  OptionalTensor target;

  template <class Args>
  Inputs(Args& args, const Tensor& logits, const OptionalTensor& given_target, double scale, int64_t ignore_index) {
    args.logits = rows_of(logits, "logits", &logits);
    STD_TORCH_CHECK(args.logits.dim > 0, "logits: expected at least one column");
    target = attach_target(args, given_target, args.logits.rows, logits, scale, ignore_index);
  }
};
}  // namespace

static Planes::Tuple logit_stats_cpu(const Tensor& logits, const OptionalTensor& target, double scale, int64_t ignore_index) {
  LogitStatsArgs args{};
  const Inputs inputs(args, logits, target, scale, ignore_index);
  const Planes out(logits, args.logits.rows);
  args.out = out.columns();
  logit_stats(args);
  return out.tuple();
}

static Tensor logit_stats_backward_cpu(const Tensor& grad, const Tensor& floats, const Tensor& indices, const Tensor& logits,
                                       const OptionalTensor& target, double scale, int64_t ignore_index) {
  LogitStatsBackwardArgs args;
  const Inputs inputs(args, logits, target, scale, ignore_index);
  const GradientPlanes planes(args, args.logits.rows, compute_type(logits), grad, floats, indices);
  Tensor out = fresh(logits, {args.logits.rows, args.logits.dim}, logits.scalar_type());
  args.g_logits = out.mutable_data_ptr();
  logit_stats_backward(args);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) {
  m.impl("logit_stats", TORCH_BOX(&logit_stats_cpu));
  m.impl("logit_stats_backward", TORCH_BOX(&logit_stats_backward_cpu));
}

#ifdef NCOPS_WITH_CUDA

static Planes::Tuple logit_stats_cuda(const Tensor& logits, const OptionalTensor& target, double scale, int64_t ignore_index) {
  const CudaCall call(logits);
  cuda::LogitStatsArgs args{};
  const Inputs inputs(args, logits, target, scale, ignore_index);
  const Planes out(logits, args.logits.rows);
  args.out = out.columns();
  const Tensor memory = workspace(logits, cuda::logit_stats_workspace(args.logits.rows, args.logits.dim));
  args.workspace = memory.mutable_data_ptr();
  args.stream = call.stream();
  cuda::logit_stats(args);
  return out.tuple();
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CUDA, m) { m.impl("logit_stats", TORCH_BOX(&logit_stats_cuda)); }

#endif

}  // namespace ncops
