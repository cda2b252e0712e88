#include "logit_bind.h"

#include "cuda/linear_stats.cuh"

static ncops::cuda::LinearStatsArgs problem(const simt::In& x, const simt::In& weight, const std::optional<simt::In>& bias,
                                            const std::optional<simt::In>& target, double scale, double softcap,
                                            int64_t ignore_index) {
  ncops::cuda::LinearStatsArgs args{};
  args.x = rows_of(x);
  args.w = rows_of(weight);
  if (bias) args.bias = rows_of(*bias);
  args.target = target ? target->data<int64_t>() : nullptr;
  args.scale = scale;
  args.softcap = softcap;
  args.ignore_index = ignore_index;
  return args;
}

SIMT_MODULE(linear_stats, m) {
  using namespace ncops::cuda;
  const auto run = [](LinearStatsArgs args, int64_t blocks) {
    dispatch_dtype(args.x.dtype, [&](auto in) {
      using E = decltype(in);
      const LinearPlan plan(args.x.rows, args.w.rows, ProductTile<E>::kRows, blocks);
      const simt::Workspace workspace(LinearWorkspace(nullptr, args.x.rows, plan.splits).bytes);
      args.workspace = workspace.data();
      launch_linear_stats<E>(args, blocks);
    });
  };
  m.def("linear_stats", [run](const simt::In& x, const simt::In& weight, const std::optional<simt::In>& bias,
                              const std::optional<simt::In>& target, double scale, double softcap, int64_t ignore_index,
                              int64_t blocks, const simt::Out& floats, const simt::Out& indices) {
    LinearStatsArgs args = problem(x, weight, bias, target, scale, softcap, ignore_index);
    args.out = columns_of(floats, indices);
    run(args, blocks);
  });
  m.def("linear_stats_share", [run](const simt::In& x, const simt::In& weight, const std::optional<simt::In>& bias,
                                    const std::optional<simt::In>& target_logit, double scale, double softcap, int64_t blocks,
                                    const simt::Out& floats, const simt::Out& indices) {
    LinearStatsArgs args = problem(x, weight, bias, {}, scale, softcap, -1);
    if (target_logit) args.target_logit = target_logit->raw();
    args.shares = shares_of(floats, indices);
    run(args, blocks);
  });
  m.def("linear_stats_targets", [](const simt::In& x, const simt::In& weight, const std::optional<simt::In>& bias,
                                   const std::optional<simt::In>& target, double scale, double softcap, int64_t ignore_index,
                                   const simt::Out& out) {
    LinearStatsArgs args = problem(x, weight, bias, target, scale, softcap, ignore_index);
    args.target_logit = out.raw();
    dispatch_dtype(args.x.dtype, [&](auto in) { launch_target_logits<decltype(in)>(args); });
  });
  m.def("splits", [](int64_t rows, int64_t classes, int tile) { return LinearPlan(rows, classes, tile).splits; });
}
