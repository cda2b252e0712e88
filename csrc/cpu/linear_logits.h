// The epilogue that turns tiles of a product into row statistics: of linear_stats, and of linear_loss, which keeps the tiles.
#pragma once

#include "logit_columns.h"
#include "blocks/product.h"

namespace ncops::NCOPS_ISA {

// The bias in T, or null.
template <class T>
struct Bias {
  Scratch memory;
  T* data;
  Bias(const Rows& bias, int64_t classes)
      : memory(bias.data ? classes * sizeof(T) : 0), data(bias.data ? memory.at<T>() : nullptr) {
    if (data) load_raw<T>(bias, 0, 0, classes, data);
  }
};

template <class Mode, int NV>
struct LinearStats {
  using T = typename Mode::T;
  static constexpr int L = NV * kWidth<T>;
  struct State : LogitState<T, L> {
    int64_t first_row, rows;
  };
  const LinearStatsArgs& args;
  const T* bias;       // (V) in T, or null
  LogitShare* partials;  // (splits, N) where w is split, else null
  T* target_logits;    // (N), given or formed here; null without targets
  bool one_tile = false;  // all classes are one, and so is the target

  // The target's logit first, so that its rank is exact. Where w is split, all have been found before.
  void begin(State& state, int64_t row, int64_t count, int64_t, const T* panel) {
    state.first_row = row, state.rows = count;
    if (targets_in_tile()) return;
    if (!partials && !args.shares.floats) find_targets(row, count, panel);
    begin(state);
  }
  void begin(State& state) const {
    T logits[L];
    for (int i = 0; i < L; ++i) logits[i] = std::numeric_limits<T>::infinity();
    if (target_logits) std::memcpy(logits, target_logits + state.first_row, state.rows * sizeof(T));
    state.begin(logits);
  }
  bool targets_in_tile() const { return one_tile && args.target && !args.shares.floats; }

  // Into target_logits, by the arithmetic of the tiles; +inf for rows without one.
  void find_targets(int64_t row, int64_t count, const T* panel) const {
    if (!args.target) return;
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
    set_targets(row, count, [&](int64_t i) { return products[i]; });
  }
  template <class Product>
  void set_targets(int64_t row, int64_t count, Product product) const {
    for (int64_t i = 0; i < count; ++i)
      target_logits[row + i] = inside(row + i) ? logit(product(i), args.target[row + i]) : std::numeric_limits<T>::infinity();
  }

  void tile(State& state, T* tile, int64_t first, int64_t count) {
    if (targets_in_tile()) {
      set_targets(state.first_row, state.rows, [&](int64_t i) { return tile[args.target[state.first_row + i] * L + i]; });
      begin(state);
    }
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

}  // namespace ncops::NCOPS_ISA
