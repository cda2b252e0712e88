#include "logit_bind.h"

#include "cuda/logit_stats.cuh"

SIMT_MODULE(logit_stats, m) {
  using namespace ncops::cuda;
  m.def("logit_stats", [](const simt::In& logits, const std::optional<simt::In>& target, double scale, double softcap,
                          int64_t ignore_index, const simt::Out& floats, const simt::Out& indices) {
    const simt::Workspace workspace(logit_shares_bytes(logits.size(0), logits.size(1)));
    LogitStatsArgs args{};
    args.logits = rows_of(logits);
    args.target = target ? target->data<int64_t>() : nullptr;
    args.scale = scale;
    args.softcap = softcap;
    args.ignore_index = ignore_index;
    args.out = columns_of(floats, indices);
    args.workspace = workspace.data();
    dispatch_dtype(args.logits.dtype, [&](auto in) { launch_logit_stats<decltype(in)>(args); });
  });
  m.def("splits", &logit_splits, "Blocks that share a row.");
}
