// logit_stats on the device.
#include "logit_stats.cuh"

namespace ncops::cuda {

size_t logit_stats_workspace(int64_t rows, int64_t classes) { return logit_shares_bytes(rows, classes); }

void logit_stats(const LogitStatsArgs& args) {
  dispatch_dtype(args.logits.dtype, [&](auto in) { launch_logit_stats<decltype(in)>(args); });
}

}  // namespace ncops::cuda
