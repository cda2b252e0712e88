// linear_stats: a product whose tiles are reduced to row statistics on the spot.
#include "logit_columns.h"
#include "product.h"

namespace ncops::NCOPS_ISA {
namespace {

template <class T, int NV>
struct LinearStats {
  static constexpr int L = NV * kWidth<T>;
  using State = LogitState<T, L>;
  const LinearStatsArgs& args;
  const Plan& plan;
  const T* bias;       // (V) in T, or null
  RowStats* partials;  // (splits, N) where w is split, else null
  T* target_logits;    // (N), or null

  // The target's logit first, by the arithmetic of the tiles, so that its rank is exact.
  void begin(State& state, int64_t row, int64_t count, const T* panel) {
    T logits[L];
    for (int i = 0; i < L; ++i) logits[i] = std::numeric_limits<T>::infinity();
    if (args.target) {
      int64_t index[L];
      for (int64_t i = 0; i < count; ++i) index[i] = inside(args.target[row + i]) ? args.target[row + i] : 0;
      Rows rows = args.w;
      rows.index = index;
      rows.rows = count;
      Scratch scratch(size_t(L) * rows.dim * sizeof(T));
      pack_panel<T, L>(rows, 0, count, scratch.at<T>());
      T products[L];
      multiply_diagonal<T, NV>(panel, scratch.at<T>(), rows.dim, products);
      for (int lane = 0; lane < count; ++lane) {
        if (!inside(args.target[row + lane])) continue;
        const T b = bias ? bias[index[lane]] : T(0);
        logits[lane] = fma(splat<T>(products[lane]), splat<T>(T(args.scale)), splat<T>(b))[0];
        target_logits[row + lane] = logits[lane];
      }
    }
    state.begin(logits);
  }

  void tile(State& state, T* tile, int64_t first, int64_t count) {
    state.add(tile, first, count, T(args.scale), bias ? bias + first : nullptr);
  }

  void end(State& state, int64_t row, int64_t count, int64_t split) {
    for (int64_t i = 0; i < count; ++i) {
      if (partials) partials[split * args.x.rows + row + i] = state.row(i);
      else write(row + i, state.row(i));
    }
  }

  void write(int64_t row, const RowStats& r) {
    write_row<T>(args.out, row, r, args.target, args.ignore_index, target_logits ? target_logits[row] : T(0));
  }

  bool inside(int64_t t) const { return t >= 0 && t < args.w.rows && t != args.ignore_index; }
};

template <class T, int NV>
void run(const LinearStatsArgs& args) {
  const int64_t n = args.x.rows, v = args.w.rows;
  if (n == 0) return;
  const Plan plan = plan_product<T>(n, v, args.x.dim, NV * kWidth<T>);
  Scratch bias(args.bias.data ? v * sizeof(T) : 0), targets(args.target ? n * sizeof(T) : 0);
  Scratch partials(plan.splits > 1 ? plan.splits * n * sizeof(RowStats) : 0);
  if (args.bias.data) load_raw<T>(args.bias, 0, 0, v, bias.at<T>());
  LinearStats<T, NV> epilogue{args, plan, args.bias.data ? bias.at<T>() : nullptr,
                              plan.splits > 1 ? partials.at<RowStats>() : nullptr,
                              args.target ? targets.at<T>() : nullptr};
  run_product<T, NV>(args.x, args.w, plan, epilogue);
  if (plan.splits == 1) return;
  for (int64_t row = 0; row < n; ++row) {
    RowStats total = epilogue.partials[row];
    for (int64_t split = 1; split < plan.splits; ++split) total.merge(epilogue.partials[split * n + row]);
    epilogue.write(row, total);
  }
}

template <class T>
void by_rows(const LinearStatsArgs& args) {
  if (args.x.rows <= kWidth<T>) run<T, 1>(args);
  else run<T, 2>(args);
}

}  // namespace

void linear_stats(const LinearStatsArgs& args) {
  if (args.x.dtype == DType::f64) by_rows<double>(args);
  else by_rows<float>(args);
}

}  // namespace ncops::NCOPS_ISA
