// linear_stats: a product whose tiles are reduced to row statistics on the spot.
#include "few_rows.h"
#include "logit_columns.h"
#include "product.h"

namespace ncops::NCOPS_ISA {
namespace {

template <class Mode, int NV>
struct LinearStats {
  using T = typename Mode::T;
  static constexpr int L = NV * kWidth<T>;
  using State = LogitState<T, L>;
  const LinearStatsArgs& args;
  const T* bias;       // (V) in T, or null
  RowStats* partials;  // (splits, N) where w is split, else null
  T* target_logits;    // (N), or null

  // The target's logit first, by the arithmetic of the tiles, so that its rank is exact. Every split needs it; one keeps it.
  void begin(State& state, int64_t row, int64_t count, int64_t split, const T* panel) {
    T logits[L];
    for (int i = 0; i < L; ++i) logits[i] = std::numeric_limits<T>::infinity();
    if (args.target) multiply_targets(row, count, panel, logits);
    if (args.target && split == 0) std::memcpy(target_logits + row, logits, count * sizeof(T));
    state.begin(logits);
  }

  void multiply_targets(int64_t row, int64_t count, const T* panel, T* logits) const {
    int64_t index[L];
    for (int64_t i = 0; i < count; ++i) index[i] = inside(row + i) ? args.target[row + i] : 0;
    Rows rows = args.w;
    rows.index = index;
    rows.rows = count;
    const int64_t depth = Mode::depth(rows.dim);
    Scratch scratch(size_t(L) * depth * sizeof(T));
    pack_panel<Mode, L>(rows, 0, count, scratch.at<T>());
    T products[L];
    multiply_diagonal<Mode, NV>(panel, scratch.at<T>(), depth, products);
    for (int lane = 0; lane < count; ++lane)
      if (inside(row + lane)) logits[lane] = logit(products[lane], index[lane]);
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

  T logit(T product, int64_t c) const {
    return fma(splat<T>(product), splat<T>(T(args.scale)), splat<T>(bias ? bias[c] : T(0)))[0];
  }
  void write(int64_t row, const RowStats& r) {
    write_row<T>(args.out, row, r, args.target, args.ignore_index, target_logits ? target_logits[row] : T(0));
  }
  bool inside(int64_t row) const {
    return is_class(args.target[row], args.w.rows, args.ignore_index);
  }
};

// The path for very few rows; `Stored` is w's element.
template <class T, int R, class Stored>
void run_few(const LinearStatsArgs& args, const Plan& plan, LinearStats<Plain<T>, 1>& epilogue) {
  constexpr int L = kWidth<T>;
  const FewRows<T> x(args.x);
  const auto product = [&](int64_t c, T* out) {
    const Stored* w = static_cast<const Stored*>(args.w.data) + c * args.w.row_stride;
    multiply_row<T, R>(x.data.template at<T>(), x.padded, w, args.x.dim, out);
  };
  T targets[L];
  for (int lane = 0; lane < L; ++lane) targets[lane] = std::numeric_limits<T>::infinity();
  for (int64_t row = 0; args.target && row < args.x.rows; ++row) {
    T out[R];
    if (!epilogue.inside(row)) continue;
    product(args.target[row], out);
    targets[row] = epilogue.target_logits[row] = epilogue.logit(out[row], args.target[row]);
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

// Runs it where w can be read in place; false where it cannot.
template <class T>
bool try_few(const LinearStatsArgs& args, const Plan& plan, LinearStats<Plain<T>, 1>& epilogue) {
  if (args.x.rows > std::min<int64_t>(kFewRows, kWidth<T>) || args.w.col_stride != 1 || args.w.index) return false;
  const auto run = [&](auto stored) {
    using Stored = decltype(stored);
    if (args.x.rows == 1) run_few<T, 1, Stored>(args, plan, epilogue);
    else if (args.x.rows == 2) run_few<T, 2, Stored>(args, plan, epilogue);
    else if (args.x.rows <= 4 || kWidth<T> < 8) run_few<T, std::min(4, kWidth<T>), Stored>(args, plan, epilogue);
    else run_few<T, std::min(8, kWidth<T>), Stored>(args, plan, epilogue);
    return true;
  };
  if (args.w.dtype == DType::bf16)
    if constexpr (sizeof(T) == 4) return run(uint16_t());
  if (args.w.dtype == DType::f32 || args.w.dtype == DType::f64) return run(T());
  return false;
}

template <class Mode, int NV>
void run(const LinearStatsArgs& args) {
  using T = typename Mode::T;
  const int64_t n = args.x.rows, v = args.w.rows;
  if (n == 0) return;
  const Plan plan = plan_product<T>(n, v, Mode::depth(args.x.dim), NV * kWidth<T>);
  Scratch bias(args.bias.data ? v * sizeof(T) : 0), targets(args.target ? n * sizeof(T) : 0);
  Scratch partials(plan.splits > 1 ? plan.splits * n * sizeof(RowStats) : 0);
  if (args.bias.data) load_raw<T>(args.bias, 0, 0, v, bias.at<T>());
  LinearStats<Mode, NV> epilogue{args, args.bias.data ? bias.at<T>() : nullptr,
                                 plan.splits > 1 ? partials.at<RowStats>() : nullptr,
                                 args.target ? targets.at<T>() : nullptr};
  bool done = false;
  if constexpr (NV == 1 && std::is_same_v<Mode, Plain<T>>) done = try_few<T>(args, plan, epilogue);
  if (!done) run_product<Mode, NV>(args.x, args.w, plan, epilogue);
  if (plan.splits == 1) return;
  for (int64_t row = 0; row < n; ++row) {
    RowStats total = epilogue.partials[row];
    for (int64_t split = 1; split < plan.splits; ++split) total.merge(epilogue.partials[split * n + row]);
    epilogue.write(row, total);
  }
}

template <class Mode>
void by_rows(const LinearStatsArgs& args) {
  if (args.x.rows <= kWidth<typename Mode::T>) run<Mode, 1>(args);
  else run<Mode, 2>(args);
}

}  // namespace

void linear_stats(const LinearStatsArgs& args) {
#if NCOPS_ISA_ID == 1
  // Few rows are bound by reading w, which the plain mode does in place.
  if (args.x.dtype == DType::bf16 && bf16_products() && args.x.rows > kFewRows) return by_rows<Bf16Pairs>(args);
#endif
  if (args.x.dtype == DType::f64) by_rows<Plain<double>>(args);
  else by_rows<Plain<float>>(args);
}

}  // namespace ncops::NCOPS_ISA
