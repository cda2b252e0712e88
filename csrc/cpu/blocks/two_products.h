// Gradients that need a product recomputed and multiplied back: z = x w^T tile by tile, an epilogue turns each tile into
// dz where it lies, and dz w is added up per row of x; on request also dz^T x per row of w. N x V never exists.
//
// All three products run on multiply_group: a tile [w row][lane] is a packed panel whose steps are rows of w, and its rows,
// cut into lines, are packed rows whose steps are rows of x. A tile of w is packed both ways, 96 rows at a time.
#pragma once

#include "product.h"
#include "store.h"

namespace ncops::NCOPS_ISA {

// Rows [row, row + count) of `src` with their features as the rows of the broadcast operand, and themselves as its steps:
// groups of kMR features, each [count / line][kMR][line]. Steps up to a whole line are zero; what the last group holds past the
// last feature lands in rows of the product that nobody reads.
template <class T>
inline void pack_turned(const Rows& src, int64_t row, int64_t count, T* out) {
  constexpr int W = kWidth<T>, line = kLine<T>;
  static_assert(line % W == 0);
  const int64_t steps = round_up(count, line), group = steps * kMR;
  for (int64_t step = 0; step < steps; step += W)
    for (int64_t k = 0; k < src.dim; k += kLoadBlock) {
      const int64_t n = std::min(kLoadBlock, src.dim - k);
      alignas(64) T block[W][kLoadBlock];
      const T* rows[W];
      for (int64_t r = 0; r < W; ++r) {
        const bool real = step + r < count;
        rows[r] = real && n == kLoadBlock ? Plain<T>::in_place(src, row + step + r, k, n) : nullptr;
        if (rows[r]) continue;
        rows[r] = block[r];
        std::memset(block[r], 0, sizeof block[r]);
        if (real) load_row<T>(src, row + step + r, k, n, block[r]);
      }
      for (int64_t i = 0; i < n; i += W) {
        Vec<T> v[W];
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) v[r] = ncops::NCOPS_ISA::load(rows[r] + i);
        transpose<T>(v);
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) {
          const int64_t feature = k + i + r;
          store(out + feature / kMR * group + (step / line * kMR + feature % kMR) * line + step % line, v[r]);
        }
      }
    }
}

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
  constexpr int64_t whole = (96 + kMR - 1) / kMR * kMR;
  p.w_per_tile = std::max<int64_t>(2 * kMR, std::min<int64_t>(whole, (int64_t(400) << 10) / row_bytes / kMR * kMR));
  p.rows_per_block = round_up(std::min<int64_t>(256, std::max<int64_t>(L, n / 32)), L);
  const int64_t blocks = (n + p.rows_per_block - 1) / p.rows_per_block;
  const int64_t tasks = std::max<int64_t>(1, std::min(most_tasks, blocks));
  p.rows_per_task = std::max<int64_t>(1, (blocks + tasks - 1) / tasks) * p.rows_per_block;
  p.tasks = (n + p.rows_per_task - 1) / p.rows_per_task;
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
  const int64_t dim = x.dim, columns = (dim + L - 1) / L, features = (dim + kMR - 1) / kMR;
  const int64_t group = group_size<Mode>(dim), turned = round_up(plan.w_per_tile, line) * kMR;
  const int64_t panels = plan.rows_per_block / L, w_groups = (w.rows + kMR - 1) / kMR;
  const int64_t dz_group = round_up(plan.rows_per_block, line) * kMR, sum_size = columns * w_groups * kMR * L;
  const auto bytes = [](int64_t elements) { return round_up(size_t(elements) * sizeof(T), 64); };
  const size_t x_bytes = bytes(plan.rows_per_block * dim), w_bytes = bytes(plan.w_per_tile / kMR * group);
  const size_t turned_bytes = inputs ? bytes(round_up(features * kMR, kLoadBlock) / kMR * turned + turned) : 0;
  const size_t out_bytes = inputs ? bytes(panels * features * kMR * L) : 0, tile_bytes = bytes(plan.w_per_tile * L);
  const size_t column_bytes = sums ? bytes(plan.rows_per_block * columns * L) : 0;
  const size_t dz_bytes = sums ? bytes(plan.w_per_tile / kMR * dz_group) : 0;
  const size_t extra_bytes = bytes(panels * epilogue.extra()), state_bytes = round_up(panels * sizeof(State), 64);
  const size_t worker_bytes = x_bytes + w_bytes + turned_bytes + out_bytes + tile_bytes + column_bytes + dz_bytes +
                              extra_bytes + state_bytes;
  Scratch scratch(worker_bytes * std::min<int64_t>(plan.tasks, workers()));
  for_tasks(plan.tasks, [&](int64_t task, int worker) {
    char* memory = scratch.at<char>(worker * worker_bytes);
    const auto take = [&memory](size_t size) {
      char* const start = memory;
      memory += size;
      return start;
    };
    T* x_packed = reinterpret_cast<T*>(take(x_bytes));
    T* w_packed = reinterpret_cast<T*>(take(w_bytes));
    T* w_turned = reinterpret_cast<T*>(take(turned_bytes));
    T* out = reinterpret_cast<T*>(take(out_bytes));
    T* tile = reinterpret_cast<T*>(take(tile_bytes));
    T* x_columns = reinterpret_cast<T*>(take(column_bytes));
    T* dz = reinterpret_cast<T*>(take(dz_bytes));
    T* extra = reinterpret_cast<T*>(take(extra_bytes));
    State* states = reinterpret_cast<State*>(take(state_bytes));
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
        const int64_t count = std::min(plan.w_per_tile, w.rows - first), groups = (count + kMR - 1) / kMR;
        pack_rows<Mode>(w, first, count, w_packed);
        if (inputs) pack_turned<T>(w, first, count, w_turned);
        const int64_t turned_group = round_up(count, line) * kMR;
        for (int64_t row = row0, p = 0; row < row1; row += L, ++p) {
          for (int64_t g = 0; g < groups; ++g)
            multiply_group<Mode, 2>(x_packed + p * L * dim, w_packed + g * group, dim, tile + g * kMR * L);
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
