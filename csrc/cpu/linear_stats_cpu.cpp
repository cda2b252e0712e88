// linear_stats: a product whose tiles are reduced to row statistics on the spot.
#include "blocks/few_rows.h"
#include "linear_logits.h"

namespace ncops::NCOPS_ISA {
namespace {

// Logits of the targets by the arithmetic of few rows; rows without one stay as they are.
template <class T, class Products>
void few_targets(const LinearStatsArgs& args, const Products& products, const LinearStats<Plain<T>, 1>& epilogue, T* logits) {
  for (int64_t row = 0; row < args.x.rows; ++row) {
    T out[kWidth<T>];
    if (!epilogue.inside(row)) continue;
    products(args.target[row], out);
    logits[row] = epilogue.logit(out[row], args.target[row]);
  }
}

template <class T, class Products>
void run_few(const LinearStatsArgs& args, const Products& products, const Plan& plan, LinearStats<Plain<T>, 1>& epilogue) {
  T targets[kWidth<T>];
  for (T& logit : targets) logit = std::numeric_limits<T>::infinity();
  if (args.shares.floats) {
    if (args.target_logit) std::memcpy(targets, args.target_logit, args.x.rows * sizeof(T));
  } else if (args.target) {
    few_targets<T>(args, products, epilogue, targets);
    std::memcpy(epilogue.target_logits, targets, args.x.rows * sizeof(T));
  }
  products.run(args.x.rows, plan, epilogue, [&](auto& state, int64_t) { state.begin(targets); });
}

// Rows [first, first + count); T: the compute dtype.
template <class T>
LinearStatsArgs some_rows(const LinearStatsArgs& args, int64_t first, int64_t count) {
  LinearStatsArgs part = args;
  part.x = args.x.some(first, count);
  if (args.target) part.target += first;
  if (args.target_logit) part.target_logit = static_cast<T*>(args.target_logit) + first;
  if (args.out.floats) part.out.floats = static_cast<T*>(args.out.floats) + first, part.out.indices += first;
  if (args.shares.floats) part.shares.floats += first, part.shares.indices += first;
  return part;
}

// Logits of all targets, by the arithmetic of tiles.
template <class Mode, int NV>
void find_all_targets(const LinearStatsArgs& args, const LinearStats<Mode, NV>& epilogue) {
  using T = typename Mode::T;
  constexpr int64_t L = NV * kWidth<T>;
  const size_t panel_bytes = round_up(size_t(L) * Mode::depth(args.x.dim) * sizeof(T), 64);
  const Scratch scratch(panel_bytes * std::min<int64_t>(pieces(args.x.rows, L), workers()));
  for_blocks(args.x.rows, L, [&](int64_t row, int64_t end, int worker) {
    T* panel = scratch.at<T>(worker * panel_bytes);
    pack_panel<Mode, L>(args.x, row, end - row, panel);
    epilogue.find_targets(row, end - row, panel);
  });
}

constexpr int64_t kRowsAtOnce = 8192;  // of several splits, whose shares take 30 MB then

template <class Mode, int NV>
void all_columns(const LinearStatsArgs& args, const Plan& plan, const typename Mode::T* bias) {
  using T = typename Mode::T;
  const int64_t n = args.x.rows;
  const Scratch targets(args.target ? n * sizeof(T) : 0);
  const Scratch partials(plan.splits > 1 ? plan.splits * n * sizeof(LogitShare) : 0);
  LinearStats<Mode, NV> epilogue{args, bias, plan.splits > 1 ? partials.at<LogitShare>() : nullptr,
                                 args.target ? targets.at<T>() : static_cast<T*>(args.target_logit)};
  const bool done = with_few_rows<Mode, NV>(args.x, args.w, [&](const auto& products) {
    if constexpr (NV == 1) run_few<T>(args, products, plan, epilogue);
  });
  if (!done) {
    epilogue.one_tile = args.w.rows > 0 && args.w.rows <= plan.w_per_tile;
    if (plan.splits > 1 && args.target && !args.shares.floats) find_all_targets(args, epilogue);
    run_product<Mode, NV>(args.x, args.w, plan, epilogue);
  }
  if (plan.splits == 1) return;
  for_blocks(n, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      LogitShare total = epilogue.partials[row];
      for (int64_t split = 1; split < plan.splits; ++split) total.merge(epilogue.partials[split * n + row]);
      epilogue.write(row, total);
    }
  });
}

template <class Mode, int NV>
void in_ranges_of_rows(const LinearStatsArgs& args) {
  using T = typename Mode::T;
  const Bias<T> bias(args.bias, args.w.rows);
  const auto plan_of = [&](int64_t rows) {
    Plan plan = plan_product<T>(rows, args.w.rows, Mode::depth(args.x.dim), NV * kWidth<T>, kMostSplits);
    plan.few &= !args.shares.floats;  // targets of shares were found by the arithmetic of panels
    return plan;
  };
  const int64_t rows = args.x.rows, at_once = plan_of(rows).splits > 1 ? kRowsAtOnce : rows;
  for (int64_t row = 0; row < rows; row += at_once) {
    const int64_t count = std::min(at_once, rows - row);
    all_columns<Mode, NV>(some_rows<T>(args, row, count), plan_of(count), bias.data);
  }
}

template <class Mode, int NV>
void only_targets(const LinearStatsArgs& args) {
  using T = typename Mode::T;
  const Bias<T> bias(args.bias, args.w.rows);
  T* out = static_cast<T*>(args.target_logit);
  const LinearStats<Mode, NV> epilogue{args, bias.data, nullptr, out};
  std::fill_n(out, args.x.rows, std::numeric_limits<T>::infinity());
  const bool done = with_few_rows<Mode, NV>(args.x, args.w, [&](const auto& products) {
    if constexpr (NV == 1) few_targets<T>(args, products, epilogue, out);
  });
  if (!done) find_all_targets(args, epilogue);
}

}  // namespace

void linear_stats(const LinearStatsArgs& args) {
  by_shape(args.x, [&](auto mode, auto nv) { in_ranges_of_rows<decltype(mode), decltype(nv)::value>(args); });
}

void linear_stats_targets(const LinearStatsArgs& args) {
  by_shape(args.x, [&](auto mode, auto nv) { only_targets<decltype(mode), decltype(nv)::value>(args); });
}

}  // namespace ncops::NCOPS_ISA
