// The gradient by one row's logits, from the gradients by its columns.
//
// With p = softmax(z): dz_j = p_j (total - g_H ((z_j - max) + (H - gap))) + g_mean / V + 2 g_var (z_j - mean) / V, and three
// columns apart. In the argmax column p - 1 is expm1(-gap): at margin 30 the float32 subtraction gives 0 where the truth is
// -1e-13. The terms that multiply 1 are collected by hand, so that those which cancel never meet in floating point.
#pragma once

#include "kernels.h"
#include "softcap.h"

namespace ncops::NCOPS_ISA {

template <class T>
struct RowGradient {
  T flat, tilt, bend;                 // of e^{z - max}, of (z - max) e^{z - max}, and of e^{2 (z - max)}
  T constant, slope;                  // of 1, and of z - mean
  T at_argmax, at_target, at_second;  // replaces the softmax part; added; added
  T max, mean;
  int64_t argmax, target, second;     // -1: none
  bool active, poisoned;

  RowGradient() = default;

  RowGradient(const LogitBackward& args, int64_t row, int64_t classes) {
    const auto get = [&](const void* planes, FloatColumn c) { return double(static_cast<const T*>(planes)[c * args.rows + row]); };
    const auto grad = [&](FloatColumn c) { return get(args.grad, c); };
    const auto value = [&](FloatColumn c) { return get(args.floats, c); };
    const double g_lse = grad(kLse), g_gap = grad(kGap), g_max = grad(kMax), g_second = grad(kSecond);
    const double g_entropy = grad(kEntropy), g_mean = grad(kMean), g_var = grad(kVar), g_squared = grad(kSumSquaredProb);
    target = -1;
    double g_target = 0, g_nll = 0;
    if (args.target && is_class(args.target[row], classes, args.ignore_index)) {
      target = args.target[row];
      g_target = grad(kTargetLogit);
      g_nll = grad(kNll);
    }
    argmax = args.indices[kArgmax * args.rows + row];
    second = args.indices[kSecondIndex * args.rows + row];
    active = g_lse != 0 || g_gap != 0 || g_max != 0 || g_second != 0 || g_entropy != 0 || g_mean != 0 || g_var != 0 ||
             g_target != 0 || g_nll != 0 || g_squared != 0;
    poisoned = argmax < 0;
    const double gap = value(kGap), rest = value(kEntropy) - gap, share = std::exp(-gap), lost = std::expm1(-gap);
    const double total = g_lse + g_gap + g_nll;
    max = T(value(kMax));
    mean = T(value(kMean));
    tilt = T(-times(g_entropy, share));
    flat = T(times(total, share) - times(g_entropy, share * rest) - times(2 * g_squared, share * value(kSumSquaredProb)));
    bend = T(times(2 * g_squared, share * share));
    constant = T(g_mean / double(classes));
    slope = T(2 * g_var / double(classes));
    const bool hit = target == argmax;
    double peak = hit ? times(total, lost) + (g_lse + g_target + g_max)
                      : times(g_gap, lost) + times(g_lse + g_nll, share) + g_max;
    if (g_squared != 0) peak += 2 * g_squared * share * share * share * not_squared(value);
    at_argmax = T(peak - times(g_entropy, share * rest));
    at_target = hit ? T(0) : T(g_target - g_nll);
    at_second = T(g_second);
  }

  // Whether e^{z - max} is all of z that the gradient depends on, but for the columns apart.
  bool flat_only() const { return tilt == 0 && bend == 0 && slope == 0; }

 private:
  // rest - squared of logit_share.h: p_max - sum p^2 is p_max^2 of it. `squared` is sum_squared_prob / p_max^2 - 1, which near
  // collapse has no digit left; it lies between the square of the second's term and that term times `rest`.
  template <class Value>
  static double not_squared(const Value& value) {
    const double rest = std::expm1(value(kGap)), term = std::exp(value(kSecond) - value(kMax));
    const double squared = value(kSumSquaredProb) * (1 + rest) * (1 + rest) - 1;
    return rest - std::min(std::max(squared, term * term), term * rest);
  }
  static double times(double gradient, double value) { return gradient == 0 ? 0 : gradient * value; }
};

// One row's gradient as a function of the stored logit, scale and cap included.
template <class T, bool General, bool Capped>
struct Element {
  Softcap<T> cap;
  Vec<T> factor, flat, tilt, bend, constant, slope, max, mean;

  Element(const RowGradient<T>& r, T scale, Softcap<T> cap)
      : cap(cap), factor(splat<T>(scale)), flat(splat<T>(r.flat * scale)), tilt(splat<T>(r.tilt * scale)), bend(splat<T>(r.bend * scale)),
        constant(splat<T>(r.constant * scale)), slope(splat<T>(r.slope * scale)), max(splat<T>(r.max)),
        mean(splat<T>(r.slope == 0 ? T(0) : r.mean)) {}

  NCOPS_INLINE Vec<T> operator()(Vec<T> stored) const {
    const Vec<T> z = scaled(stored);
    if constexpr (Capped) return by_logit(cap(z)) * cap.slope(z);
    return by_logit(z);
  }
  // What a gradient by the logit is multiplied with to be one by the stored logit.
  NCOPS_INLINE T weight(T stored) const {
    if constexpr (Capped) return factor[0] * cap.slope(scaled(splat<T>(stored)))[0];
    return factor[0];
  }

 private:
  // Rounded before the maximum is subtracted, as in the forward: the difference is 0 at the maximum.
  NCOPS_INLINE Vec<T> scaled(Vec<T> stored) const { return fma(stored, factor, Vec<T>{}); }
  NCOPS_INLINE Vec<T> by_logit(Vec<T> z) const {
    const Vec<T> d = z - max, e = exp_nonpositive<T>(d);
    if constexpr (!General) return fma(e, flat, constant);
    const Vec<T> below = d < ExpConstants<T>::lowest ? Vec<T>{} : d;  // e is 0 there, and 0 * -inf must be 0
    const Vec<T> soft = fma(e, fma(bend, e, fma(tilt, below, flat)), constant);
    return slope == 0 ? soft : fma(slope, z - mean, soft);
  }
};

// The same for L rows, lane by lane; turns a tile of products into gradients by the logits.
template <class T, int L>
struct PanelGradient {
  alignas(64) T flat[L], tilt[L], bend[L], constant[L], slope[L], max[L], mean[L];
  alignas(64) LaneInt<T> active[L];
  RowGradient<T> rows[L];
  int64_t count;
  bool any_slope, any_bend, soft;  // soft: some gradient depends on the logits, so that they have to be formed again

  void begin(const LogitBackward& args, int64_t classes, int64_t row, int64_t n) {
    count = n;
    any_slope = any_bend = soft = false;
    for (int64_t i = 0; i < L; ++i) {
      flat[i] = tilt[i] = bend[i] = constant[i] = slope[i] = max[i] = mean[i] = 0;
      active[i] = 0;
      if (i >= n) continue;
      const RowGradient<T> r(args, row + i, classes);
      rows[i] = r;
      flat[i] = r.flat, tilt[i] = r.tilt, bend[i] = r.bend, constant[i] = r.constant, slope[i] = r.slope;
      max[i] = r.max, mean[i] = r.mean;
      active[i] = r.active ? -1 : 0;
      any_slope |= r.slope != 0, any_bend |= r.bend != 0;
      soft |= r.active && (r.poisoned || r.flat != 0 || r.tilt != 0 || r.bend != 0 || r.constant != 0 || r.slope != 0);
    }
  }

  // tile[classes][L]: products in, gradients out, for classes first, first + 1, ...
  void apply(T* tile, int64_t first, int64_t classes, T scale, const T* bias) const {
    for (int lane = 0; lane < L; lane += kWidth<T>) {
      const Vec<T> a = load(flat + lane), b = load(tilt + lane), c = load(constant + lane), peak = load(max + lane);
      const Vec<T> s = load(slope + lane), centre = load(mean + lane), q = load(bend + lane);
      const IntVec<T> on = load_int<T>(active + lane);
      for (int64_t j = 0; j < classes; ++j) {
        T* p = tile + j * L + lane;
        const Vec<T> z = fma(load(p), splat<T>(scale), splat<T>(bias ? bias[j] : T(0)));
        const Vec<T> d = z - peak, e = exp_nonpositive<T>(d);
        const Vec<T> below = d < ExpConstants<T>::lowest ? Vec<T>{} : d;  // e is 0 there, and 0 * -inf must be 0
        Vec<T> g = fma(e, fma(b, below, a), c);
        if (any_bend) g = fma(e, q * e, g);
        if (any_slope) g += s == 0 ? Vec<T>{} : s * (z - centre);
        store(p, on ? g : Vec<T>{});
      }
    }
    add_columns_apart(tile, first, classes);
  }

  // Whether any gradient by the logits of these classes can differ from zero.
  bool touches(int64_t first, int64_t classes) const {
    bool any = soft;
    for (int64_t i = 0; i < count && !any; ++i)
      for (const int64_t c : {rows[i].argmax, rows[i].target, rows[i].second})
        any |= rows[i].active && c >= first && c < first + classes;
    return any;
  }

  // What remains of `apply` where nothing is soft: zeros but for the three columns of each row.
  void apply_hard(T* tile, int64_t first, int64_t classes) const {
    std::memset(tile, 0, classes * L * sizeof(T));
    add_columns_apart(tile, first, classes);
  }

 private:
  void add_columns_apart(T* tile, int64_t first, int64_t classes) const {
    for (int64_t i = 0; i < count; ++i) {
      const RowGradient<T>& r = rows[i];
      if (!r.active) continue;
      const auto inside = [&](int64_t c) { return c >= first && c < first + classes; };
      if (inside(r.argmax)) {
        T& g = tile[(r.argmax - first) * L + i];
        // The softmax part of the argmax column is flat: e^0 = 1 and z - max = 0 there.
        g = r.at_argmax + r.constant + (r.slope == 0 ? T(0) : r.slope * (r.max - r.mean));
      }
      if (inside(r.target)) tile[(r.target - first) * L + i] += r.at_target;
      if (inside(r.second)) tile[(r.second - first) * L + i] += r.at_second;
      if (r.poisoned)
        for (int64_t j = 0; j < classes; ++j) tile[j * L + i] = std::numeric_limits<T>::quiet_NaN();
    }
  }
};

}  // namespace ncops::NCOPS_ISA
