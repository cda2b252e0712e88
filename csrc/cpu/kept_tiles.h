// The frame of linear_loss and linear_divergence: a block of rows keeps its tiles of products, for several passes over them, and
// what a block keeps is bounded, so that N x V never exists.
//
// With many classes, tasks own ranges of them and meet between passes; with few, tasks own groups of rows, each with a block of
// its own, and their shares of the gradients of the classifier are merged in order (GroupSums).
#pragma once

#include "gradient_products.h"
#include "blocks/store.h"

namespace ncops::NCOPS_ISA {

// How the work is cut: a function of the shape alone.
template <class Mode>
struct KeptTiles {
  using T = typename Mode::T;
  static constexpr int L = 2 * kWidth<T>;
  static constexpr int64_t kRows = kGradientRows<Mode>, kTile = kRows * L, kMostRows = 512;
  int64_t rows, classes, tiles, groups, tiles_per_split, splits, rows_per_group, rows_per_block, panels;

  // `width`: of what a class's gradients hold; `products`: kept per row and class; `inputs`: per row and split.
  KeptTiles(int64_t rows, int64_t classes, int64_t width, int64_t products, int64_t inputs)
      : rows(rows), classes(classes), tiles(pieces(classes, kRows)) {
    constexpr int64_t tasks = 16, mb = int64_t(1) << 20;
    const int64_t ranges = std::max<int64_t>(1, std::min<int64_t>(tasks, classes / 256));
    const int64_t affordable = 64 * mb / std::max<int64_t>(1, classes * width * int64_t(sizeof(T)));
    groups = std::max<int64_t>(1, std::min({tasks, affordable, pieces(rows, 128)}));
    if (ranges >= groups) groups = 1;
    tiles_per_split = groups > 1 ? tiles : pieces(tiles, ranges);
    splits = pieces(tiles, tiles_per_split);
    const int64_t row_bytes = (products * tiles * kRows + splits * inputs) * int64_t(sizeof(T));
    const int64_t kept = (groups > 1 ? mb : 88 * mb) / row_bytes;
    rows_per_group = round_up(pieces(rows, groups), L);
    rows_per_block = std::min(rows_per_group, std::max<int64_t>(L, std::min(kMostRows, kept) / L * L));
    panels = rows_per_block / L;
  }

  // Calls f(tile, first class, classes) for the tiles of a split.
  template <class F>
  void for_tiles(int64_t split, F f) const {
    for (int64_t t = split * tiles_per_split; t < std::min(tiles, (split + 1) * tiles_per_split); ++t)
      f(t, t * kRows, std::min(kRows, classes - t * kRows));
  }

  // How many blocks there are at a time.
  int64_t at_once() const { return std::min<int64_t>(groups, workers()); }

  // Calls work(first row, row after the last, group, block < at_once(), each) for every block; each(tasks, f) runs f(task, worker)
  // for all tasks, and returns when all are done.
  template <class Work>
  void run(Work work) const {
    const auto blocks = [&](int64_t group, int64_t at, const auto& each) {
      const int64_t end = std::min(rows, (group + 1) * rows_per_group);
      for (int64_t row = group * rows_per_group; row < end; row += rows_per_block)
        work(row, std::min(end, row + rows_per_block), group, at, each);
    };
    if (groups == 1) {
      blocks(0, 0, [](int64_t tasks, const auto& f) { for_tasks(tasks, [&](int64_t task, int worker) { f(task, worker); }); });
      return;
    }
    for_tasks(groups, [&](int64_t group, int worker) {
      blocks(group, worker, [&](int64_t tasks, const auto& f) {
        for (int64_t task = 0; task < tasks; ++task) f(task, worker);
      });
    });
  }
};

// Rows [row, end) of a block, panel by panel.
template <class Mode>
struct KeptRows {
  using T = typename Mode::T;
  static constexpr int L = 2 * kWidth<T>;
  int64_t row = 0, end = 0;

  int64_t number() const { return pieces(end - row, L); }
  int64_t first(int64_t p) const { return row + p * L; }
  int64_t count(int64_t p) const { return std::min<int64_t>(L, end - first(p)); }
  // Tiles lie [tile of w][panel][class][lane].
  T* tile(T* tiles, int64_t t, int64_t p) const { return tiles + (t * number() + p) * KeptTiles<Mode>::kTile; }

  // Tile t of every panel, from packed rows of x and w, `steps` at a time, added to what it is if `onto`; done(p) follows the
  // last of a panel.
  template <class Done>
  void multiply(const T* panels, int64_t depth, int64_t steps, const T* w, int64_t group, int64_t t, int64_t count, T* tiles,
                Done done, bool onto = false) const {
    for (int64_t k = 0; k == 0 || k < depth; k += steps)
      for (int64_t p = 0; p < number(); ++p) {
        multiply_panel<Mode, 2>(panels + (p * depth + k) * L, w + k * kMR, group, count, std::min(steps, depth - k), onto || k > 0,
                                tile(tiles, t, p), panels + (p + 1 < number() ? p + 1 : 0) * depth * L + k * L);
        if (k + steps >= depth) done(p);
      }
  }

  // Adds up the splits' shares of a panel's g_x, [split][panel][feature][lane], `features` of them, and stores them.
  void store_inputs(T* shares, int64_t splits, int64_t features, const Rows& x, int64_t p, void* g_x) const {
    T* sum = shares + p * L * features;
    for (int64_t split = 1; split < splits; ++split) {
      const T* share = sum + split * number() * L * features;
      for (int64_t i = 0; i < x.dim * L; i += kWidth<T>) store(sum + i, load(sum + i) + load(share + i));
    }
    store_lanes<T, L>(sum, x.dim, x, first(p), count(p), 0, g_x);
  }
};

}  // namespace ncops::NCOPS_ISA
