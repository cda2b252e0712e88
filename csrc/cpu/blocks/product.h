// The micro-kernel family behind every product-shaped op, and the driver that runs it over x (N, D) times w (V, D)^T.
//
// Vector lanes are rows of x, the broadcast operand is a row of w. So a tile of logits comes out as [w row][x row] and
// whatever reduces over w (maximum, sum of exponentials, squared norm) is purely vertical: no gather, no horizontal
// reduction, no N x V. The tile is consumed while it is in the first-level cache.
#pragma once

#include "few_classes.h"

namespace ncops::NCOPS_ISA {

// Whether a panel meets the groups of w chain by chain: in 16 registers a step of 6 x 2 products asks for 15 bytes a cycle of a panel
// that lies in the second-level cache, 0.66 -> 0.72 of the limit for linear_stats; in 32 for 7, and whole panels do better, 0.78 for 0.70.
constexpr bool kByChains = kRegisters < 32;

// Steps summed in one chain. Chains are added up afterwards: one chain over 4096 steps has 12 times torch's error. A tile and its
// diagonal are cut alike, so that they agree to the bit.
constexpr int64_t kChain = kByChains ? 128 : 256;

// The sums of a micro-kernel, all in registers: M broadcast rows by NV vectors. Loops over them must unroll, or GCC puts
// them on the stack.
template <class Mode, int M, int NV>
struct Sums {
  using T = typename Mode::T;
  static constexpr int W = kWidth<T>;
  Vec<T> acc[M][NV];

  NCOPS_INLINE Sums() {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] = Vec<T>{};
  }
  // Adds w[m * Row + i * Step] * x[i * NV * W + lane] for steps i < n, ascending.
  template <int Row, int Step>
  NCOPS_INLINE void add(const T* x, const T* w, int64_t n) {
    for (int64_t i = 0; i < n; ++i) step(x + i * NV * W, [&](int m) __attribute__((always_inline)) { return w + m * Row + i * Step; });
  }
  // Adds w[m][i * Step] * x[i * Across + lane], each row of w wherever it lies.
  template <int Step, int Across = NV * W>
  NCOPS_INLINE void add(const T* x, const T* const (&w)[M], int64_t n) {
    for (int64_t i = 0; i < n; ++i) step(x + i * Across, [&](int m) __attribute__((always_inline)) { return w[m] + i * Step; });
  }
  template <class Row>
  NCOPS_INLINE void step(const T* x, Row row) {
    Vec<T> xv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) xv[v] = load(x + v * W);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Vec<T> wv = broadcast(row(m));
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] = Mode::multiply_add(wv, xv[v], acc[m][v]);
    }
  }
  // out[m * stride + v * W + lane] = or, with `add`, += the sums.
  NCOPS_INLINE void write(T* out, int64_t stride, bool add) const {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        T* p = out + m * stride + v * W;
        store(p, add ? load(p) + acc[m][v] : acc[m][v]);
      }
  }
};

// What is wanted next, and how many lines of it are fetched, into the second-level cache, with each line of steps.
template <class T>
struct Ahead {
  const T* from = nullptr;
  int64_t lines = 0;
};

// tile[m * NV * W + lane] (+)= sum over steps k of w(m, k) * x[k * NV * W + lane], chain by chain, k ascending, for M rows of w; added
// to what the tile holds with Continue. `w` is a group packed by pack_rows.
template <class Mode, int NV, bool Continue = false, int M = kMR, class T = typename Mode::T>
__attribute__((noinline)) void multiply_group(const T* x, const T* w, int64_t depth, T* tile, Ahead<T> ahead = {}) {
  constexpr int L = NV * kWidth<T>, line = kLine<T>;
  static_assert(kChain % line == 0);
  for (int64_t start = 0; start == 0 || start < depth; start += kChain) {
    const int64_t end = std::min(depth, start + kChain);
    Sums<Mode, M, NV> sums;
    for (int64_t k = start; k < end; k += line, w += kMR * line, x += line * L) {
      for (int64_t i = 0; i < ahead.lines; ++i, ahead.from += line) prefetch_further(ahead.from);
      sums.template add<line, 1>(x, w, std::min<int64_t>(line, end - k));
    }
    sums.write(tile, L, Continue || start > 0);
  }
}

// The same for the rows that the last group has, or a few more: 100 rows are 7 groups of 14 and one of 4, which is 9 % less than 8.
template <class Mode, int NV, bool Continue, class T = typename Mode::T>
NCOPS_INLINE void multiply_rows(int64_t rows, const T* x, const T* w, int64_t depth, T* tile, Ahead<T> ahead) {
  if (kMR > 4 && rows <= 4) multiply_group<Mode, NV, Continue, std::min(4, kMR)>(x, w, depth, tile, ahead);
  else if (kMR > 8 && rows <= 8) multiply_group<Mode, NV, Continue, std::min(8, kMR)>(x, w, depth, tile, ahead);
  else multiply_group<Mode, NV, Continue>(x, w, depth, tile, ahead);
}

// A tile of a panel, [count][NV * W], from `w` as packed by pack_rows, `group` elements from group to group; see multiply_group. As
// much as the panel takes is fetched from `ahead` meanwhile: with 1024 x 768 packed rows, which the second-level cache does not hold
// beside a tile of w, the first group of each panel waited for them.
template <class Mode, int NV, class T = typename Mode::T>
NCOPS_INLINE void multiply_panel(const T* panel, const T* w, int64_t group, int64_t count, int64_t steps, bool continues, T* out,
                                 const T* ahead) {
  constexpr int L = NV * kWidth<T>;
  if constexpr (kInTiles<Mode>) return multiply_in_tiles<NV>(panel, w, group, count, steps, continues, out);
  const int64_t at_once = kByChains ? kChain : std::max<int64_t>(1, steps);
  for (int64_t start = 0; start == 0 || start < steps; start += at_once, continues = true) {
    const int64_t n = std::min(at_once, steps - start);
    const int64_t lines = pieces(L, pieces(count, kMR));  // there are L to a line of steps
    for (int64_t g = 0; g * kMR < count; ++g) {
      const T* rows = w + g * group + start * kMR;
      const Ahead<T> next{ahead + start * L + g * int64_t(round_up(n, kLine<T>)) * lines, lines};
      if (continues) multiply_rows<Mode, NV, true>(count - g * kMR, panel + start * L, rows, n, out + g * kMR * L, next);
      else multiply_rows<Mode, NV, false>(count - g * kMR, panel + start * L, rows, n, out + g * kMR * L, next);
    }
  }
}

// The same of kInPlace rows of w where they lie, each full steps long, for so few panels that packing w took longer than their
// products: 32 x 768 x 50257 is read from memory while it is multiplied. The rows after them are fetched ahead.
constexpr int kInPlace = kRegisters < 32 ? kMR : kMR / 2;  // as many as there are registers for where they are
template <class Mode, int NV, class T = typename Mode::T>
__attribute__((noinline)) void multiply_in_place(const T* panel, const T* const* w, const T* const* ahead, int64_t steps, T* tile) {
  constexpr int L = NV * kWidth<T>, line = kLine<T>;
  for (int64_t start = 0; start == 0 || start < steps; start += kChain) {
    const int64_t end = std::min(steps, start + kChain);
    Sums<Mode, kInPlace, NV> sums;
    for (int64_t k = start; k < end; k += line) {
      const T* rows[kInPlace];
#pragma GCC unroll 16
      for (int m = 0; m < kInPlace; ++m) rows[m] = w[m] + k, prefetch(ahead[m] + k);
      sums.template add<1>(panel + k * L, rows, std::min<int64_t>(line, end - k));
    }
    sums.write(tile, L, start > 0);
  }
}

// The tiles [count][L] of rows [first, first + count) of w and all panels, `tile_size` elements apart; rows before `end` are fetched ahead.
template <class Mode, int NV, class T = typename Mode::T>
void multiply_rows_in_place(const Rows& w, int64_t first, int64_t count, int64_t end, const T* panels, int64_t number, T* tiles,
                            int64_t tile_size) {
  constexpr int64_t L = NV * kWidth<T>;
  const int64_t depth = Mode::depth(w.dim);
  const auto row_at = [&](int64_t r) { return Mode::in_place(w, std::min(r, end - 1), 0, depth); };
  for (int64_t c = 0; c < count; c += kInPlace) {
    const T *rows[kInPlace], *ahead[kInPlace];
    for (int m = 0; m < kInPlace; ++m) rows[m] = row_at(first + c + m), ahead[m] = row_at(first + c + kInPlace + m);
    for (int64_t p = 0; p < number; ++p)
      multiply_in_place<Mode, NV>(panels + p * L * depth, rows, ahead, depth, tiles + p * tile_size + c * L);
  }
}

// Whether the rows of w lie in memory as they are wanted. (Pairs of bfloat16 need not be aligned as such.)
template <class Mode>
inline bool lies_in_place(const Rows& w) {
  return std::is_same_v<Mode, Plain<typename Mode::T>> && w.rows > 0 && Mode::in_place(w, 0, 0, w.dim) != nullptr;
}

// The diagonal of such a tile: out[lane] = sum over k of w[k][lane] * x[k][lane], in the same order and arithmetic, so a
// target's logit equals the tile's entry for the same pair to the bit.
template <class Mode, int NV, class T = typename Mode::T>
inline void multiply_diagonal(const T* x, const T* w, int64_t depth, T* out) {
  constexpr int W = kWidth<T>;
  if constexpr (kInTiles<Mode>) return tile_diagonal<NV>(x, w, depth, out);
  for (int v = 0; v < NV; ++v) {
    Vec<T> total{};
    for (int64_t start = 0; start == 0 || start < depth; start += kChain) {
      Vec<T> acc{};
      for (int64_t k = start; k < std::min(depth, start + kChain); ++k)
        acc = Mode::multiply_add(load(w + (k * NV + v) * W), load(x + (k * NV + v) * W), acc);
      total = start > 0 ? total + acc : acc;
    }
    store(out + v * W, total);
  }
}

// Calls f(NV) with the vectors of a panel, a constant: one where x has no more rows than that, else two.
template <class T, class F>
NCOPS_INLINE void with_vectors(int64_t rows, F f) {
  if (rows <= kWidth<T>) f(std::integral_constant<int, 1>());
  else f(std::integral_constant<int, 2>());
}

constexpr int64_t kBlockBytes = int64_t(4) << 20;     // of x, streamed through the second-level cache once per tile of w
constexpr int64_t kWholeBytes = int64_t(256) << 10;   // of a w that stays there as a whole
constexpr int64_t kTileRows = pieces(96, kMR) * kMR;  // of w: its tile of products, at most 12 KB, stays in the first-level cache
// The same where a tile of gradients is multiplied on: as many as are whole lines of pairs, and more of them, as sums in tiles are
// read and written once for each: with kLinesAtOnce 61 -> 48 ms for linear_loss (512 x 768 x 8192, one thread).
template <class Mode>
constexpr int64_t kGradientRows = kInTiles<Mode> ? 16 * kMR : kTileRows;
constexpr int64_t kTileRowBytes = 6144;               // of each of them at a time: 600 KB stay in the second-level cache

// How a product is cut up: a function of the shape alone, never of the number of threads, so results keep their bits.
struct Plan {
  int64_t rows_per_block, blocks;  // rows of x packed together; each block visits all of its split's w
  int64_t w_per_split, splits;     // w is also split, so that few rows still keep every thread busy
  int64_t w_per_tile;
  int64_t steps;                   // depth multiplied at a time: a tile of w of that depth stays in the second-level cache
  bool whole = false;              // all of w is packed once, for every task
  bool few = false;                // all of w stays in the first-level cache, and x is not packed
  bool upper = false;              // x and w are the same rows and only pairs (x row < w row) are wanted; one split
};

constexpr int64_t kMostSplits = 32;  // tasks that keep every thread busy

// `splits`: the most that w is cut into; 0: as few as keep every thread busy. Given, it does not depend on n, nor do the sums of a row.
template <class T>
inline Plan plan_product(int64_t n, int64_t v, int64_t dim, int lanes, int64_t splits = 0) {
  Plan p;
  const int64_t row_bytes = std::max<int64_t>(1, dim) * int64_t(sizeof(T));
  p.w_per_tile = v <= 2 * kTileRows ? round_up(std::max<int64_t>(1, v), kMR) : kTileRows;
  p.steps = std::max<int64_t>(kChain, round_up(pieces(dim, pieces(row_bytes, kTileRowBytes)), kChain));
  // Packing w costs as much as about 8 rows of products per element, so a block holds at least 256 rows of x where it can.
  int64_t rows = std::min<int64_t>(1024, std::max<int64_t>(256, kBlockBytes / row_bytes));
  p.few = v > 0 && v <= kFewClasses && dim >= kFewestSteps;
  p.whole = v <= p.w_per_tile || v * row_bytes <= kWholeBytes;
  if (p.whole) rows = (v <= p.w_per_tile ? 16 : 4) * lanes;  // nothing to amortise: keep x, of one tile a panel, in the first cache
  p.blocks = std::max<int64_t>(1, pieces(n, rows));
  p.rows_per_block = round_up(pieces(n, p.blocks), lanes);
  splits = std::min(splits ? splits : pieces(kMostSplits, p.blocks), std::max<int64_t>(1, v / 512));
  p.w_per_split = std::max<int64_t>(p.w_per_tile, round_up(pieces(v, splits), p.w_per_tile));
  p.splits = std::max<int64_t>(1, pieces(v, p.w_per_split));
  return p;
}

constexpr int64_t kFewPanelRows = 64;                // of x: w is not packed for them, where it need not be
constexpr int64_t kSharedBytes = int64_t(16) << 20;  // of packed rows of x at a time, where tasks share them

// run_product with few rows of w, all in one tile.
template <class Mode, int NV, class Epilogue>
inline void run_few_classes(const Rows& x, const Rows& w, const Plan& plan, Epilogue& epilogue) {
  using T = typename Mode::T;
  constexpr int W = kWidth<T>, L = NV * W;
  const FewClasses<Mode> products(w);
  Layout layout;
  const size_t memory_at = layout.add<T>(products.memory()), tile_at = layout.add<T>(products.padded_classes() * L);
  const Scratch scratch(layout.bytes * std::min<int64_t>(plan.blocks, workers()));
  for_blocks(x.rows, plan.rows_per_block, [&](int64_t begin, int64_t end, int worker) {
    T *memory = scratch.at<T>(worker * layout.bytes + memory_at), *tile = scratch.at<T>(worker * layout.bytes + tile_at);
    for (int64_t row = begin; row < end; row += L) {
      const int64_t count = std::min<int64_t>(L, end - row);
      for (int v = 0; v < NV; ++v) products.template multiply<L>(x, row + v * W, count - v * W, memory, tile + v * W);
      typename Epilogue::State state;
      epilogue.begin(state, row, count, 0, nullptr);
      epilogue.tile(state, tile, 0, w.rows);
      epilogue.end(state, row, count, 0);
    }
  });
}

// Runs `epilogue` over every tile of x w^T. Epilogue provides, for one panel of NV * W rows of x:
//   struct State;                                                        plain data, one per panel
//   void begin(State&, int64_t row, int64_t count, int64_t split, const T* panel);   before its first tile of a split
//   void tile(State&, const T* tile, int64_t first_w, int64_t count_w);               tile[count_w][NV * W]
//   void end(State&, int64_t row, int64_t count, int64_t split);                      after its last tile of a split
// Where w is split, x is packed once for all splits: by each of 32 it took 5 % of the time of 1024 x 768 x 16384. Else each panel is
// packed when its first tile is due, and the rows of the next are read from memory meanwhile: they took 12 to 16 % of the time of
// projected_sqnorms and of 100 classes.
template <class Mode, int NV, class Epilogue>
inline void run_product(const Rows& x, const Rows& w, const Plan& plan, Epilogue& epilogue) {
  using T = typename Mode::T;
  constexpr int L = NV * kWidth<T>;
  using State = typename Epilogue::State;
  if constexpr (!kInTiles<Mode>)
    if (plan.few && !plan.upper) return run_few_classes<Mode, NV>(x, w, plan, epilogue);
  const int64_t depth = Mode::depth(x.dim), panels = plan.rows_per_block / L, group = group_size<Mode>(x.dim);
  const int64_t block_size = plan.rows_per_block * depth, tile_size = plan.w_per_tile * L;
  const int64_t w_tile = plan.w_per_tile / kMR * group;
  const bool shared = plan.splits > 1, in_place = x.rows <= kFewPanelRows && !plan.upper && !plan.whole && lies_in_place<Mode>(w);
  const bool when_due = !shared && !in_place && !plan.upper && w.rows > 0;
  const bool one_panel = when_due && w.rows <= plan.w_per_tile && depth <= plan.steps;  // at a time
  const int64_t at_once = shared ? std::clamp<int64_t>(kSharedBytes / int64_t(block_size * sizeof(T) + 1), 1, plan.blocks) : plan.blocks;
  Layout layout;
  const size_t x_at = layout.add<T>(shared ? 0 : one_panel ? L * depth : block_size);
  const size_t w_at = layout.add<T>(plan.whole || in_place ? 0 : w_tile);
  const size_t tile_at = layout.add<T>((depth > plan.steps || in_place ? panels : 1) * tile_size);
  const size_t states_at = layout.add<State>(panels);
  const Scratch x_shared(shared ? at_once * block_size * sizeof(T) : 0), w_whole(plan.whole ? pieces(w.rows, kMR) * group * sizeof(T) : 0);
  const Scratch scratch(layout.bytes * std::min<int64_t>(at_once * plan.splits, workers()));
  const auto pack = [&](int64_t row, int64_t end, T* out) {
    for (; row < end; row += L, out += L * depth) pack_panel<Mode, L>(x, row, std::min<int64_t>(L, end - row), out);
  };
  for_blocks(plan.whole ? w.rows : 0, plan.w_per_tile, [&](int64_t first, int64_t end, int) {
    pack_rows<Mode>(w, first, end - first, w_whole.at<T>() + first / kMR * group);
  });
  for (int64_t block = 0; block < plan.blocks; block += at_once) {
    const int64_t first_row = block * plan.rows_per_block, blocks = std::min(at_once, plan.blocks - block);
    const int64_t end_row = std::min(x.rows, first_row + blocks * plan.rows_per_block);
    if (shared)
      for_blocks(end_row - first_row, L, [&](int64_t from, int64_t to, int) {
        pack(first_row + from, first_row + to, x_shared.at<T>() + from * depth);
      });
    for_tasks(blocks * plan.splits, [&](int64_t task, int worker) {
      const size_t base = worker * layout.bytes;
      const int64_t split = task % plan.splits, row0 = first_row + task / plan.splits * plan.rows_per_block;
      const int64_t row1 = std::min(end_row, row0 + plan.rows_per_block);
      const int64_t w0 = plan.upper ? row0 / kMR * kMR : split * plan.w_per_split,
                    w1 = plan.upper ? w.rows : std::min(w.rows, w0 + plan.w_per_split);
      T* x_packed = shared ? x_shared.at<T>() + (row0 - first_row) * depth : scratch.at<T>(base + x_at);
      T *w_packed = scratch.at<T>(base + w_at), *tile = scratch.at<T>(base + tile_at);
      State* states = scratch.at<State>(base + states_at);
      const auto panel = [&](int64_t p) { return x_packed + (one_panel ? 0 : p * L * depth); };
      const auto begin = [&](int64_t row, int64_t p) {
        if (!shared) pack(row, std::min(row1, row + L), panel(p));
        epilogue.begin(states[p], row, std::min<int64_t>(L, row1 - row), split, panel(p));
      };
      for (int64_t row = row0, p = 0; row < row1 && !when_due; row += L, ++p) begin(row, p);
      for (int64_t first = w0; first < w1; first += plan.w_per_tile) {
        const int64_t count = std::min(plan.w_per_tile, w1 - first);
        if (in_place) {
          const int64_t number = pieces(row1 - row0, L);
          multiply_rows_in_place<Mode, NV>(w, first, count, w1, x_packed, number, tile, tile_size);
          for (int64_t p = 0; p < number; ++p) epilogue.tile(states[p], tile + p * tile_size, first, count);
          continue;
        }
        if (plan.whole) w_packed = w_whole.at<T>() + first / kMR * group;
        else pack_rows<Mode>(w, first, count, w_packed);
        for (int64_t k = 0; k == 0 || k < depth; k += plan.steps) {
          const int64_t steps = std::min(plan.steps, depth - k);
          for (int64_t row = row0, p = 0; row < row1; row += L, ++p) {
            if (plan.upper && first + count <= row + 1) break;
            const bool due = when_due && first == w0 && k == 0;
            if (due) begin(row, p);
            const T* ahead = panel(row + L < row1 ? p + 1 : 0) + k * L;
            if (due) ahead = reinterpret_cast<const T*>(x.at(std::min(row + L, x.rows - 1)));
            else if (plan.whole && p * L * depth < w_tile) ahead = w_packed + w_tile + p * L * depth;  // the next tile of w
            T* out = tile + (depth > plan.steps ? p * tile_size : 0);
            multiply_panel<Mode, NV>(panel(p) + k * L, w_packed + k * kMR, group, count, steps, k > 0, out, ahead);
            if (k + steps >= depth) epilogue.tile(states[p], out, first, count);
          }
        }
      }
      for (int64_t row = row0, p = 0; row < row1; row += L, ++p)
        epilogue.end(states[p], row, std::min<int64_t>(L, row1 - row), split);
    });
  }
}

}  // namespace ncops::NCOPS_ISA
