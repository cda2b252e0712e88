// Gradients that need a product recomputed and multiplied back: z = x w^T tile by tile, an epilogue turns each tile into
// dz where it lies, and dz w is added up per row of x; on request also dz^T x per row of w. N x V never exists.
//
// All three products run on multiply_group: a tile [w row][lane] is a packed panel whose steps are rows of w, and its rows,
// cut into lines, are packed rows whose steps are rows of x. A tile of w is packed both ways, 96 rows at a time.
#pragma once

#include "product.h"
#include "steps.h"
#include "store.h"

namespace ncops::NCOPS_ISA {

// A tile [groups * kMR][L] as steps [first, first + L) of the broadcast operand, `group` elements from group to group.
template <class T>
inline void cut_into_lines(const T* tile, int64_t groups, int64_t first, int64_t group, T* out) {
  constexpr int L = 2 * kWidth<T>, line = kLine<T>, piece = std::min(L, line);
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t m = 0; m < kMR; ++m)
      for (int64_t i = 0; i < L; i += piece)
        std::memcpy(out + g * group + ((first + i) / line * kMR + m) * line + (first + i) % line,
                    tile + (g * kMR + m) * L + i, piece * sizeof(T));
}

// How two products are cut up: a function of the shape alone.
struct TwoProductsPlan {
  int64_t rows_per_block;            // packed together against all of w
  int64_t rows_per_task, tasks;      // whole blocks; tasks keep their share of dz^T x apart
  int64_t w_per_tile;
};

template <class T>
inline TwoProductsPlan plan_two_products(int64_t n, int64_t dim, int64_t most_tasks) {
  constexpr int64_t L = 2 * kWidth<T>;
  TwoProductsPlan p;
  const int64_t row_bytes = std::max<int64_t>(1, dim) * int64_t(sizeof(T));
  const int64_t cached = (int64_t(400) << 10) / row_bytes;  // twice, as it is packed both ways, in the second-level cache
  p.w_per_tile = std::max<int64_t>(2 * kMR, std::min<int64_t>(kTileRows, cached / kMR * kMR));
  p.rows_per_block = round_up(std::min<int64_t>(256, std::max<int64_t>(L, n / 32)), L);
  const int64_t blocks = pieces(n, p.rows_per_block);
  const int64_t tasks = std::max<int64_t>(1, std::min(most_tasks, blocks));
  p.rows_per_task = std::max<int64_t>(1, pieces(blocks, tasks)) * p.rows_per_block;
  p.tasks = pieces(n, p.rows_per_task);
  return p;
}

// Epilogue provides, for one panel of L = 2 * W rows of x:
//   struct State;                                                           plain data, one per panel
//   int64_t extra() const;                                                  elements of T it wants beside, per panel
//   void begin(State&, int64_t row, int64_t count, T* extra);
//   void tile(State&, T* tile, int64_t first_w, int64_t count_w);           products in, dz out
//   void end(State&, const T* panel, T* out);                               out[dim][L] = dz w, not called without `inputs`
// `inputs`: whether dz w is wanted. `sums`: dz^T x per task, or null: [task][column block of L][w group][kMR][L], zeroed here.
template <class T, class Epilogue>
inline void run_two_products(const Rows& x, const Rows& w, const TwoProductsPlan& plan, Epilogue& epilogue, bool inputs,
                             T* sums) {
  constexpr int L = 2 * kWidth<T>, line = kLine<T>;
  using Mode = Plain<T>;
  using State = typename Epilogue::State;
  const int64_t dim = x.dim, columns = pieces(dim, L), features = pieces(dim, kMR);
  const int64_t group = group_size<Mode>(dim), turned = round_up(plan.w_per_tile, line) * kMR;
  const int64_t panels = plan.rows_per_block / L, w_groups = pieces(w.rows, kMR);
  const int64_t dz_group = round_up(plan.rows_per_block, line) * kMR, sum_size = columns * w_groups * kMR * L;
  Layout layout;
  const size_t x_at = layout.add<T>(plan.rows_per_block * dim), w_at = layout.add<T>(plan.w_per_tile / kMR * group);
  const size_t turned_at = layout.add<T>(inputs ? round_up(features * kMR, kLoadBlock) / kMR * turned + turned : 0);
  const size_t out_at = layout.add<T>(inputs ? panels * features * kMR * L : 0), tile_at = layout.add<T>(plan.w_per_tile * L);
  const size_t columns_at = layout.add<T>(sums ? plan.rows_per_block * columns * L : 0);
  const size_t dz_at = layout.add<T>(sums ? plan.w_per_tile / kMR * dz_group : 0);
  const size_t extra_at = layout.add<T>(panels * epilogue.extra()), states_at = layout.add<State>(panels);
  Scratch scratch(layout.bytes * std::min<int64_t>(plan.tasks, workers()));
  for_tasks(plan.tasks, [&](int64_t task, int worker) {
    const size_t base = worker * layout.bytes;
    const auto at = [&](size_t offset) { return scratch.at<T>(base + offset); };
    T *x_packed = at(x_at), *w_packed = at(w_at), *w_turned = at(turned_at), *out = at(out_at), *tile = at(tile_at);
    T *x_columns = at(columns_at), *dz = at(dz_at), *extra = at(extra_at);
    State* states = scratch.at<State>(base + states_at);
    T* sum = sums ? sums + task * sum_size : nullptr;
    if (sum) std::memset(sum, 0, sum_size * sizeof(T));
    const int64_t task_end = std::min(x.rows, (task + 1) * plan.rows_per_task);
    for (int64_t row0 = task * plan.rows_per_task; row0 < task_end; row0 += plan.rows_per_block) {
      const int64_t row1 = std::min(task_end, row0 + plan.rows_per_block), steps = round_up(row1 - row0, L);
      for (int64_t row = row0, p = 0; row < row1; row += L, ++p) {
        const int64_t count = std::min<int64_t>(L, row1 - row);
        pack_panel<Mode, L>(x, row, count, x_packed + p * L * dim);
        epilogue.begin(states[p], row, count, extra + p * epilogue.extra());
      }
      if (sum) pack_columns_first<T>(x, row0, steps, [&](int64_t row) { return row < row1; }, x_columns);
      for (int64_t first = 0; first < w.rows; first += plan.w_per_tile) {
        const int64_t count = std::min(plan.w_per_tile, w.rows - first), groups = pieces(count, kMR);
        pack_rows<Mode>(w, first, count, w_packed);
        if (inputs) pack_turned<Mode>(w, first, count, w_turned);
        const int64_t turned_group = round_up(count, line) * kMR;
        for (int64_t row = row0, p = 0; row < row1; row += L, ++p) {
          const T* panel = x_packed + p * L * dim;
          multiply_panel<Mode, 2>(panel, w_packed, group, count, dim, false, tile, panel + L * dim);
          epilogue.tile(states[p], tile, first, count);
          if (inputs)
            for (int64_t f = 0; f < features; ++f) {
              T* sink = out + (p * features + f) * kMR * L;
              if (first == 0) multiply_group<Mode, 2>(tile, w_turned + f * turned_group, count, sink);
              else multiply_group<Mode, 2, true>(tile, w_turned + f * turned_group, count, sink);
            }
          if (sum) cut_into_lines<T>(tile, groups, p * L, dz_group, dz);
        }
        if (sum)
          for (int64_t b = 0; b < columns; ++b)
            for (int64_t g = 0; g < groups; ++g)
              multiply_group<Mode, 2, true>(x_columns + b * steps * L, dz + g * dz_group, steps,
                                            sum + (b * w_groups + first / kMR + g) * kMR * L);
      }
      if (inputs)
        for (int64_t row = row0, p = 0; row < row1; row += L, ++p)
          epilogue.end(states[p], x_packed + p * L * dim, out + p * features * kMR * L);
    }
  });
}

}  // namespace ncops::NCOPS_ISA
