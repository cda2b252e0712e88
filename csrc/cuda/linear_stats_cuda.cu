// linear_stats on the device, forward.
#include "linear_stats.cuh"

namespace ncops::cuda {

size_t linear_stats_workspace(DType dtype, int64_t rows, int64_t classes) {
  size_t bytes = 0;
  dispatch_dtype(dtype, [&](auto in) {
    const LinearPlan plan(rows, classes, ProductTile<decltype(in)>::kRows);
    bytes = LinearWorkspace(nullptr, rows, plan.splits).bytes;
  });
  return bytes;
}

void linear_stats(const LinearStatsArgs& args) {
  dispatch_dtype(args.x.dtype, [&](auto in) { launch_linear_stats<decltype(in)>(args); });
}

void linear_stats_targets(const LinearStatsArgs& args) {
  dispatch_dtype(args.x.dtype, [&](auto in) { launch_target_logits<decltype(in)>(args); });
}

}  // namespace ncops::cuda
