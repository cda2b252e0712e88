// linear_stats: a product whose tiles are reduced to row statistics on the spot.
#include "blocks/few_rows.h"
#include "logit_columns.h"
#include "blocks/product.h"

namespace ncops::NCOPS_ISA {
namespace {

template <class Mode, int NV>
struct LinearStats {
  using T = typename Mode::T;
  static constexpr int L = NV * kWidth<T>;
  using State = LogitState<T, L>;
  const LinearStatsArgs& args;
  const T* bias;       // (V) in T, or null
  LogitShare* partials;  // (splits, N) where w is split, else null
  T* target_logits;    // (N), given or formed here; null without targets

  // The target's logit first, by the arithmetic of the tiles, so that its rank is exact. Every split needs it; one keeps it.
  void begin(State& state, int64_t row, int64_t count, int64_t split, const T* panel) {
    T logits[L];
    for (int i = 0; i < L; ++i) logits[i] = std::numeric_limits<T>::infinity();
    if (args.shares.floats) {
      if (target_logits) std::memcpy(logits, target_logits + row, count * sizeof(T));
    } else if (args.target) {
      multiply_targets(row, count, panel, logits);
      if (split == 0) std::memcpy(target_logits + row, logits, count * sizeof(T));
    }
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
    state.add(tile, first, count, T(args.scale), bias ? bias + first : nullptr, Softcap<T>(args.softcap));
  }

  void end(State& state, int64_t row, int64_t count, int64_t split) {
    for (int64_t i = 0; i < count; ++i) {
      if (partials) partials[split * args.x.rows + row + i] = state.row(i);
      else write(row + i, state.row(i));
    }
  }

  T logit(T product, int64_t c) const {
    const Vec<T> z = fma(splat<T>(product), splat<T>(T(args.scale)), splat<T>(bias ? bias[c] : T(0)));
    return Softcap<T>(args.softcap)(z[0]);
  }
  void write(int64_t row, const LogitShare& r) {
    write_row<T>(args.out, args.shares, row, r, args.target, args.ignore_index, target_logits ? target_logits[row] : T(0));
  }
  bool inside(int64_t row) const {
    return is_class(args.target[row], args.w.rows, args.ignore_index);
  }
};

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

// The bias in T, or null.
template <class T>
struct Bias {
  Scratch memory;
  T* data;
  explicit Bias(const LinearStatsArgs& args)
      : memory(args.bias.data ? args.w.rows * sizeof(T) : 0), data(args.bias.data ? memory.at<T>() : nullptr) {
    if (data) load_raw<T>(args.bias, 0, 0, args.w.rows, data);
  }
};

template <class Mode, int NV>
void all_columns(const LinearStatsArgs& args) {
  using T = typename Mode::T;
  const int64_t n = args.x.rows, v = args.w.rows;
  const Plan plan = plan_product<T>(n, v, Mode::depth(args.x.dim), NV * kWidth<T>);
  const Bias<T> bias(args);
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
  const Bias<T> bias(args);
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
