// pair_stats_backward. Through the mean every pair has the same weight: for products of rows that is a sum over rows, no pair
// is formed; for kernels of the distance the tiles are formed again, turned into slopes and multiplied back, over all ordered
// pairs. Through row_max only the K pairs that give the maxima count, and those are formed directly, in double.
//
// Every row gathers what it gets, so bits do not depend on the number of threads. K x K never exists.
#include "blocks/pair_rows.h"
#include "blocks/sorted_rows.h"
#include "blocks/two_products.h"

namespace ncops::NCOPS_ISA {
namespace {

// Twice the derivative of a distance kernel by the squared distance, and the derivative of cdnv by a variance.
struct Slope {
  double by_distance, by_variance;
};
inline Slope slope_of(const PairStatsBackwardArgs& args, double d2, double variances) {
  const double power = args.power;
  double slope = 0, weight = 0;
  switch (args.kernel) {
    case PairKernel::distance: slope = 1 / std::sqrt(d2); break;
    case PairKernel::log_distance: slope = 1 / d2; break;
    case PairKernel::riesz: slope = -power * std::pow(d2, -power / 2 - 1); break;
    case PairKernel::gaussian: slope = -2 * power * std::exp(-power * d2); break;
    default:
      slope = -power * variances * std::pow(d2, -power - 1);
      weight = std::pow(d2, -power) / 2;
  }
  return {d2 == 0 ? 0 : slope, weight};
}

// The pairs that give row maxima, from both ends: row i owns the pair (i, partner[i]), and `givers` lists the rows whose
// partner is i.
struct BestPairs {
  const PairStatsBackwardArgs& args;
  SortedRows givers;
  Scratch slopes;  // of the pair that row i owns, times its gradient

  explicit BestPairs(const PairStatsBackwardArgs& a)
      : args(a), givers(a.partner, a.rows.rows, a.rows.rows, -1), slopes(a.rows.rows * sizeof(Slope)) {}

  void form_slopes() {
    for_blocks(args.rows.rows, 64, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        Slope& s = slopes.at<Slope>()[i];
        s = {0, 0};
        const int64_t j = args.partner[i];
        const double g = args.g_row_max[i];
        if (j < 0 || g == 0) continue;
        const double spread = args.variances ? args.variances[i] + args.variances[j] : 0;
        const Slope whole = slope_of(args, square_distance(args.rows, i, args.rows, j), spread);
        s = {g * whole.by_distance, g * whole.by_variance};
      }
    });
  }

  // f(i, j, row that owns the pair) for every such pair that row i is part of, in a fixed order.
  template <class F>
  void visit(int64_t i, F&& f) const {
    if (args.partner[i] >= 0) f(args.partner[i], i);
    for (int64_t p = givers.starts()[i]; p < givers.starts()[i + 1]; ++p) f(givers.order()[p], givers.order()[p]);
  }
};

template <class T>
struct SlopeRows {
  static constexpr int W = kWidth<T>, L = 2 * W;
  struct State {
    int64_t row, count;
    T* close;  // [L][dim], what close pairs give, formed from their differences; zeroed with the first of them
    bool any_close;
    alignas(64) T norm[L], variance[L];
    double sum[L], by_variance[L];
  };
  const PairStatsBackwardArgs& args;
  const BestPairs& best;
  const T *norms, *variances;

  int64_t extra() const { return L * args.rows.dim; }

  void begin(State& s, int64_t row, int64_t count, T* close) {
    s.row = row;
    s.count = count;
    s.close = close;
    s.any_close = false;
    for (int i = 0; i < L; ++i) {
      const int64_t r = std::min(row + i, args.rows.rows - 1);
      s.norm[i] = norms[r];
      s.variance[i] = variances ? variances[r] : T(0);
      s.sum[i] = s.by_variance[i] = 0;
    }
  }

  // Squared distances to slopes times share; `weight` becomes the gradient by a variance.
  Vec<T> slope(Vec<T> d2, Vec<T> spread, Vec<T>& weight) const {
    const T power = T(args.power), share = T(args.share);
    Vec<T> f;
    switch (args.kernel) {
      case PairKernel::distance: f = share / sqrt_of<T>(d2); break;
      case PairKernel::log_distance: f = share / d2; break;
      case PairKernel::riesz: f = (-power * share) * (power_of<T>(d2, -power / 2) / d2); break;
      case PairKernel::gaussian: f = (-2 * power * share) * gaussian(d2 * -power); break;
      default:
        weight = power_of<T>(d2, -power);
        f = (-power * share) * spread * (weight / d2);
        weight *= share / 2;
    }
    return d2 == 0 ? Vec<T>{} : f;
  }

  static Vec<T> gaussian(Vec<T> x) {  // subnormal values count as zero here
    if (any<T>(~(IntVec<T>)(x <= 0))) return exp_of<T>(x);
    return exp_nonpositive<T>(x);
  }

  void tile(State& s, T* tile, int64_t first, int64_t count) {
    for (int lane = 0; lane < L && lane < s.count; lane += W) {
      const Vec<T> norm = load(s.norm + lane), variance = load(s.variance + lane);
      const LaneInt<T> real = LaneInt<T>(std::min<int64_t>(W, s.count - lane));
      IntVec<T> lanes;
      for (int i = 0; i < W; ++i) lanes[i] = LaneInt<T>(i);
      Vec<T> sum{}, by_variance{};
      for (int64_t j = 0; j < count; ++j) {
        const int64_t w = first + j, own = w - s.row - lane;  // the lane that is this row itself
        T* p = tile + j * L + lane;
        const Vec<T> size = norm + norms[w], spread = variance + (variances ? variances[w] : T(0));
        Vec<T> d2 = size - 2 * load(p), weight{};
        IntVec<T> wanted = lanes < real;
        if (own >= 0 && own < W) wanted &= lanes != LaneInt<T>(own);
        const IntVec<T> close = (d2 < size * T(kClose)) & wanted;
        const bool some = any<T>(close);
        if (some)
          for (int i = 0; i < W; ++i)
            if (close[i]) d2[i] = T(square_distance(args.rows, s.row + lane + i, args.rows, w));
        Vec<T> f = slope(d2, spread, weight);
        if (args.share == 0) f = weight = Vec<T>{};
        f = wanted ? f : Vec<T>{};
        if (some) {
          for (int i = 0; i < W; ++i)
            if (close[i] && f[i] != 0) add_close(s, lane + i, w, f[i]);
          f = close ? Vec<T>{} : f;
        }
        store(p, f);
        sum += f;
        by_variance += wanted ? weight : Vec<T>{};
      }
      for (int i = 0; i < W; ++i) s.sum[lane + i] += double(sum[i]), s.by_variance[lane + i] += double(by_variance[i]);
    }
    for (int lane = int(round_up(s.count, W)); lane < L; lane += W)
      for (int64_t j = 0; j < count; ++j) store(tile + j * L + lane, Vec<T>{});
  }

  void add_close(State& s, int lane, int64_t j, T f) {
    const int64_t dim = args.rows.dim;
    if (!s.any_close) std::memset(s.close, 0, L * dim * sizeof(T));
    s.any_close = true;
    add_difference(s.row + lane, j, 0, dim, f, s.close + lane * dim);
  }

  // out += f (row i - row j), columns [k, k + n)
  template <class Out>
  void add_difference(int64_t i, int64_t j, int64_t k, int64_t n, double f, Out* out) const {
    const Rows& x = args.rows;
    double u[kLoadBlock], v[kLoadBlock];
    for_columns(n, [&](int64_t c, int64_t m) {
      load_raw<double>(x, x.stored(i), k + c, m, u);
      load_raw<double>(x, x.stored(j), k + c, m, v);
      for (int64_t a = 0; a < m; ++a) out[c + a] = Out(double(out[c + a]) + f * (u[a] - v[a]));
    });
  }

  void end(State& s, const T* panel, T* out) {
    const Rows& x = args.rows;
    for (int lane = 0; lane < s.count; ++lane) {
      const int64_t row = s.row + lane;
      finish(s, lane, panel, out, x.stored(row) * x.dim);
      if (!args.g_variances) continue;
      double total = s.by_variance[lane];
      best.visit(row, [&](int64_t, int64_t owner) { total += best.slopes.at<Slope>()[owner].by_variance; });
      args.g_variances[row] = total;
    }
  }

  // Through the mean: sum of f times the row, less the product, and what the close pairs give.
  void finish(const State& s, int lane, const T* panel, const T* out, int64_t at) {
    const Rows& x = args.rows;
    const int64_t row = s.row + lane;
    for (int64_t k = 0; k < x.dim; k += kLoadBlock) {
      const int64_t n = std::min(kLoadBlock, x.dim - k);
      double total[kLoadBlock];
      T result[kLoadBlock];
      for (int64_t c = 0; c < n; ++c) {
        const int64_t place = (k + c) * L + lane;
        total[c] = panel ? s.sum[lane] * double(panel[place]) - double(out[place]) : 0.0;
        if (s.any_close) total[c] += double(s.close[lane * x.dim + k + c]);
      }
      best.visit(row, [&](int64_t j, int64_t owner) {
        const double f = best.slopes.at<Slope>()[owner].by_distance;
        if (f != 0) add_difference(row, j, k, n, f, total);
      });
      for (int64_t c = 0; c < n; ++c) result[c] = T(total[c]);
      store_row<T>(result, n, x.dtype, args.g_rows, at + k);
    }
  }
};

template <class T>
void through_distances(const PairStatsBackwardArgs& args) {
  constexpr int64_t L = SlopeRows<T>::L;
  const Rows& x = args.rows;
  const int64_t k = x.rows;
  BestPairs best(args);
  best.form_slopes();
  Scratch norms(k * sizeof(T)), variances(k * sizeof(T));
  squared_norms<T>(x, norms.at<T>(), nullptr);
  for (int64_t r = 0; args.variances && r < k; ++r) variances.at<T>()[r] = T(args.variances[r]);
  SlopeRows<T> epilogue{args, best, norms.at<T>(), args.variances ? variances.at<T>() : nullptr};
  bool finite = true;  // a NaN or infinite row makes the origin so, and with it every gradient through the mean
  for (int64_t c = 0; c < x.dim; ++c) finite &= std::isfinite(x.offset[c]);
  if (args.share != 0 || !finite) {
    const TwoProductsPlan plan = plan_two_products<T>(k, x.dim, std::numeric_limits<int64_t>::max());
    run_two_products<T>(x, x, plan, epilogue, true, nullptr);
    return;
  }
  for_blocks(k, L, [&](int64_t begin, int64_t end, int) {  // through row_max alone
    typename SlopeRows<T>::State state;
    epilogue.begin(state, begin, end - begin, nullptr);
    epilogue.end(state, nullptr, nullptr);
  });
}

// dot: sums of the other rows. cosine: the same of the unit rows, less the part along the row, over its norm.
template <class T>
void through_products(const PairStatsBackwardArgs& args) {
  const Rows& x = args.rows;
  const int64_t k = x.rows, dim = x.dim;
  const bool cosine = args.kernel == PairKernel::cosine;
  const BestPairs best(args);
  Scratch scales(k * sizeof(double)), sums(dim * sizeof(double));
  double* scale = scales.at<double>();
  double* sum = sums.at<double>();
  for_blocks(k, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const double total = cosine ? squared_norm<double>(x, r) : 1;
      scale[r] = total == 0 ? std::numeric_limits<double>::quiet_NaN() : 1 / std::sqrt(total);
    }
  });
  for_blocks(dim, kLoadBlock, [&](int64_t c, int64_t end, int) {
    const int64_t n = end - c;
    double total[kLoadBlock] = {}, block[kLoadBlock];
    for (int64_t r = 0; r < k; ++r) {
      load_raw<double>(x, x.stored(r), c, n, block);
      for (int64_t i = 0; i < n; ++i) total[i] += scale[r] * block[i];
    }
    std::memcpy(sum + c, total, n * sizeof(double));
  });
  Scratch rows(workers() * round_up(dim * sizeof(double), 64));
  for_blocks(k, 8, [&](int64_t begin, int64_t end, int worker) {
    double* total = rows.at<double>(worker * round_up(dim * sizeof(double), 64));
    double block[kLoadBlock];
    for (int64_t r = begin; r < end; ++r) {
      double along = 0;
      for_columns(dim, [&](int64_t c, int64_t n) {
        load_raw<double>(x, x.stored(r), c, n, block);
        for (int64_t i = 0; i < n; ++i) total[c + i] = args.share * (sum[c + i] - scale[r] * block[i]);
        best.visit(r, [&](int64_t j, int64_t owner) {
          if (args.g_row_max[owner] == 0) return;
          const double f = args.g_row_max[owner] * scale[j];
          double other[kLoadBlock];
          load_raw<double>(x, x.stored(j), c, n, other);
          for (int64_t i = 0; i < n; ++i) total[c + i] += f * other[i];
        });
        for (int64_t i = 0; i < n; ++i) along += total[c + i] * (scale[r] * block[i]);
      });
      for_columns(dim, [&](int64_t c, int64_t n) {
        T result[kLoadBlock];
        load_raw<double>(x, x.stored(r), c, n, block);
        for (int64_t i = 0; i < n; ++i)
          result[i] = T(cosine ? (total[c + i] - along * (scale[r] * block[i])) * scale[r] : total[c + i]);
        store_row<T>(result, n, x.dtype, args.g_rows, x.stored(r) * dim + c);
      });
    }
  });
}

template <class T>
void run(const PairStatsBackwardArgs& args) {
  if (is_distance(args.kernel)) through_distances<T>(args);
  else through_products<T>(args);
  clear_other_rows<T>(args.rows, args.total, args.g_rows);
}

}  // namespace

void pair_stats_backward(const PairStatsBackwardArgs& args) {
  with_compute(args.rows.dtype, [&](auto t) { run<decltype(t)>(args); });
}

}  // namespace ncops::NCOPS_ISA
