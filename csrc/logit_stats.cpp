#include "tensors.h"

#ifdef NCOPS_WITH_CUDA
#include "cuda_stream.h"
#endif

namespace ncops {

// What forward and backward take alike, checked; returns the dense target that args points into.
template <class Args>
static OptionalTensor attach(Args& args, const Tensor& logits, const OptionalTensor& target, double scale,
                             double softcap, int64_t ignore_index) {
  args.logits = rows_of(logits, "logits", &logits);
  STD_TORCH_CHECK(args.logits.dim > 0, "logits: expected at least one column");
  return attach_target(args, target, args.logits.rows, logits, scale, softcap, ignore_index);
}

// How the kernel of a device starts.
static void run(const LogitStatsArgs& args, const Tensor&) { logit_stats(args); }

#ifdef NCOPS_WITH_CUDA
static void run(cuda::LogitStatsArgs& args, const Tensor& logits) {
  const CudaCall call(args, logits, cuda::logit_stats_workspace(args.logits.rows, args.logits.dim));
  cuda::logit_stats(args);
}
#endif

template <class Args>
static Planes::Tuple logit_stats_on(const Tensor& logits, const OptionalTensor& target, double scale, double softcap,
                                    int64_t ignore_index) {
  Args args{};
  const OptionalTensor dense_target = attach(args, logits, target, scale, softcap, ignore_index);
  const Planes out(logits, args.logits.rows);
  args.out = out.columns();
  run(args, logits);
  return out.tuple();
}

static Tensor logit_stats_backward_cpu(const Tensor& grad, const Tensor& floats, const Tensor& indices, const Tensor& logits,
                                       const OptionalTensor& target, double scale, double softcap, int64_t ignore_index) {
  LogitStatsBackwardArgs args;
  const OptionalTensor dense_target = attach(args, logits, target, scale, softcap, ignore_index);
  const int64_t rows = args.logits.rows, classes = args.logits.dim;
  const auto planes = attach_planes(args, rows, compute_type(logits), grad, floats, indices);
  for (int64_t i = 0; i < kIndexColumns * rows; ++i)  // a caller may have written into them since the forward
    STD_TORCH_CHECK(args.indices[i] >= -1 && args.indices[i] < classes, "indices: expected -1 or classes below ", classes,
                    ", got ", args.indices[i], " at row ", i % rows);
  Tensor out = fresh(logits, {rows, classes}, logits.scalar_type());
  args.g_logits = writable(out);
  logit_stats_backward(args);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) {
  m.impl("logit_stats", TORCH_BOX(&logit_stats_on<LogitStatsArgs>));
  m.impl("logit_stats_backward", TORCH_BOX(&logit_stats_backward_cpu));
}

#ifdef NCOPS_WITH_CUDA

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CUDA, m) { m.impl("logit_stats", TORCH_BOX(&logit_stats_on<cuda::LogitStatsArgs>)); }

#endif

}  // namespace ncops
