// Divergences of the distributions of two tiles of logits, lane by lane: each lane is a row. What the formulas are stands in
// ncops/reference/logit_divergence.py.
//
// A row's classes are passed over three times. The first finds both maxima and the sums of exponentials, alone and with the
// difference d of the logits; the second KL both ways; the third what needs the log of the ratio of the probabilities, which is d
// less a number that is known by then. Inside a tile sums are in T, between tiles in double.
#pragma once

#include "kernels.h"
#include "softcap.h"

namespace ncops::NCOPS_ISA {

template <class T>
constexpr T kNear = T(0.5);  // series below it; above, nothing cancels by more than a factor of ten

// 1 / 2!, 1 / 3!, ...
template <class T>
constexpr T kInverseFactorial[] = {T(1 / 2.),         T(1 / 6.),          T(1 / 24.),         T(1 / 120.),         T(1 / 720.),
                                   T(1 / 5040.),      T(1 / 40320.),      T(1 / 362880.),     T(1 / 3628800.),     T(1 / 39916800.),
                                   T(1 / 479001600.), T(1 / 6227020800.), T(1 / 87178291200.), T(1 / 1307674368000.)};

template <class T>
constexpr int kRestTerms = sizeof(T) == 4 ? 8 : 14;

// e^t - 1 - t for |t| < kNear.
template <class T>
NCOPS_INLINE Vec<T> exp_rest(Vec<T> t) {
  constexpr int terms = kRestTerms<T>;
  Vec<T> p = splat<T>(kInverseFactorial<T>[terms - 1]);
#pragma GCC unroll 16
  for (int k = terms - 2; k >= 0; --k) p = fma(p, t, splat<T>(kInverseFactorial<T>[k]));
  return p * (t * t);
}
// The same of t and of -t.
template <class T>
NCOPS_INLINE void exp_rests(Vec<T> t, Vec<T>& plus, Vec<T>& minus) {
  constexpr int terms = kRestTerms<T>;
  const Vec<T> square = t * t;
  Vec<T> even = splat<T>(kInverseFactorial<T>[terms - 2]), odd = splat<T>(kInverseFactorial<T>[terms - 1]);
#pragma GCC unroll 16
  for (int k = terms - 4; k >= 0; k -= 2) {
    even = fma(even, square, splat<T>(kInverseFactorial<T>[k]));
    odd = fma(odd, square, splat<T>(kInverseFactorial<T>[k + 1]));
  }
  even *= square, odd *= square * t;
  plus = even + odd, minus = even - odd;
}
// w - log(1 + w) for what |t| < kNear comes to.
template <class T>
NCOPS_INLINE Vec<T> log_rest(Vec<T> w) {
  constexpr int terms = sizeof(T) == 4 ? 6 : 13;
  const Vec<T> u = w / (2 + w), square = u * u;
  Vec<T> p = splat<T>(T(2.0 / (2 * terms + 1)));
#pragma GCC unroll 16
  for (int k = terms - 1; k >= 1; --k) p = fma(p, square, splat<T>(T(2.0 / (2 * k + 1))));
  return u * (w - square * p);
}
template <class T>
NCOPS_INLINE Vec<T> size_of(Vec<T> v) {
  return v < 0 ? -v : v;
}
// m / p - 1 and m / q - 1 of m = beta p + (1 - beta) q for t = log(q / p) that is small, and what they are above their logarithms.
template <class T>
struct NearMixture {
  Vec<T> over_p, over_q, rest_p, rest_q;
  NCOPS_INLINE NearMixture(Vec<T> t, T beta) {
    Vec<T> plus, minus;
    exp_rests<T>(t, plus, minus);
    over_p = (1 - beta) * (t + plus), over_q = beta * (minus - t);
    rest_p = log_rest<T>(over_p);
    // log(m / p) = log(m / q) + t, which cancels where one of the two weighs little.
    rest_q = beta == T(0.5) ? rest_p + T(0.5) * (minus - plus) : log_rest<T>(over_q);
  }
};

// Both logits of a class and their difference y - z, from what tiles hold: products of z, and those of y or of y - z (`one` head).
template <class T>
struct Both {
  Vec<T> z, y, d;
  IntVec<T> masked, other_masked;
};
template <class T>
struct PairReader {
  T scale;
  bool one;
  Softcap<T> cap;
  double softcap;
  const T *bias, *other_bias;  // by class, or null

  NCOPS_INLINE Both<T> operator()(const T* first, const T* second, int64_t c) const {
    constexpr T inf = std::numeric_limits<T>::infinity();
    const Vec<T> b = splat<T>(bias ? bias[c] : T(0)), ob = one ? b : splat<T>(other_bias ? other_bias[c] : T(0));
    Both<T> v;
    v.z = fma(load(first), splat<T>(scale), b);
    if (one) {
      v.d = load(second) * scale;
      v.y = v.z + v.d;
    } else {
      v.y = fma(load(second), splat<T>(scale), ob);
      v.d = fma(load(second) - load(first), splat<T>(scale), ob - b);
    }
    if (cap) capped(v);
    v.masked = v.z == -inf, v.other_masked = v.y == -inf;
    v.d = v.masked & v.other_masked ? Vec<T>{} : v.d;
    return v;
  }
  // tanh b - tanh a = tanh(b - a) (1 - tanh a tanh b)
  NCOPS_INLINE void capped(Both<T>& v) const {
    const T inverse = T(1 / softcap);
    const Vec<T> z = cap(v.z), y = cap(v.y);
    v.d = v.d - v.d == 0 ? cap(v.d) * (1 - (z * inverse) * (y * inverse)) : v.d;
    v.z = z, v.y = y;
  }
  // dz / dz' and dy / dy' of class c.
  NCOPS_INLINE void slopes(const T* first, const T* second, int64_t c, Vec<T>& slope, Vec<T>& other_slope) const {
    const Vec<T> b = splat<T>(bias ? bias[c] : T(0)), ob = one ? b : splat<T>(other_bias ? other_bias[c] : T(0));
    const Vec<T> z = fma(load(first), splat<T>(scale), b);
    slope = cap.slope(z);
    other_slope = cap.slope(one ? z + load(second) * scale : fma(load(second), splat<T>(scale), ob));
  }
};

// What the first pass knows of one row.
struct DivergenceShare {
  double max, other_max, sum, other_sum, weighted, other_weighted;  // sums of e^(z - max), and of that times z - max
  double d, other_d;                                                // ... times d
  int64_t argmax, other_argmax;
  bool poisoned, lost, other_lost;  // lost: a class that only q masks, other_lost: only p

  static void lower(double& sum, double& weighted, double& d, double by) {
    const double factor = std::exp(by);
    weighted = factor == 0 ? 0 : factor * (weighted + by * sum);
    sum *= factor, d *= factor;
  }
  void merge(DivergenceShare s) {
    join(max, argmax, sum, weighted, d, s.max, s.argmax, s.sum, s.weighted, s.d);
    join(other_max, other_argmax, other_sum, other_weighted, other_d, s.other_max, s.other_argmax, s.other_sum, s.other_weighted,
         s.other_d);
    poisoned |= s.poisoned, lost |= s.lost, other_lost |= s.other_lost;
  }

 private:
  static void join(double& max, int64_t& at, double& sum, double& weighted, double& d, double max2, int64_t at2, double sum2,
                   double weighted2, double d2) {
    if (max < max2) {
      lower(sum, weighted, d, max - max2);
      max = max2, at = at2;
    } else if (max2 < max) {
      lower(sum2, weighted2, d2, max2 - max);
    }
    sum += sum2, weighted += weighted2, d += d2;
  }
};

template <class T, int L>
struct DivergenceState {
  alignas(64) T max[2][L];
  alignas(64) LaneInt<T> argmax[2][L], poisoned[L], lost[2][L];
  double sum[2][L], weighted[2][L], d[2][L];

  void begin() {
    for (int o = 0; o < 2; ++o)
      for (int i = 0; i < L; ++i) {
        max[o][i] = -std::numeric_limits<T>::infinity();
        argmax[o][i] = poisoned[i] = lost[o][i] = 0;
        sum[o][i] = weighted[o][i] = d[o][i] = 0;
      }
  }

  void add(const PairReader<T>& read, const T* z, const T* y, int64_t first, int64_t count) {
    for (int lane = 0; lane < L; lane += kWidth<T>) add_lanes(read, z + lane, y + lane, lane, first, count);
  }

  DivergenceShare row(int i) const {
    return {max[0][i], max[1][i], sum[0][i], sum[1][i], weighted[0][i], weighted[1][i], d[0][i], d[1][i], argmax[0][i], argmax[1][i],
            poisoned[i] != 0, lost[0][i] != 0, lost[1][i] != 0};
  }

 private:
  void add_lanes(const PairReader<T>& read, const T* first_tile, const T* second_tile, int lane, int64_t first, int64_t count) {
    constexpr T inf = std::numeric_limits<T>::infinity();
    Vec<T> top[2] = {load(max[0] + lane), load(max[1] + lane)};
    IntVec<T> at[2] = {load_int<T>(argmax[0] + lane), load_int<T>(argmax[1] + lane)};
    IntVec<T> bad = load_int<T>(poisoned + lane), gone[2] = {load_int<T>(lost[0] + lane), load_int<T>(lost[1] + lane)};
    for (int64_t j = 0; j < count; ++j) {
      const Both<T> v = read(first_tile + j * L, second_tile + j * L, first + j);
      const IntVec<T> c = IntVec<T>{} + LaneInt<T>(first + j);
      at[0] = v.z > top[0] ? c : at[0], top[0] = max_of(v.z, top[0]);
      at[1] = v.y > top[1] ? c : at[1], top[1] = max_of(v.y, top[1]);
      bad |= ~((IntVec<T>)(v.z < inf) & (IntVec<T>)(v.y < inf));
      gone[0] |= v.other_masked & ~v.masked;
      gone[1] |= v.masked & ~v.other_masked;
    }
    store_int<T>(poisoned + lane, bad);
    Vec<T> sums[2] = {}, weights[2] = {}, ds[2] = {}, peak[2];
    for (int o = 0; o < 2; ++o) {
      raise(o, lane, top[o]);
      store_int<T>(argmax[o] + lane, at[o]);
      store_int<T>(lost[o] + lane, gone[o]);
      peak[o] = top[o] == -inf ? Vec<T>{} : top[o];
    }
    const Vec<T> low = splat<T>(ExpConstants<T>::lowest);
    for (int64_t j = 0; j < count; ++j) {
      const Both<T> v = read(first_tile + j * L, second_tile + j * L, first + j);
      const Vec<T> d = v.masked | v.other_masked ? Vec<T>{} : v.d;
      const Vec<T> below[2] = {v.z - peak[0], v.y - peak[1]};
#pragma GCC unroll 2
      for (int o = 0; o < 2; ++o) {
        const Vec<T> e = exp_nonpositive<T>(below[o]);
        sums[o] += e;
        weights[o] = fma(max_of(below[o], low), e, weights[o]);
        ds[o] = fma(d, e, ds[o]);
      }
    }
    for (int o = 0; o < 2; ++o)
      for (int i = 0; i < kWidth<T>; ++i) {
        sum[o][lane + i] += double(sums[o][i]);
        weighted[o][lane + i] += double(weights[o][i]);
        d[o][lane + i] += double(ds[o][i]);
      }
  }

  void raise(int o, int lane, Vec<T> top) {
    for (int i = 0; i < kWidth<T>; ++i) {
      const T old = max[o][lane + i];
      if (old < top[i]) DivergenceShare::lower(sum[o][lane + i], weighted[o][lane + i], d[o][lane + i], double(old) - double(top[i]));
      max[o][lane + i] = top[i];
    }
  }
};

// What a row's later passes read, and what it ends as.
struct DivergenceRow {
  DivergenceShare share;
  double lse, other_lse, mean, other_mean, kl, reverse, shift, mixture, other_mixture, below, other_below;

  void first() {
    lse = share.max + std::log(share.sum), other_lse = share.other_max + std::log(share.other_sum);
    mean = share.d / share.sum, other_mean = share.other_d / share.other_sum;
  }
  // What all classes end as, of which these are some; `top`, `other_top`: the first two as what is computed in.
  void given(double all, double other_all, double by, double top, double other_top) {
    lse = all, other_lse = other_all, shift = by;
    share.max = top, share.other_max = other_top;
    mean = other_mean = 0;
  }
  double entropy() const { return std::log(share.sum) - share.weighted / share.sum; }
  double other_entropy() const { return std::log(share.other_sum) - share.other_weighted / share.other_sum; }
  void second(double rest, double other_rest) {
    constexpr double inf = std::numeric_limits<double>::infinity();
    const double rise = other_lse - lse, direct = rise - mean, other_direct = other_mean - rise;
    kl = share.lost ? inf : direct > 0.5 ? direct : std::log1p(rest);
    reverse = share.other_lost ? inf : other_direct > 0.5 ? other_direct : std::log1p(other_rest);
    shift = kl < inf ? mean + kl : reverse < inf ? other_mean - reverse : rise;
  }
};

// The numbers of L rows that the vectors of later passes read.
template <class T, int L>
struct DivergenceLanes {
  alignas(64) T max[2][L], gap[2][L], mean[2][L], lift[2][L], shift[L];  // lift: p e^t / q and q e^t / p of the second pass

  void begin(int i, const DivergenceRow& r) {
    max[0][i] = T(r.share.max), max[1][i] = T(r.share.other_max);
    gap[0][i] = T(r.lse - r.share.max), gap[1][i] = T(r.other_lse - r.share.other_max);
    mean[0][i] = T(r.mean), mean[1][i] = T(r.other_mean);
    const double rise = r.other_lse - r.lse;  // where more than 1.65 = e^0.5 is lifted, nobody asks (DivergenceRow::second)
    lift[0][i] = T(std::exp(std::min(1.0, rise - r.mean))), lift[1][i] = T(std::exp(std::min(1.0, r.other_mean - rise)));
  }

  // Adds to rest[o][L] the terms of KL both ways.
  void add_rests(const PairReader<T>& read, const T* first_tile, const T* second_tile, int64_t first, int64_t count,
                 double (*rest)[L]) const {
    for (int lane = 0; lane < L; lane += kWidth<T>) {
      const Vec<T> top[2] = {load(max[0] + lane), load(max[1] + lane)}, low[2] = {load(gap[0] + lane), load(gap[1] + lane)};
      const Vec<T> m = load(mean[0] + lane), om = load(mean[1] + lane), up[2] = {load(lift[0] + lane), load(lift[1] + lane)};
      Vec<T> sums[2] = {};
      for (int64_t j = 0; j < count; ++j) {
        const Both<T> v = read(first_tile + j * L + lane, second_tile + j * L + lane, first + j);
        const Vec<T> p = exp_nonpositive<T>(v.z - top[0] - low[0]), q = exp_nonpositive<T>(v.y - top[1] - low[1]);
        sums[0] += term(p, q * up[0], v.d - m, v.masked, v.other_masked);
        sums[1] += term(q, p * up[1], om - v.d, v.other_masked, v.masked);
      }
      for (int o = 0; o < 2; ++o)
        for (int i = 0; i < kWidth<T>; ++i) rest[o][lane + i] += double(sums[o][i]);
    }
  }

  // Adds to sums[0..3][L]: KL of the mixture from p and from q, p where p < q, q where q < p, half of each where they are equal.
  void add_ratios(const PairReader<T>& read, const T* first_tile, const T* second_tile, int64_t first, int64_t count, T beta,
                  double (*sums)[L]) const {
    for (int lane = 0; lane < L; lane += kWidth<T>) {
      const Vec<T> top[2] = {load(max[0] + lane), load(max[1] + lane)}, low[2] = {load(gap[0] + lane), load(gap[1] + lane)};
      const Vec<T> by = load(shift + lane);
      Vec<T> found[4] = {};
      for (int64_t j = 0; j < count; ++j) {
        const Both<T> v = read(first_tile + j * L + lane, second_tile + j * L + lane, first + j);
        const Vec<T> p = exp_nonpositive<T>(v.z - top[0] - low[0]), q = exp_nonpositive<T>(v.y - top[1] - low[1]);
        const Vec<T> s = v.masked & v.other_masked ? Vec<T>{} : v.d - by;
        const IntVec<T> near = size_of<T>(s) < kNear<T>;
        const Vec<T> none{};
        if (any<T>(near)) {
          const NearMixture<T> mixture(near ? s : none, beta);
          found[0] += near ? p * mixture.rest_p : none;
          found[1] += near ? q * mixture.rest_q : none;
        }
        if (any<T>(~near)) {
          Vec<T> over_p, over_q;
          mixture_logs(s, beta, over_p, over_q);
          const Vec<T> far = (1 - beta) * (q - p) - (v.masked ? none : p * over_p);
          const Vec<T> other_far = beta * (p - q) - (v.other_masked ? none : q * over_q);
          found[0] += near ? none : max_of(far, none);
          found[1] += near ? none : max_of(other_far, none);
        }
        found[2] += s > 0 ? p : (s == 0 ? p * T(0.5) : none);
        found[3] += s < 0 ? q : (s == 0 ? q * T(0.5) : none);
      }
      for (int o = 0; o < 4; ++o)
        for (int i = 0; i < kWidth<T>; ++i) sums[o][lane + i] += double(found[o][i]);
    }
  }

  // log(m / p) and log(m / q) of m = beta p + (1 - beta) q, for s = log(q / p) that is not small.
  static NCOPS_INLINE void mixture_logs(Vec<T> s, T beta, Vec<T>& over_p, Vec<T>& over_q) {
    const Vec<T> power = exp_nonpositive<T>(-size_of<T>(s));
    const Vec<T> low = log_of<T>(beta + (1 - beta) * power);
    const Vec<T> high = beta == T(0.5) ? low : log_of<T>((1 - beta) + beta * power);
    over_p = s <= 0 ? low : s + high;
    over_q = s <= 0 ? low - s : high;
  }

 private:
  // p (e^t - 1 - t), with `whole` for p e^t where it does not cancel.
  static NCOPS_INLINE Vec<T> term(Vec<T> p, Vec<T> whole, Vec<T> t, IntVec<T> masked, IntVec<T> other_masked) {
    const Vec<T> far = masked ? whole : whole - p * (1 + t);
    const Vec<T> found = size_of<T>(t) < kNear<T> ? p * exp_rest<T>(t) : max_of(far, Vec<T>{});
    return other_masked ? Vec<T>{} : found;
  }
};

// Row `row` of the planes, from sums [4] of DivergenceLanes::add_ratios.
template <class T>
inline void write_divergence(const DivergenceArgs& args, int64_t rows, int64_t row, const DivergenceRow& r, const double* sums) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  double value[divergence::kColumns];
  value[divergence::kKl] = r.kl, value[divergence::kReverseKl] = r.reverse;
  value[divergence::kJs] = args.beta * sums[0] + (1 - args.beta) * sums[1];
  value[divergence::kOverlap] = sums[2] + sums[3];
  value[divergence::kEntropy] = r.entropy(), value[divergence::kOtherEntropy] = r.other_entropy();
  value[divergence::kLse] = r.lse, value[divergence::kOtherLse] = r.other_lse, value[divergence::kShift] = r.shift;
  value[divergence::kMixtureKl] = sums[0], value[divergence::kOtherMixtureKl] = sums[1], value[divergence::kBelow] = sums[2];
  const bool poisoned = r.share.poisoned || !(r.share.max > -inf) || !(r.share.other_max > -inf);
  for (int c = 0; c < divergence::kColumns; ++c)
    static_cast<T*>(args.out)[c * rows + row] = poisoned ? std::numeric_limits<T>::quiet_NaN() : T(value[c]);
  args.agree[row] = !poisoned && r.share.argmax == r.share.other_argmax;
}

// Row `row` of the planes of a share. The log-sum-exp of a side that has nothing but masked classes is -inf.
inline void write_share(const LinearDivergenceArgs& args, int64_t row, const DivergenceRow& r) {
  double value[divergence::kShareFloats];
  value[divergence::kShareKl] = r.kl, value[divergence::kShareReverseKl] = r.reverse, value[divergence::kShareShift] = r.shift;
  value[divergence::kShareEntropy] = r.entropy(), value[divergence::kShareOtherEntropy] = r.other_entropy();
  value[divergence::kShareLse] = r.lse, value[divergence::kShareOtherLse] = r.other_lse;
  value[divergence::kShareMax] = r.share.max, value[divergence::kShareOtherMax] = r.share.other_max;
  for (int c = 0; c < divergence::kShareFloats; ++c)
    args.share_floats[c * args.x.rows + row] = r.share.poisoned ? std::numeric_limits<double>::quiet_NaN() : value[c];
  args.share_indices[divergence::kShareArgmax * args.x.rows + row] = r.share.argmax;
  args.share_indices[divergence::kShareOtherArgmax * args.x.rows + row] = r.share.other_argmax;
}

// Row `row` of the ratios, from sums [4] of DivergenceLanes::add_ratios.
inline void write_ratios(const LinearDivergenceArgs& args, int64_t row, const double* sums) {
  const auto at = [&](int c) -> double& { return args.ratios[c * args.x.rows + row]; };
  at(divergence::kSumMixtureKl) = sums[0], at(divergence::kSumOtherMixtureKl) = sums[1];
  at(divergence::kSumOverlap) = sums[2] + sums[3], at(divergence::kSumBelow) = sums[2];
}

}  // namespace ncops::NCOPS_ISA
