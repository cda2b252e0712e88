// pair_stats_backward. Through the mean every pair has the same weight: for products of rows that is a sum over rows, no pair
// is formed; for kernels of the distance the tiles are formed again, turned into slopes and multiplied back, over all ordered
// pairs. Through row_max only the K pairs that give the maxima count (of each side), and those are formed directly, in double.
//
// Every row gathers what it gets, so bits do not depend on the number of threads. K x K never exists.
#include "blocks/pair_rows.h"
#include "blocks/sorted_rows.h"
#include "blocks/two_products.h"

namespace ncops::NCOPS_ISA {
namespace {

// Twice the derivative of a distance kernel by the squared distance, the derivative of cdnv by a variance, and, for an angle near pi,
// -1: there the sum of the two unit rows has the digits, and what it adds along the row itself goes with the norm.
struct Slope {
  double by_distance, by_variance, sign;
};
inline Slope angle_slope(const UnitPair& pair) {
  const double product = pair.apart * pair.together;  // (2 sin)^2
  return {product == 0 ? 0 : 2 / std::sqrt(product), 0, pair.opposite() ? -1.0 : 1.0};
}
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
  return {d2 == 0 ? 0 : slope, weight, 1};
}

// The pairs that give row maxima, from both ends: owner o, which is row o % K on side o / K, owns the pair (o % K, partner[o]), and
// `givers` lists the owners whose partner is i.
struct BestPairs {
  const PairStatsBackwardArgs& args;
  const int64_t owners;
  SortedRows givers;
  Scratch slopes;  // of the pair of an owner, times its gradient

  explicit BestPairs(const PairStatsBackwardArgs& a)
      : args(a), owners(a.sides * a.rows.rows), givers(a.partner, owners, a.rows.rows, -1), slopes(owners * sizeof(Slope)) {}

  void form_slopes() {
    for_blocks(owners, 64, [&](int64_t begin, int64_t end, int) {
      for (int64_t o = begin; o < end; ++o) {
        Slope& s = slopes.at<Slope>()[o];
        s = {0, 0, 1};
        const int64_t i = o % args.rows.rows, j = args.partner[o];
        const double g = args.g_row_max[o];
        if (j < 0 || g == 0) continue;
        if (args.kernel == PairKernel::angle) {
          s = angle_slope(unit_pair(args.rows, i, j));
          s.by_distance *= g;
          continue;
        }
        const double spread = args.variances ? args.variances[i] + args.variances[j] : 0;
        const Slope whole = slope_of(args, square_distance(args.rows, i, args.rows, j), spread);
        s = {g * whole.by_distance, g * whole.by_variance, 1};
      }
    });
  }

  // f(j, owner) for every such pair (i, j) that row i is part of, in a fixed order.
  template <class F>
  void visit(int64_t i, F&& f) const {
    for (int64_t o = i; o < owners; o += args.rows.rows)
      if (args.partner[o] >= 0) f(args.partner[o], o);
    for (int64_t p = givers.starts()[i]; p < givers.starts()[i + 1]; ++p)
      f(givers.order()[p] % args.rows.rows, givers.order()[p]);
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
    alignas(64) LaneInt<T> label[L];
    double sum[L], by_variance[L];
  };
  const PairStatsBackwardArgs& args;
  const BestPairs& best;
  const T *norms, *variances;
  const LaneInt<T>* labels;  // with two sides

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
      s.label[i] = labels ? labels[r] : 0;
      s.sum[i] = s.by_variance[i] = 0;
    }
  }

  // Squared distances to slopes times share; `weight` becomes the gradient by a variance.
  NCOPS_INLINE Vec<T> slope(Vec<T> d2, Vec<T> spread, Vec<T> share, Vec<T>& weight) const {
    const T power = T(args.power);
    Vec<T> f;
    switch (args.kernel) {
      case PairKernel::angle: f = (2 * share) / sqrt_of<T>(d2 * (4 - d2)); break;
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

  static NCOPS_INLINE Vec<T> gaussian(Vec<T> x) {  // subnormal values count as zero here
    if (any<T>(~(IntVec<T>)(x <= 0))) return exp_of<T>(x);
    return exp_nonpositive<T>(x);
  }

  // The squared distance of two rows, of unit rows and the nearer of one and the other's opposite for angles.
  double square(int64_t i, int64_t j) const {
    return args.kernel == PairKernel::angle ? unit_pair(args.rows, i, j).chord() : square_distance(args.rows, i, args.rows, j);
  }

  void tile(State& s, T* tile, int64_t first, int64_t count) {
    const Vec<T> same = splat<T>(T(args.share[0])), different = splat<T>(T(args.share[1]));
    const IntVec<T> angles = IntVec<T>{} - LaneInt<T>(args.kernel == PairKernel::angle);
    for (int lane = 0; lane < L && lane < s.count; lane += W) {
      const Vec<T> norm = load(s.norm + lane), variance = load(s.variance + lane);
      const IntVec<T> label = load_int<T>(s.label + lane);
      const LaneInt<T> real = LaneInt<T>(std::min<int64_t>(W, s.count - lane));
      IntVec<T> lanes;
      for (int i = 0; i < W; ++i) lanes[i] = LaneInt<T>(i);
      Vec<T> sum{}, by_variance{};
      for (int64_t j = 0; j < count; ++j) {
        const int64_t w = first + j, own = w - s.row - lane;  // the lane that is this row itself
        T* p = tile + j * L + lane;
        const Vec<T> size = norm + norms[w], spread = variance + (variances ? variances[w] : T(0));
        const Vec<T> product = load(p), share = labels ? Vec<T>(label == labels[w] ? same : different) : same;
        const IntVec<T> opposite = angles & (IntVec<T>)(product < 0);
        Vec<T> d2 = size - 2 * (opposite ? -product : product), weight{};
        IntVec<T> wanted = lanes < real;
        if (own >= 0 && own < W) wanted &= lanes != LaneInt<T>(own);
        const IntVec<T> close = (d2 < size * T(kClose)) & wanted;
        const bool some = any<T>(close);
        if (some)
          for (int i = 0; i < W; ++i)
            if (close[i]) d2[i] = T(square(s.row + lane + i, w));
        Vec<T> f = slope(d2, spread, share, weight);
        const IntVec<T> counts = wanted & (share != 0);
        f = counts ? f : Vec<T>{};
        if (some) {
          for (int i = 0; i < W; ++i)
            if (close[i] && f[i] != 0) add_close(s, lane + i, w, f[i], opposite[i] ? -1 : 1);
          f = close ? Vec<T>{} : f;
        }
        store(p, f);
        sum += f;
        by_variance += counts ? weight : Vec<T>{};
      }
      for (int i = 0; i < W; ++i) s.sum[lane + i] += double(sum[i]), s.by_variance[lane + i] += double(by_variance[i]);
    }
    for (int lane = int(round_up(s.count, W)); lane < L; lane += W)
      for (int64_t j = 0; j < count; ++j) store(tile + j * L + lane, Vec<T>{});
  }

  void add_close(State& s, int lane, int64_t j, T f, double sign) {
    const int64_t dim = args.rows.dim;
    if (!s.any_close) std::memset(s.close, 0, L * dim * sizeof(T));
    s.any_close = true;
    add_difference(s.row + lane, j, 0, dim, f, sign, s.close + lane * dim);
  }

  // out += f (sign row i - row j), columns [k, k + n)
  template <class Out>
  void add_difference(int64_t i, int64_t j, int64_t k, int64_t n, double f, double sign, Out* out) const {
    const Rows& x = args.rows;
    double u[kLoadBlock], v[kLoadBlock];
    const double a = x.scale ? sign * x.scale[x.stored(i)] : 1, ratio = x.scale ? x.scale[x.stored(j)] / a : 1;
    f *= a;
    for_columns(n, [&](int64_t c, int64_t m) {
      load_raw<double>(x, x.stored(i), k + c, m, u);
      load_raw<double>(x, x.stored(j), k + c, m, v);
      for (int64_t e = 0; e < m; ++e) out[c + e] = Out(double(out[c + e]) + f * std::fma(-ratio, v[e], u[e]));
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

  // Columns [k, k + n). Through the mean: sum of f times the row, less the product, and what the close pairs give.
  void gather(const State& s, int lane, const T* panel, const T* out, int64_t k, int64_t n, double* total) const {
    const int64_t row = s.row + lane;
    for (int64_t c = 0; c < n; ++c) {
      const int64_t place = (k + c) * L + lane;
      total[c] = panel ? s.sum[lane] * double(panel[place]) - double(out[place]) : 0.0;
      if (s.any_close) total[c] += double(s.close[lane * args.rows.dim + k + c]);
    }
    best.visit(row, [&](int64_t j, int64_t owner) {
      const Slope& slope = best.slopes.at<Slope>()[owner];
      if (slope.by_distance != 0) add_difference(row, j, k, n, slope.by_distance, slope.sign, total);
    });
  }

  void finish(const State& s, int lane, const T* panel, const T* out, int64_t at) {
    const Rows& x = args.rows;
    double total[kLoadBlock], unit[kLoadBlock], along = 0, scale = 1;
    if (x.scale) {  // of a unit row: without its part along the row, over the norm
      scale = x.scale[x.stored(s.row + lane)];
      for_columns(x.dim, [&](int64_t k, int64_t n) {
        gather(s, lane, panel, out, k, n, total);
        load_row<double>(x, s.row + lane, k, n, unit);
        for (int64_t c = 0; c < n; ++c) along += total[c] * unit[c];
      });
    }
    for_columns(x.dim, [&](int64_t k, int64_t n) {
      T result[kLoadBlock];
      gather(s, lane, panel, out, k, n, total);
      if (x.scale) load_row<double>(x, s.row + lane, k, n, unit);
      for (int64_t c = 0; c < n; ++c) result[c] = T(x.scale ? (total[c] - along * unit[c]) * scale : total[c]);
      store_row<T>(result, n, x.dtype, args.g_rows, at + k);
    });
  }
};

template <class T>
void through_distances(const PairStatsBackwardArgs& args) {
  constexpr int64_t L = SlopeRows<T>::L;
  const Rows& x = args.rows;
  const int64_t k = x.rows;
  BestPairs best(args);
  best.form_slopes();
  Scratch norms(k * sizeof(T)), variances(k * sizeof(T)), labels(k * sizeof(LaneInt<T>));
  squared_norms<T>(x, norms.at<T>(), nullptr);
  for (int64_t r = 0; x.scale && r < k; ++r) norms.at<T>()[r] = 1;
  for (int64_t r = 0; args.labels && r < k; ++r) labels.at<LaneInt<T>>()[r] = LaneInt<T>(args.labels[r]);
  for (int64_t r = 0; args.variances && r < k; ++r) variances.at<T>()[r] = T(args.variances[r]);
  SlopeRows<T> epilogue{args, best, norms.at<T>(), args.variances ? variances.at<T>() : nullptr,
                        args.labels ? labels.at<LaneInt<T>>() : nullptr};
  bool finite = true;  // a NaN or infinite row makes the origin so, and with it every gradient through the mean
  for (int64_t c = 0; x.offset && c < x.dim; ++c) finite &= std::isfinite(x.offset[c]);
  if (args.share[0] != 0 || args.share[1] != 0 || !finite) {
    const TwoProductsPlan plan = plan_two_products<T>(k, x.dim, std::numeric_limits<int64_t>::max());
    const RowsOnce<T> once(x);
    run_two_products<T>(once.rows, once.rows, plan, epilogue, true, nullptr);
    return;
  }
  for_blocks(k, L, [&](int64_t begin, int64_t end, int) {  // through row_max alone
    typename SlopeRows<T>::State state;
    epilogue.begin(state, begin, end - begin, nullptr);
    epilogue.end(state, nullptr, nullptr);
  });
}

constexpr int64_t kSumBytes = int64_t(32) << 20;  // of the sums of classes at a time

// dot: sums of the other rows of the class, and of all other classes. cosine: the same of the unit rows, less the part along the row,
// over its norm. As many classes at a time as their sums have room, whose rows are those of `members`.
template <class T>
struct ProductGradient {
  const PairStatsBackwardArgs& args;
  const bool cosine;
  const BestPairs best;
  const SortedRows members;
  Scratch scales, all;  // 1 / norm of each row, or 1; the sum of all rows, with labels

  ProductGradient(const PairStatsBackwardArgs& a, const int64_t* labels, int64_t classes)
      : args(a), cosine(a.kernel == PairKernel::cosine), best(a), members(labels, a.rows.rows, classes, -1),
        scales(a.rows.rows * sizeof(double)), all(a.rows.dim * sizeof(double)) {
    for_blocks(args.rows.rows, 64, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        const double total = cosine ? squared_norm<double>(args.rows, r) : 1;
        scale()[r] = total == 0 ? std::numeric_limits<double>::quiet_NaN() : 1 / std::sqrt(total);
      }
    });
  }
  double* scale() const { return scales.at<double>(); }

  // sums[class - first][dim] of the rows of classes [first, last), and their sum added to `all`.
  void add_up(int64_t first, int64_t last, double* sums) const {
    const Rows& x = args.rows;
    for_blocks(x.dim, kLoadBlock, [&](int64_t c, int64_t end, int) {
      const int64_t n = end - c;
      double block[kLoadBlock];
      for (int64_t label = first; label < last; ++label) {
        double total[kLoadBlock] = {};
        for (int64_t p = members.starts()[label]; p < members.starts()[label + 1]; ++p) {
          const int64_t r = members.order()[p];
          load_raw<double>(x, x.stored(r), c, n, block);
          for (int64_t i = 0; i < n; ++i) total[i] += scale()[r] * block[i];
        }
        std::memcpy(sums + (label - first) * x.dim + c, total, n * sizeof(double));
      }
    });
  }

  void row(int64_t r, const double* sum, double* total) const {
    const Rows& x = args.rows;
    const double own = args.labels ? args.share[0] - args.share[1] : args.share[0], other = args.share[1];
    double along = 0, block[kLoadBlock];
    for_columns(x.dim, [&](int64_t c, int64_t n) {
      load_raw<double>(x, x.stored(r), c, n, block);
      for (int64_t i = 0; i < n; ++i) total[c + i] = own * (sum[c + i] - scale()[r] * block[i]);
      for (int64_t i = 0; args.labels && i < n; ++i) total[c + i] += other * (all.at<double>()[c + i] - scale()[r] * block[i]);
      best.visit(r, [&](int64_t j, int64_t owner) {
        if (args.g_row_max[owner] == 0) return;
        const double f = args.g_row_max[owner] * scale()[j];
        double partner[kLoadBlock];
        load_raw<double>(x, x.stored(j), c, n, partner);
        for (int64_t i = 0; i < n; ++i) total[c + i] += f * partner[i];
      });
      for (int64_t i = 0; i < n; ++i) along += total[c + i] * (scale()[r] * block[i]);
    });
    for_columns(x.dim, [&](int64_t c, int64_t n) {
      T result[kLoadBlock];
      load_raw<double>(x, x.stored(r), c, n, block);
      for (int64_t i = 0; i < n; ++i)
        result[i] = T(cosine ? (total[c + i] - along * (scale()[r] * block[i])) * scale()[r] : total[c + i]);
      store_row<T>(result, n, x.dtype, args.g_rows, x.stored(r) * x.dim + c);
    });
  }
};

template <class T>
void through_products(const PairStatsBackwardArgs& args) {
  const Rows& x = args.rows;
  const Scratch one(args.labels ? 0 : x.rows * sizeof(int64_t));
  if (!args.labels) std::memset(one.at<int64_t>(), 0, x.rows * sizeof(int64_t));
  const int64_t classes = args.labels ? args.classes : 1, row_bytes = x.dim * sizeof(double);
  const ProductGradient<T> gradient(args, args.labels ? args.labels : one.at<int64_t>(), classes);
  const int64_t some = std::min(classes, std::max<int64_t>(1, kSumBytes / std::max<int64_t>(1, row_bytes)));
  Scratch sums(some * row_bytes), totals(workers() * round_up(row_bytes, 64));
  if (args.labels) {
    double* all = gradient.all.template at<double>();
    std::fill(all, all + x.dim, 0.0);
    for (int64_t first = 0; first < classes; first += some) {
      const int64_t last = std::min(classes, first + some);
      gradient.add_up(first, last, sums.at<double>());
      for (int64_t c = 0; c < last - first; ++c)
        for (int64_t d = 0; d < x.dim; ++d) all[d] += sums.at<double>()[c * x.dim + d];
    }
  }
  for (int64_t first = 0; first < classes; first += some) {
    const int64_t last = std::min(classes, first + some), begin = gradient.members.starts()[first];
    if (first > 0 || last < classes || !args.labels) gradient.add_up(first, last, sums.at<double>());
    for_blocks(gradient.members.starts()[last] - begin, 8, [&](int64_t from, int64_t to, int worker) {
      for (int64_t p = begin + from; p < begin + to; ++p) {
        const int64_t label = gradient.members.class_at(p);
        gradient.row(gradient.members.order()[p], sums.at<double>((label - first) * row_bytes),
                     totals.at<double>(worker * round_up(row_bytes, 64)));
      }
    });
  }
}

template <class T>
void run(const PairStatsBackwardArgs& args) {
  if (is_distance(args.kernel) || args.kernel == PairKernel::angle) through_distances<T>(args);
  else through_products<T>(args);
  clear_other_rows<T>(args.rows, args.total, args.g_rows);
}

}  // namespace

void pair_stats_backward(const PairStatsBackwardArgs& args) {
  with_compute(args.rows.dtype, [&](auto t) { run<decltype(t)>(args); });
}

}  // namespace ncops::NCOPS_ISA
