// pair_stats: upper-triangle tiles of a row product, turned into the pair kernel's values and reduced on the spot.
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

template <class T>
struct PairStats {
  static constexpr int W = kWidth<T>, L = 2 * W;
  static constexpr T inf = std::numeric_limits<T>::infinity();
  struct State {
    int64_t row, count;
    alignas(64) T norm[L], scale[L], variance[L], best[L];  // squared norm, 1 / norm, class variance, largest value so far
    alignas(64) LaneInt<T> best_index[L];                   // relative to `row`; -1: none
  };
  const PairStatsArgs& args;
  const Plan& plan;
  const T *norms, *scales, *variances;  // (K): squared norms, 1 / norm (cosine), class variances (cdnv)
  BlockResult* results;                 // (blocks)
  Best* column_best;                    // (blocks, K): best partner of w row j among the x rows of a block
  Best* row_best;                       // (K): best partner of x row i among the later rows

  bool close_pairs() const { return is_distance(args.kernel); }

  void begin(State& s, int64_t row, int64_t count, int64_t, const T*) {
    s.row = row;
    s.count = count;
    for (int i = 0; i < L; ++i) {
      const int64_t r = std::min(row + i, args.rows.rows - 1);
      s.norm[i] = norms[r];
      s.scale[i] = scales ? scales[r] : T(1);
      s.variance[i] = variances ? variances[r] : T(0);
      s.best[i] = -inf;
      s.best_index[i] = -1;
    }
  }

  Vec<T> value(const State& s, int lane, int64_t j, Vec<T> product, IntVec<T> wanted) const {
    if (args.kernel == PairKernel::dot) return product;
    if (args.kernel == PairKernel::cosine) return product * load(s.scale + lane) * scales[j];
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

  void tile(State& s, T* tile, int64_t first, int64_t count) {
    for (int lane = 0; lane < L && lane < s.count; lane += W) {
      // Past the diagonal every lane of a whole panel counts, and nothing need be masked.
      if (first >= s.row + L && s.count == L) reduce<false>(s, tile + lane, lane, first, count);
      else reduce<true>(s, tile + lane, lane, first, count);
    }
  }

  // One vector of x rows against w rows first, first + 1, ...: lane i holds x row s.row + lane + i, which pairs with w row j
  // when j is later and the lane is real.
  template <bool Masked>
  void reduce(State& s, T* tile, int lane, int64_t first, int64_t count) {
    const int64_t block = s.row / plan.rows_per_block;
    BlockResult& result = results[block];
    Best* columns = column_best + block * args.rows.rows;
    IntVec<T> lanes;
    for (int i = 0; i < W; ++i) lanes[i] = LaneInt<T>(lane + i);
    const auto wanted_at = [&](int64_t j) -> IntVec<T> {
      if constexpr (!Masked) return ~IntVec<T>{};
      const LaneInt<T> limit = LaneInt<T>(std::min<int64_t>(std::max<int64_t>(first + j - s.row, 0), s.count));
      return lanes < limit;
    };
    Vec<T> best = load(s.best + lane), sum{}, low = splat<T>(inf), high = splat<T>(-inf);
    IntVec<T> best_index = load_int<T>(s.best_index + lane), pairs{}, bad{};
    for (int64_t j = 0; j < count; ++j) {
      const int64_t w = first + j;
      const IntVec<T> wanted = wanted_at(j);
      const Vec<T> v = value(s, lane, w, load(tile + j * L), wanted);
      store(tile + j * L, v);
      sum += wanted ? v : Vec<T>{};
      pairs -= wanted;
      low = wanted & (v < low) ? v : low;
      high = wanted & (v > high) ? v : high;
      bad |= wanted & (v != v);
      const IntVec<T> better = wanted & ((v > best) | ((v != v) & (best == best)) | (best_index < 0));
      best = better ? v : best;
      best_index = better ? IntVec<T>{} + LaneInt<T>(w - s.row) : best_index;
      offer_column(columns[w], s.row + lane, v, wanted);
    }
    store(s.best + lane, best);
    store_int<T>(s.best_index + lane, best_index);
    double total = 0, number = 0;
    for (int i = 0; i < W; ++i) {
      total += double(sum[i]);
      number += double(pairs[i]);
      result.min = std::min(result.min, double(low[i]));
      result.max = std::max(result.max, double(high[i]));
      result.poisoned |= bad[i] != 0;
    }
    if (number == 0) return;
    const double mean = total / number;
    Vec<T> squares{};
    for (int64_t j = 0; j < count; ++j) {
      const Vec<T> dev = load(tile + j * L) - T(mean);
      squares += wanted_at(j) ? dev * dev : Vec<T>{};
    }
    double square = 0;
    for (int i = 0; i < W; ++i) square += double(squares[i]);
    result.moments.add(number, mean, square);
  }

  // The best x row of this vector for w row j. Nearly always an earlier one stays, which one comparison tells.
  void offer_column(Best& column, int64_t row, Vec<T> v, IntVec<T> wanted) const {
    if (column.index >= 0 && !any<T>(wanted & ~(IntVec<T>)(v <= T(column.value)))) return;
    for (int i = 0; i < W; ++i)
      if (wanted[i]) column.offer(double(v[i]), row + i);
  }

  void end(State& s, int64_t row, int64_t count, int64_t) {
    for (int64_t i = 0; i < count; ++i)
      row_best[row + i] = {double(s.best[i]), s.best_index[i] < 0 ? -1 : row + int64_t(s.best_index[i])};
  }
};

template <class T>
void run(const PairStatsArgs& args) {
  constexpr int L = PairStats<T>::L;
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  const int64_t k = args.rows.rows;
  *args.count = k * (k - 1) / 2;
  *args.mean = *args.var = *args.min = *args.max = nan;
  for (int64_t i = 0; i < k; ++i) args.row_max[i] = nan, args.row_argmax[i] = -1;
  if (k < 2) return;

  Scratch norms(k * sizeof(T)), scales(k * sizeof(T)), variances(k * sizeof(T));
  const bool cosine = args.kernel == PairKernel::cosine;
  squared_norms<T>(args.rows, norms.at<T>(), cosine ? scales.at<T>() : nullptr);
  for (int64_t r = 0; args.variances && r < k; ++r) variances.at<T>()[r] = T(args.variances[r]);

  Plan plan = plan_product<T>(k, k, args.rows.dim, L);
  plan.upper = true;
  plan.splits = 1;
  // Early blocks meet more partners than late ones: at least 32 blocks, so that they balance over threads.
  plan.rows_per_block = round_up(std::min<int64_t>(1024, std::max<int64_t>(L, k / 32)), L);
  plan.blocks = (k + plan.rows_per_block - 1) / plan.rows_per_block;
  Scratch results(plan.blocks * sizeof(BlockResult)), columns(plan.blocks * k * sizeof(Best)), rows(k * sizeof(Best));
  for (int64_t b = 0; b < plan.blocks; ++b) results.at<BlockResult>()[b] = BlockResult{};
  for (int64_t i = 0; i < plan.blocks * k; ++i) columns.at<Best>()[i] = {0, -1};
  PairStats<T> epilogue{args, plan, norms.at<T>(), cosine ? scales.at<T>() : nullptr,
                        args.variances ? variances.at<T>() : nullptr, results.at<BlockResult>(), columns.at<Best>(),
                        rows.at<Best>()};
  run_product<Plain<T>, 2>(args.rows, args.rows, plan, epilogue);

  BlockResult total;
  for (int64_t b = 0; b < plan.blocks; ++b) {
    const BlockResult& r = epilogue.results[b];
    total.moments.add(r.moments.count, r.moments.mean, r.moments.squares);
    total.min = std::min(total.min, r.min);
    total.max = std::max(total.max, r.max);
    total.poisoned |= r.poisoned;
  }
  // Infinite values (coincident rows) of one sign make an infinite mean; merging them by differences would give NaN.
  constexpr double inf = std::numeric_limits<double>::infinity();
  const bool infinite = total.min == -inf || total.max == inf;
  *args.mean = total.poisoned ? nan : infinite ? total.min + total.max : total.moments.mean;
  *args.var = total.poisoned || infinite ? nan : total.moments.squares / total.moments.count;
  *args.min = total.poisoned ? nan : total.min;
  *args.max = total.poisoned ? nan : total.max;
  for (int64_t j = 0; j < k; ++j) {
    Best best{0, -1};
    for (int64_t b = 0; b < plan.blocks; ++b) {
      const Best& earlier = epilogue.column_best[b * k + j];
      if (earlier.index >= 0) best.offer(earlier.value, earlier.index);
    }
    if (epilogue.row_best[j].index >= 0) best.offer(epilogue.row_best[j].value, epilogue.row_best[j].index);
    args.row_max[j] = best.index < 0 ? nan : best.value;
    args.row_argmax[j] = best.value == best.value ? best.index : -1;
  }
}

}  // namespace

void pair_stats(const PairStatsArgs& args) {
  with_compute(args.rows.dtype, [&](auto t) { run<decltype(t)>(args); });
}

}  // namespace ncops::NCOPS_ISA
