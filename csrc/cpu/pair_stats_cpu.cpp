// pair_stats: upper-triangle tiles of a row product, turned into the pair kernel's values and reduced on the spot. With labels
// there are two sides, pairs of one class and others, which share the products and the values.
#include "blocks/pair_rows.h"
#include "blocks/product.h"

namespace ncops::NCOPS_ISA {
namespace {

// Mean and squared deviations of values seen so far, merged by Chan's rule.
struct Moments {
  double count = 0, mean = 0, squares = 0;
  void add(double n, double m, double s) {
    if (n == 0) return;
    const double delta = m - mean, total = count + n;
    mean += delta * (n / total);
    squares += s + delta * delta * (count * n / total);
    count = total;
  }
};

struct Best {
  double value;
  int64_t index;
  // NaN outranks everything, as in torch.max; ties keep what came first.
  void offer(double v, int64_t i) {
    if (index < 0 || v > value || (v != v && value == value)) value = v, index = i;
  }
};

struct BlockResult {
  Moments moments;
  double min = std::numeric_limits<double>::infinity(), max = -std::numeric_limits<double>::infinity();
  bool poisoned = false;
};

template <class T, int Sides>
struct PairStats {
  static constexpr int W = kWidth<T>, L = 2 * W;
  static constexpr T inf = std::numeric_limits<T>::infinity();
  struct State {
    int64_t row, count;
    alignas(64) T norm[L], scale[L], variance[L], best[Sides][L];  // squared norm, 1 / norm, class variance, largest value so far
    alignas(64) LaneInt<T> best_index[Sides][L], label[L];         // relative to `row`, -1: none; class
  };
  const PairStatsArgs& args;
  const Plan& plan;
  const T *norms, *scales, *variances;  // (K): squared norms, 1 / norm (cosine), class variances (cdnv)
  const LaneInt<T>* labels;             // (K), with two sides
  BlockResult* results;                 // (blocks, Sides)
  Best* column_best;                    // (blocks, Sides, K): best partner of w row j among the x rows of a block
  Best* row_best;                       // (Sides, K): best partner of x row i among the later rows

  void begin(State& s, int64_t row, int64_t count, int64_t, const T*) {
    s.row = row;
    s.count = count;
    for (int i = 0; i < L; ++i) {
      const int64_t r = std::min(row + i, args.rows.rows - 1);
      s.norm[i] = norms[r];
      s.scale[i] = scales ? scales[r] : T(1);
      s.variance[i] = variances ? variances[r] : T(0);
      s.label[i] = labels ? labels[r] : 0;
      for (int side = 0; side < Sides; ++side) s.best[side][i] = -inf, s.best_index[side][i] = -1;
    }
  }

  Vec<T> value(const State& s, int lane, int64_t j, Vec<T> product, IntVec<T> wanted) const {
    if (args.kernel == PairKernel::dot) return product;
    if (args.kernel == PairKernel::cosine) return product * load(s.scale + lane) * scales[j];
    if (args.kernel == PairKernel::angle) return angle(s, lane, j, product, wanted);
    const Vec<T> size = load(s.norm + lane) + norms[j];
    Vec<T> d2 = size - 2 * product;
    const IntVec<T> close = (d2 < size * T(kClose)) & wanted;  // the difference has lost digits: form it directly
    if (any<T>(close))
      for (int i = 0; i < W; ++i)
        if (close[i]) d2[i] = T(square_distance(args.rows, s.row + lane + i, args.rows, j));
    const T power = T(args.power);
    switch (args.kernel) {
      case PairKernel::distance: return sqrt_of<T>(d2);
      case PairKernel::log_distance: return log_of<T>(d2) * T(0.5);
      case PairKernel::riesz: return power_of<T>(d2, -power / 2);
      case PairKernel::gaussian: return exp_of<T>(d2 * -power);
      default: return (load(s.variance + lane) + variances[j]) * T(0.5) * power_of<T>(d2, -power);
    }
  }

  Vec<T> angle(const State& s, int lane, int64_t j, Vec<T> cosine, IntVec<T> wanted) const {
    const IntVec<T> opposite = cosine < 0;
    Vec<T> chord = 2 - 2 * (opposite ? -cosine : cosine);
    const IntVec<T> close = (chord < T(2 * kClose)) & wanted;
    if (any<T>(close))
      for (int i = 0; i < W; ++i)
        if (close[i]) chord[i] = T(unit_pair(args.rows, s.row + lane + i, j).chord());
    return angle_of<T>(chord, opposite);
  }

  void tile(State& s, T* tile, int64_t first, int64_t count) {
    for (int lane = 0; lane < L && lane < s.count; lane += W) {
      // Past the diagonal every lane of a whole panel counts, and nothing need be masked.
      if (first >= s.row + L && s.count == L) reduce<false>(s, tile + lane, lane, first, count);
      else reduce<true>(s, tile + lane, lane, first, count);
    }
  }

  // Which lanes pair with w row `first` + j: lane i holds x row s.row + lane + i, whose partners are later rows, if the lane is real.
  template <bool Masked>
  static IntVec<T> wanted_at(const State& s, int lane, int64_t w) {
    if constexpr (!Masked) return ~IntVec<T>{};
    IntVec<T> lanes;
    for (int i = 0; i < W; ++i) lanes[i] = LaneInt<T>(lane + i);
    return lanes < LaneInt<T>(std::min<int64_t>(std::max<int64_t>(w - s.row, 0), s.count));
  }

  // One vector of x rows against w rows first, first + 1, ...
  template <bool Masked>
  void reduce(State& s, T* tile, int lane, int64_t first, int64_t count) {
    for (int64_t j = 0; j < count; ++j)
      store(tile + j * L, value(s, lane, first + j, load(tile + j * L), wanted_at<Masked>(s, lane, first + j)));
    if (!fold<Masked, false>(s, tile, lane, first, count)) fold<true, true>(s, tile, lane, first, count);
  }

  // Takes in the values of such a vector. False, and nothing but columns is taken in, where there may be a NaN among them but
  // `NaNs` is not set: looking for one by one costs as much as all else.
  template <bool Masked, bool NaNs>
  bool fold(State& s, const T* tile, int lane, int64_t first, int64_t count) {
    const int64_t block = s.row / plan.rows_per_block;
    Best* columns = column_best + block * Sides * args.rows.rows;
    const IntVec<T> label = load_int<T>(s.label + lane);
    // Which of the pairs with w row j are of a side.
    const auto of_side = [&](int side, int64_t w) -> IntVec<T> {
      const IntVec<T> wanted = wanted_at<Masked>(s, lane, w);
      if constexpr (Sides == 1) return wanted;
      const IntVec<T> same = label == labels[w];
      return wanted & (side == 0 ? same : ~same);
    };
    struct Side {
      Vec<T> best, sum, low;
      IntVec<T> best_index, pairs, bad;
    } sides[Sides];
#pragma GCC unroll 2
    for (int side = 0; side < Sides; ++side)
      sides[side] = {load(s.best[side] + lane), Vec<T>{}, splat<T>(inf), load_int<T>(s.best_index[side] + lane), IntVec<T>{}, IntVec<T>{}};
    for (int64_t j = 0; j < count; ++j) {
      const int64_t w = first + j;
      const Vec<T> v = load(tile + j * L);
#pragma GCC unroll 2
      for (int side = 0; side < Sides; ++side) {
        const IntVec<T> here = of_side(side, w);
        Side& c = sides[side];
        c.sum += here ? v : Vec<T>{};
        c.pairs -= here;
        c.low = here & (v < c.low) ? v : c.low;
        IntVec<T> better = (v > c.best) | (c.best_index < 0);
        if constexpr (NaNs) better |= (v != v) & (c.best == c.best), c.bad |= here & (v != v);
        better &= here;
        c.best = better ? v : c.best;
        c.best_index = better ? IntVec<T>{} + LaneInt<T>(w - s.row) : c.best_index;
        offer_column(columns[side * args.rows.rows + w], s.row + lane, v, here);
      }
    }
    for (int side = 0; side < Sides && !NaNs; ++side)
      if (any<T>(sides[side].sum != sides[side].sum)) return false;
    for (int side = 0; side < Sides; ++side) {
      const Side& c = sides[side];
      BlockResult& result = results[block * Sides + side];
      store(s.best[side] + lane, c.best);
      store_int<T>(s.best_index[side] + lane, c.best_index);
      double total = 0, number = 0;
      for (int i = 0; i < W; ++i) {
        total += double(c.sum[i]);
        number += double(c.pairs[i]);
        result.min = std::min(result.min, double(c.low[i]));
        result.poisoned |= c.bad[i] != 0;
      }
      if (number == 0) continue;
      const double mean = total / number;
      Vec<T> squares{};
      for (int64_t j = 0; j < count; ++j) {
        const Vec<T> dev = load(tile + j * L) - T(mean);
        squares += of_side(side, first + j) ? dev * dev : Vec<T>{};
      }
      double square = 0;
      for (int i = 0; i < W; ++i) square += double(squares[i]);
      result.moments.add(number, mean, square);
    }
    return true;
  }

  // The best x row of this vector for w row j. Nearly always an earlier one stays, which one comparison tells.
  void offer_column(Best& column, int64_t row, Vec<T> v, IntVec<T> wanted) const {
    if (column.index >= 0 && !any<T>(wanted & ~(IntVec<T>)(v <= T(column.value)))) return;
    for (int i = 0; i < W; ++i)
      if (wanted[i]) column.offer(double(v[i]), row + i);
  }

  void end(State& s, int64_t row, int64_t count, int64_t) {
    for (int side = 0; side < Sides; ++side)
      for (int64_t i = 0; i < count; ++i) {
        const int64_t index = s.best_index[side][i];
        row_best[side * args.rows.rows + row + i] = {double(s.best[side][i]), index < 0 ? -1 : row + index};
        if (double& max = results[row / plan.rows_per_block * Sides + side].max; index >= 0) max = std::max(max, double(s.best[side][i]));
      }
  }
};

// What all blocks found on one side.
template <class T, int Sides>
void finish(const PairStatsArgs& args, const PairStats<T, Sides>& epilogue, int64_t blocks, int side) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  const int64_t k = args.rows.rows;
  BlockResult total;
  for (int64_t b = 0; b < blocks; ++b) {
    const BlockResult& r = epilogue.results[b * Sides + side];
    total.moments.add(r.moments.count, r.moments.mean, r.moments.squares);
    total.min = std::min(total.min, r.min);
    total.max = std::max(total.max, r.max);
    total.poisoned |= r.poisoned;
  }
  const bool none = args.count[side] == 0 || total.poisoned;
  // Infinite values (coincident rows) of one sign make an infinite mean; merging them by differences would give NaN.
  const bool infinite = total.min == -inf || total.max == inf;
  args.mean[side] = none ? nan : infinite ? total.min + total.max : total.moments.mean;
  args.var[side] = none || infinite ? nan : total.moments.squares / total.moments.count;
  args.min[side] = none ? nan : total.min;
  args.max[side] = none ? nan : total.max;
  for (int64_t j = 0; j < k; ++j) {
    Best best{0, -1};
    for (int64_t b = 0; b < blocks; ++b) {
      const Best& earlier = epilogue.column_best[(b * Sides + side) * k + j];
      if (earlier.index >= 0) best.offer(earlier.value, earlier.index);
    }
    const Best& later = epilogue.row_best[side * k + j];
    if (later.index >= 0) best.offer(later.value, later.index);
    args.row_max[side * k + j] = best.index < 0 ? nan : best.value;
    args.row_argmax[side * k + j] = best.value == best.value ? best.index : -1;
  }
}

template <class T, int Sides>
void run(const PairStatsArgs& args) {
  using Epilogue = PairStats<T, Sides>;
  constexpr int L = Epilogue::L;
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  const int64_t k = args.rows.rows;
  for (int64_t i = 0; i < Sides * k; ++i) args.row_max[i] = nan, args.row_argmax[i] = -1;
  const int64_t all = k * (k - 1) / 2;
  args.count[0] = all;
  if constexpr (Sides == 2) {
    const Scratch memory(args.classes * sizeof(int64_t));
    int64_t* sizes = memory.at<int64_t>();
    std::memset(sizes, 0, args.classes * sizeof(int64_t));
    args.count[0] = 0;  // a row makes a pair with each of its class before it
    for (int64_t i = 0; i < k; ++i) args.count[0] += sizes[args.labels[i]]++;
    args.count[1] = all - args.count[0];
  }
  for (int side = 0; side < Sides; ++side) args.mean[side] = args.var[side] = args.min[side] = args.max[side] = nan;
  if (k < 2) return;

  Scratch norms(k * sizeof(T)), scales(k * sizeof(T)), variances(k * sizeof(T)), labels(k * sizeof(LaneInt<T>));
  const bool cosine = args.kernel == PairKernel::cosine;
  squared_norms<T>(args.rows, norms.at<T>(), cosine ? scales.at<T>() : nullptr);
  for (int64_t r = 0; args.variances && r < k; ++r) variances.at<T>()[r] = T(args.variances[r]);
  for (int64_t r = 0; Sides == 2 && r < k; ++r) labels.at<LaneInt<T>>()[r] = LaneInt<T>(args.labels[r]);

  Plan plan = plan_product<T>(k, k, args.rows.dim, L);
  // Each of 32 blocks packing the later rows anew took 9 % of the time of 8192 x 512, and 15 % where an offset is subtracted.
  plan.upper = true, plan.whole = k * args.rows.dim * int64_t(sizeof(T)) <= kKeptBytes;
  plan.splits = 1;
  // Early blocks meet more partners than late ones: at least 32 blocks, so that they balance over threads.
  plan.rows_per_block = round_up(std::min<int64_t>(1024, std::max<int64_t>(L, k / 32)), L);
  plan.blocks = (k + plan.rows_per_block - 1) / plan.rows_per_block;
  const int64_t parts = plan.blocks * Sides;
  Scratch results(parts * sizeof(BlockResult)), columns(parts * k * sizeof(Best)), rows(Sides * k * sizeof(Best));
  for (int64_t b = 0; b < parts; ++b) results.at<BlockResult>()[b] = BlockResult{};
  for (int64_t i = 0; i < parts * k; ++i) columns.at<Best>()[i] = {0, -1};
  Epilogue epilogue{args, plan, norms.at<T>(), cosine ? scales.at<T>() : nullptr, args.variances ? variances.at<T>() : nullptr,
                    Sides == 2 ? labels.at<LaneInt<T>>() : nullptr, results.at<BlockResult>(), columns.at<Best>(), rows.at<Best>()};
  run_product<Plain<T>, 2>(args.rows, args.rows, plan, epilogue);
  for (int side = 0; side < Sides; ++side) finish(args, epilogue, plan.blocks, side);
}

}  // namespace

void pair_stats(const PairStatsArgs& args) {
  with_compute(args.rows.dtype, [&](auto t) {
    if (args.sides == 2) run<decltype(t), 2>(args);
    else run<decltype(t), 1>(args);
  });
}

}  // namespace ncops::NCOPS_ISA
