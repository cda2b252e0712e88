// linear_stats: a product whose tiles are reduced to row statistics on the spot.
#include "blocks/few_rows.h"
#include "linear_logits.h"

namespace ncops::NCOPS_ISA {
namespace {

// For very few rows: the products of one row of w, which is read in place, as `Stored`, with R rows of x.
template <class T, int R, class Stored>
struct FewProducts {
  const LinearStatsArgs& args;
  FewRows<T> x;
  explicit FewProducts(const LinearStatsArgs& args) : args(args), x(args.x) {}

  void operator()(int64_t c, T* out) const {
    const Stored* w = static_cast<const Stored*>(args.w.data) + c * args.w.row_stride;
    multiply_row<T, R>(x.data.template at<T>(), x.padded, w, args.x.dim, out);
  }
  // Logits of the targets by the arithmetic of `run_few`; rows without one stay as they are.
  void targets(const LinearStats<Plain<T>, 1>& epilogue, T* logits) const {
    for (int64_t row = 0; row < args.x.rows; ++row) {
      T out[R];
      if (!epilogue.inside(row)) continue;
      (*this)(args.target[row], out);
      logits[row] = epilogue.logit(out[row], args.target[row]);
    }
  }
};

template <class T, int R, class Stored>
void run_few(const LinearStatsArgs& args, const Plan& plan, LinearStats<Plain<T>, 1>& epilogue) {
  constexpr int L = kWidth<T>;
  const FewProducts<T, R, Stored> product(args);
  T targets[L];
  for (int lane = 0; lane < L; ++lane) targets[lane] = std::numeric_limits<T>::infinity();
  if (args.shares.floats) {
    if (args.target_logit) std::memcpy(targets, args.target_logit, args.x.rows * sizeof(T));
  } else if (args.target) {
    product.targets(epilogue, targets);
    std::memcpy(epilogue.target_logits, targets, args.x.rows * sizeof(T));
  }
  for_tasks(plan.splits, [&](int64_t split, int) {
    constexpr int64_t rows = 64;
    alignas(64) T tile[rows * L] = {};
    typename LinearStats<Plain<T>, 1>::State state;
    state.begin(targets);
    const int64_t end = std::min(args.w.rows, (split + 1) * plan.w_per_split);
    for (int64_t first = split * plan.w_per_split; first < end; first += rows) {
      const int64_t count = std::min(rows, end - first);
      for (int64_t j = 0; j < count; ++j) product(first + j, tile + j * L);
      epilogue.tile(state, tile, first, count);
    }
    epilogue.end(state, 0, args.x.rows, split);
  });
}

// Calls run(R, Stored()) where the rows are few and w can be read in place; false where it cannot.
template <class Mode, int NV, class Run>
bool few(const LinearStatsArgs& args, Run run) {
  using T = typename Mode::T;
  if constexpr (NV == 1 && std::is_same_v<Mode, Plain<T>>) {
    if (args.x.rows > std::min<int64_t>(kFewRows, kWidth<T>) || args.w.col_stride != 1 || args.w.index) return false;
    const auto by_rows = [&](auto stored) {
      if (args.x.rows == 1) run(std::integral_constant<int, 1>(), stored);
      else if (args.x.rows == 2) run(std::integral_constant<int, 2>(), stored);
      else if (args.x.rows <= 4 || kWidth<T> < 8) run(std::integral_constant<int, std::min(4, kWidth<T>)>(), stored);
      else run(std::integral_constant<int, std::min(8, kWidth<T>)>(), stored);
      return true;
    };
    if (args.w.dtype == DType::bf16)
      if constexpr (sizeof(T) == 4) return by_rows(Bf16());
    if (args.w.dtype == DType::f32 || args.w.dtype == DType::f64) return by_rows(T());
  }
  return false;
}

template <class Mode, int NV>
void all_columns(const LinearStatsArgs& args) {
  using T = typename Mode::T;
  const int64_t n = args.x.rows, v = args.w.rows;
  const Plan plan = plan_product<T>(n, v, Mode::depth(args.x.dim), NV * kWidth<T>);
  const Bias<T> bias(args.bias, args.w.rows);
  const Scratch targets(args.target ? n * sizeof(T) : 0);
  const Scratch partials(plan.splits > 1 ? plan.splits * n * sizeof(LogitShare) : 0);
  LinearStats<Mode, NV> epilogue{args, bias.data, plan.splits > 1 ? partials.at<LogitShare>() : nullptr,
                                 args.target ? targets.at<T>() : static_cast<T*>(args.target_logit)};
  const bool done = few<Mode, NV>(args, [&](auto rows, auto stored) {
    if constexpr (NV == 1) run_few<T, decltype(rows)::value, decltype(stored)>(args, plan, epilogue);
  });
  if (!done) run_product<Mode, NV>(args.x, args.w, plan, epilogue);
  if (plan.splits == 1) return;
  for (int64_t row = 0; row < n; ++row) {
    LogitShare total = epilogue.partials[row];
    for (int64_t split = 1; split < plan.splits; ++split) total.merge(epilogue.partials[split * n + row]);
    epilogue.write(row, total);
  }
}

template <class Mode, int NV>
void only_targets(const LinearStatsArgs& args) {
  using T = typename Mode::T;
  constexpr int L = NV * kWidth<T>;
  const Bias<T> bias(args.bias, args.w.rows);
  const LinearStats<Mode, NV> epilogue{args, bias.data, nullptr, nullptr};
  T* out = static_cast<T*>(args.target_logit);
  std::fill_n(out, args.x.rows, std::numeric_limits<T>::infinity());
  const bool done = few<Mode, NV>(args, [&](auto rows, auto stored) {
    if constexpr (NV == 1) FewProducts<T, decltype(rows)::value, decltype(stored)>(args).targets(epilogue, out);
  });
  if (done) return;
  const int64_t panels = (args.x.rows + L - 1) / L;
  const size_t panel_bytes = round_up(size_t(L) * Mode::depth(args.x.dim) * sizeof(T), 64);
  Scratch scratch(panel_bytes * std::min<int64_t>(panels, workers()));
  for_tasks(panels, [&](int64_t p, int worker) {
    const int64_t row = p * L, count = std::min<int64_t>(L, args.x.rows - row);
    T* panel = scratch.at<T>(worker * panel_bytes);
    pack_panel<Mode, L>(args.x, row, count, panel);
    epilogue.multiply_targets(row, count, panel, out + row);
  });
}

// Calls run(mode, NV) with the arithmetic that the shape and dtype ask for.
template <class Run>
void by_shape(const LinearStatsArgs& args, Run run) {
  if (args.x.rows == 0) return;
  const auto by_rows = [&](auto mode) {
    with_vectors<typename decltype(mode)::T>(args.x.rows, [&](auto vectors) { run(mode, vectors); });
  };
  // Few rows are bound by reading w, which the plain mode does in place.
  if constexpr (kBf16Pairs)
    if (args.x.dtype == DType::bf16 && bf16_products() && args.x.rows > kFewRows) return by_rows(Bf16Pairs());
  if (args.x.dtype == DType::f64) by_rows(Plain<double>());
  else by_rows(Plain<float>());
}

}  // namespace

void linear_stats(const LinearStatsArgs& args) {
  by_shape(args, [&](auto mode, auto nv) { all_columns<decltype(mode), decltype(nv)::value>(args); });
}

void linear_stats_targets(const LinearStatsArgs& args) {
  by_shape(args, [&](auto mode, auto nv) { only_targets<decltype(mode), decltype(nv)::value>(args); });
}

}  // namespace ncops::NCOPS_ISA
