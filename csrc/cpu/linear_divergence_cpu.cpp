// linear_divergence and its gradient. A block of rows keeps its tiles of both products, which the passes of divergence_lanes.h
// and the products of the gradient read.
//
// In pairs of bfloat16 the difference of two states is two numbers, upper and lower, and its product two: 16 bits of it, where two
// bfloat16 states near each other differ by 9.
#include "divergence_gradient.h"
#include "kept_tiles.h"
#include "linear_logits.h"

namespace ncops::NCOPS_ISA {
namespace {

// x, pairs of bfloat16, becomes the upper part of other - x, and other the lower.
inline void subtract_pairs(float* x, float* other, int64_t n) {
  using V = Vec<float>;
  using I = IntVec<float>;
  const auto halves = [](V upper, V lower) {  // of even and of odd features
    return (V)((narrow_bits<I>(upper, Bf16{}) & 0xffff) | narrow_bits<I>(lower, Bf16{}) << 16);
  };
  const auto even = [](V pairs) { return (V)((I)pairs << 16); };
  const auto odd = [](V pairs) { return (V)((I)pairs & ~0xffff); };
  for (int64_t i = 0; i < n; i += kWidth<float>) {
    const V a = load(x + i), b = load(other + i);
    const V first = even(b) - even(a), second = odd(b) - odd(a), upper = halves(first, second);
    store(x + i, upper);
    store(other + i, halves(first - even(upper), second - odd(upper)));
  }
}

template <class Mode>
class Divergence {
  using T = typename Mode::T;
  static constexpr int L = KeptTiles<Mode>::L;
  using State = DivergenceState<T, L>;
  using Lanes = DivergenceLanes<T, L>;
  using Gradient = DivergenceGradient<T, L>;

  // Rows, classifier and gradients of one of the two distributions.
  struct Side {
    Rows x, w;
    void *g_x, *g_weight, *g_bias;
    int64_t dim, depth, columns, features;
    Side(const Rows& x, const Rows& w, void* g_x, void* g_weight, void* g_bias)
        : x(x), w(w), g_x(g_x), g_weight(g_weight), g_bias(g_bias), dim(x.dim), depth(Mode::depth(x.dim)),
          columns(round_up(x.dim, L)), features(round_up(x.dim, kMR)) {}
  };
  struct Sums {
    double rests[2][L], ratios[4][L];
  };

  // Per side tiles of products, then of their gradients; packed rows; shares of g_x [split][panel][column][lane].
  struct Block : KeptRows<Mode> {
    T *tiles[2], *panels[2], *lower, *columns[2], *inputs[2];
    DivergenceShare* shares;  // [split][row]
    Sums* sums;               // [split][panel]
    DivergenceRow* rows;
    Lanes* lanes;
    Gradient* gradients;

    T* tile(int side, int64_t t, int64_t p) const { return KeptRows<Mode>::tile(tiles[side], t, p); }
  };

  const LinearDivergenceArgs& args_;
  bool backward_;
  Side sides_[2];
  KeptTiles<Mode> plan_;
  Bias<T> bias_, other_bias_;
  PairReader<T> read_;

 public:
  Divergence(const LinearDivergenceArgs& args, bool backward)
      : args_(args), backward_(backward),
        sides_{{args.x, args.w, args.g_x, args.g_weight, args.g_bias},
               {args.other, args.one_head ? args.w : args.other_w, args.g_other, args.g_other_weight, args.g_other_bias}},
        plan_(args.x.rows, args.w.rows, sides_[0].dim + sides_[1].dim, 2, backward ? sides_[0].features + sides_[1].features : 0),
        bias_(args.bias, args.w.rows), other_bias_(args.other_bias, args.w.rows),
        read_{T(args.scale), args.one_head, Softcap<T>(args.softcap), args.softcap, bias_.data, other_bias_.data} {}

  void run() {
    const int64_t n = args_.x.rows;
    GroupSums<T> weights[2] = {sum_of(sides_[0].g_weight, plan_.classes * sides_[0].dim), sum_of(sides_[1].g_weight, plan_.classes * sides_[1].dim)};
    GroupSums<T> biases[2] = {sum_of(sides_[0].g_bias, plan_.classes), sum_of(sides_[1].g_bias, plan_.classes)};
    for (int s = 0; s < 2; ++s) weights[s].clear(), biases[s].clear();
    if (n == 0) return;
    Layout block, worker;
    size_t tiles_at[2], panels_at[2], columns_at[2], inputs_at[2], w_size = 0;
    const size_t lower_at = block.add<T>(kInPairs<Mode> && args_.one_head ? plan_.panels * L * sides_[1].depth : 0);
    for (int s = 0; s < 2; ++s) {
      const Side& side = sides_[s];
      tiles_at[s] = block.add<T>(plan_.panels * plan_.tiles * plan_.kTile);
      panels_at[s] = block.add<T>(plan_.panels * L * side.depth);
      columns_at[s] = block.add<T>(sides_[args_.one_head ? 0 : s].g_weight ? plan_.rows_per_block / kPerStep<Mode> * side.columns : 0);
      inputs_at[s] = block.add<T>(side.g_x ? plan_.splits * plan_.rows_per_block * side.features : 0);
      w_size = std::max<size_t>(w_size, std::max(KeptTiles<Mode>::kRows / kMR * group_size<Mode>(side.dim), turned_size<Mode>(KeptTiles<Mode>::kRows, side.dim)));
    }
    const size_t shares_at = block.add<DivergenceShare>(backward_ ? 0 : plan_.splits * plan_.rows_per_block);
    const size_t sums_at = block.add<Sums>(backward_ ? 0 : plan_.splits * plan_.panels), rows_at = block.add<DivergenceRow>(plan_.rows_per_block);
    const size_t lanes_at = block.add<Lanes>(plan_.panels), gradients_at = block.add<Gradient>(backward_ ? plan_.panels : 0);
    const size_t steps_at = worker.add<T>(backward_ ? class_steps_size<Mode>(KeptTiles<Mode>::kRows) : 0);
    const size_t w_at = worker.add<T>(w_size), states_at = worker.add<State>(plan_.panels);
    const Scratch blocks(block.bytes * plan_.at_once()), own(worker.bytes * workers());
    plan_.run([&](int64_t row, int64_t end, int64_t group, int64_t at, const auto& each) {
      const size_t base = at * block.bytes;
      Block b{{row, end}};
      for (int s = 0; s < 2; ++s) {
        b.tiles[s] = blocks.at<T>(base + tiles_at[s]), b.panels[s] = blocks.at<T>(base + panels_at[s]);
        b.columns[s] = blocks.at<T>(base + columns_at[s]), b.inputs[s] = blocks.at<T>(base + inputs_at[s]);
      }
      b.lower = blocks.at<T>(base + lower_at);
      b.shares = blocks.at<DivergenceShare>(base + shares_at), b.sums = blocks.at<Sums>(base + sums_at);
      b.rows = blocks.at<DivergenceRow>(base + rows_at), b.lanes = blocks.at<Lanes>(base + lanes_at);
      b.gradients = blocks.at<Gradient>(base + gradients_at);
      const auto w = [&](int number) { return own.at<T>(number * worker.bytes + w_at); };
      each(b.number(), [&](int64_t p, int) { pack(b, p); });
      each(plan_.splits, [&](int64_t split, int k) { multiply(b, split, w(k), own.at<State>(k * worker.bytes + states_at)); });
      if (backward_) {
        each(plan_.splits, [&](int64_t split, int k) { multiply_back(b, split, weights, biases, group, w(k), own.at<T>(k * worker.bytes + steps_at)); });
        each(b.number(), [&](int64_t p, int) {
          for (int s = 0; s < 2; ++s)
            if (sides_[s].g_x) b.store_inputs(b.inputs[s], plan_.splits, sides_[s].features, sides_[s].x, p, sides_[s].g_x);
        });
        return;
      }
      if (args_.whole) {
        each(b.number(), [&](int64_t p, int) { take_whole(b, p); });
      } else {
        each(b.number(), [&](int64_t p, int) { join_shares(b, p); });
        for_each_tile(each, b, [&](int64_t t, int64_t p, int64_t first, int64_t count, Sums& sums) {
          b.lanes[p].add_rests(read_, b.tile(0, t, p), b.tile(1, t, p), first, count, sums.rests);
        });
        each(b.number(), [&](int64_t p, int) { join_rests(b, p); });
      }
      if (!args_.share_floats)
        for_each_tile(each, b, [&](int64_t t, int64_t p, int64_t first, int64_t count, Sums& sums) {
          b.lanes[p].add_ratios(read_, b.tile(0, t, p), b.tile(1, t, p), first, count, T(args_.beta), sums.ratios);
        });
      each(b.number(), [&](int64_t p, int) { write(b, p); });
    });
    for (int s = 0; s < 2; ++s) weights[s].merge(), biases[s].merge();
  }

 private:
  GroupSums<T> sum_of(void* out, int64_t size) const { return GroupSums<T>(out, size, plan_.groups); }

  template <class Each, class F>
  void for_each_tile(const Each& each, const Block& b, F f) const {
    each(plan_.splits, [&](int64_t split, int) {
      plan_.for_tiles(split, [&](int64_t t, int64_t first, int64_t count) {
        for (int64_t p = 0; p < b.number(); ++p) f(t, p, first, count, b.sums[split * plan_.panels + p]);
      });
    });
  }

  // With one head the second panel is that of the difference.
  void pack(const Block& b, int64_t p) const {
    const int64_t row = b.first(p), count = b.count(p), size = L * sides_[0].depth;
    for (int s = 0; s < 2; ++s) pack_panel<Mode, L>(sides_[s].x, row, count, b.panels[s] + p * L * sides_[s].depth);
    if (args_.one_head) {
      T *x = b.panels[0] + p * size, *other = b.panels[1] + p * size;
      if constexpr (kInPairs<Mode>) {
        std::memcpy(b.lower + p * size, other, size * sizeof(T));
        std::memcpy(other, x, size * sizeof(T));
        subtract_pairs(other, b.lower + p * size, size);
      } else {
        for (int64_t i = 0; i < size; ++i) other[i] -= x[i];
      }
    }
    if (!backward_) return;
    Gradient& gradient = b.gradients[p];
    gradient.begin(static_cast<const T*>(args_.grad), static_cast<const T*>(args_.floats), args_.x.rows, row, count);
    // Rows without gradient are zero, lest their NaN reach the weight.
    const auto counts = [&](int64_t r) { return r < b.end && gradient.active[r - row] != 0; };
    for (int s = 0; s < 2; ++s)
      if (sides_[args_.one_head ? 0 : s].g_weight)
        pack_row_steps<Mode>(sides_[s].x, row, counts, b.columns[s] + p * L * L / kPerStep<Mode>, b.number() * L);
  }

  void multiply(const Block& b, int64_t split, T* w, State* states) const {
    const int64_t number = b.number();
    if (!backward_)
      for (int64_t p = 0; p < number; ++p) states[p].begin(), b.sums[split * plan_.panels + p] = Sums{};
    plan_.for_tiles(split, [&](int64_t t, int64_t first, int64_t count) {
      for (int s = 0; s < 2; ++s) {
        if (s == 0 || !args_.one_head) pack_rows<Mode>(sides_[s].w, first, count, w);
        const int64_t depth = sides_[s].depth, steps = plan_product<T>(plan_.rows, plan_.classes, depth, L).steps;
        const auto add = [&](const T* panels, bool onto) {
          b.multiply(panels, depth, steps, w, group_size<Mode>(sides_[s].dim), t, count, b.tiles[s], [](int64_t) {}, onto);
        };
        add(b.panels[s], false);
        if (kInPairs<Mode> && s == 1 && args_.one_head) add(b.lower, true);
      }
      if (!backward_ && !args_.whole)
        for (int64_t p = 0; p < number; ++p) states[p].add(read_, b.tile(0, t, p), b.tile(1, t, p), first, count);
    });
    if (!backward_)
      for (int64_t i = 0; i < b.end - b.row; ++i) b.shares[split * plan_.rows_per_block + i] = states[i / L].row(i % L);
  }

  void join_shares(const Block& b, int64_t p) const {
    for (int i = 0; i < L; ++i) {
      const int64_t at = p * L + std::min<int64_t>(i, b.count(p) - 1);
      DivergenceShare total = b.shares[at];
      for (int64_t split = 1; split < plan_.splits; ++split) total.merge(b.shares[split * plan_.rows_per_block + at]);
      DivergenceRow row;
      row.share = total;
      row.first();
      b.lanes[p].begin(i, row);
      if (i < b.count(p)) b.rows[at] = row;
    }
  }

  // Rows of which all classes are known, of which these are some.
  void take_whole(const Block& b, int64_t p) const {
    const int64_t rows = args_.x.rows;
    for (int i = 0; i < L; ++i) {
      const double* of_row = args_.whole + b.first(p) + std::min<int64_t>(i, b.count(p) - 1);
      DivergenceRow row;
      row.given(of_row[0], of_row[rows], of_row[2 * rows], double(T(of_row[0])), double(T(of_row[rows])));
      b.lanes[p].begin(i, row);
      b.lanes[p].shift[i] = T(row.shift);
    }
  }

  void join_rests(const Block& b, int64_t p) const {
    for (int64_t i = 0; i < L; ++i) {
      if (i >= b.count(p)) {
        b.lanes[p].shift[i] = 0;
        continue;
      }
      double rests[2] = {};
      for (int64_t split = 0; split < plan_.splits; ++split)
        for (int o = 0; o < 2; ++o) rests[o] += b.sums[split * plan_.panels + p].rests[o][i];
      DivergenceRow& row = b.rows[p * L + i];
      row.second(rests[0], rests[1]);
      b.lanes[p].shift[i] = T(row.shift);
    }
  }

  void write(const Block& b, int64_t p) const {
    for (int64_t i = 0; i < b.count(p); ++i) {
      double sums[4] = {};
      for (int64_t split = 0; split < plan_.splits; ++split)
        for (int o = 0; o < 4; ++o) sums[o] += b.sums[split * plan_.panels + p].ratios[o][i];
      const int64_t row = b.first(p) + i;
      if (args_.share_floats) write_share(args_, row, b.rows[p * L + i]);
      else if (args_.whole) write_ratios(args_, row, sums);
      else write_divergence<T>(args_, args_.x.rows, row, b.rows[p * L + i], sums);
    }
  }

  // Turns products into gradients by them, and adds these to shares of those of the rows, of the classifiers and of the biases.
  void multiply_back(const Block& b, int64_t split, GroupSums<T>* weights, GroupSums<T>* biases, int64_t group, T* w, T* steps) const {
    const int64_t number = b.number();
    for (int s = 0; s < 2; ++s)
      if (sides_[s].g_x) std::memset(inputs(b, s, split, 0), 0, number * L * sides_[s].features * sizeof(T));
    bool zero[2][KeptTiles<Mode>::kMostRows / L];
    plan_.for_tiles(split, [&](int64_t t, int64_t first, int64_t count) {
      for (int64_t p = 0; p < number; ++p) {
        zero[0][p] = zero[1][p] = !b.gradients[p].any_active;
        if (zero[0][p]) continue;
        b.gradients[p].apply(read_, b.tile(0, t, p), b.tile(1, t, p), first, count, T(args_.beta));
        for (int s = 0; s < 2; ++s) {
          T* dz = b.tile(s, t, p);
          zero[s][p] = !any_gradient<T>(dz, count);
          if (zero[s][p]) continue;
          T* g_bias = biases[args_.one_head ? 0 : s].share(group);
          complete_gradients<T>(dz, count, T(args_.scale), g_bias ? g_bias + first : nullptr);
        }
      }
      for (int s = 0; s < 2; ++s) {
        const Side& side = sides_[s];
        if (side.g_x) {
          if (s == 0 || !args_.one_head || !sides_[0].g_x) pack_turned<Mode>(side.w, first, count, w);
          for (int64_t p = 0; p < number; ++p)
            if (!zero[s][p])
              add_input_gradient<Mode>(w, side.dim, count, class_steps<Mode>(b.tile(s, t, p), count, steps), inputs(b, s, split, p));
        }
        T* g_weight = weights[args_.one_head ? 0 : s].share(group);
        if (!g_weight) continue;
        for (int64_t p = 0; p < number; ++p)
          if (!zero[s][p]) turn_into_row_steps<Mode>(b.tile(s, t, p), count);
        add_weight_gradient<Mode>(b.tile(s, t, 0), plan_.kTile, number, zero[s], b.columns[s], side.dim, g_weight + first * side.dim, count);
      }
    });
  }

  T* inputs(const Block& b, int s, int64_t split, int64_t p) const {
    return b.inputs[s] + (split * b.number() + p) * L * sides_[s].features;
  }
};

}  // namespace

static void run(const LinearDivergenceArgs& args, bool backward) {
  if (with_bf16_products(args.x.dtype, [&](auto mode) { Divergence<decltype(mode)>(args, backward).run(); })) return;
  with_compute(args.x.dtype, [&](auto t) { Divergence<Plain<decltype(t)>>(args, backward).run(); });
}

void linear_divergence(const LinearDivergenceArgs& args) { run(args, false); }

void linear_divergence_backward(const LinearDivergenceArgs& args) { run(args, true); }

}  // namespace ncops::NCOPS_ISA
