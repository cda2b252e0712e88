#include "logit_bind.h"

#include "cuda/linear_stats.cuh"

SIMT_MODULE(linear_stats, m) {
  using namespace ncops::cuda;
  m.def("linear_stats", [](const simt::In& x, const simt::In& weight, const std::optional<simt::In>& bias,
                           const std::optional<simt::In>& target, double scale, int64_t ignore_index, int64_t blocks,
                           const std::vector<simt::Out>& out) {
    LinearStatsArgs args{};
    args.x = rows_of(x);
    args.w = rows_of(weight);
    if (bias) args.bias = rows_of(*bias);
    args.target = target ? target->data<int64_t>() : nullptr;
    args.scale = scale;
    args.ignore_index = ignore_index;
    args.out = columns_of(out);
    dispatch_dtype(args.x.dtype, [&](auto in) {
      using E = decltype(in);
      const LinearPlan plan(args.x.rows, args.w.rows, ProductTile<E>::kRows, blocks);
      const simt::Workspace workspace(LinearWorkspace(nullptr, args.x.rows, plan.splits).bytes);
      args.workspace = workspace.data();
      launch_linear_stats<E>(args, blocks);
    });
  });
  m.def("splits", [](int64_t rows, int64_t classes, int tile) { return LinearPlan(rows, classes, tile).splits; });
}
