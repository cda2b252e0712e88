// Row statistics of logits, from tiles [class][row]: the epilogue of linear_stats, and all of logit_stats.
//
// Inside a tile everything is one vector operation per lane in T; a tile's partial sums then join the row's state in
// double. The largest term is counted apart (gap = log1p of the others): near collapse it is 1 and the rest is 1e-9.
#pragma once

#include "kernels.h"
#include "isa/vec.h"

namespace ncops::NCOPS_ISA {

// Sums over e^{z - max}: terms below the maximum, how many are at it, and (z - max)-weighted.
struct ExpSums {
  double below, equal, weighted;

  // Refers the sums to a larger maximum: max - larger = -drop.
  void lower(double drop) {
    const double total = below + equal, factor = std::exp(-drop);
    weighted = factor == 0 ? 0 : (weighted - total * drop) * factor;
    below = total * factor;
    equal = 0;
  }
};

// One row of logits, or a row's share of some classes.
struct RowStats {
  double max, second;
  ExpSums sums;
  double count, mean, squares;  // squared deviations from the mean
  int64_t argmax, second_index, rank;
  bool poisoned, masked;        // a NaN or +inf logit; a -inf logit

  // Joins the share of other classes. Ties go to the lower class index.
  void merge(const RowStats& other) {
    RowStats b = other;
    const auto before = [](double u, int64_t i, double v, int64_t j) { return u > v || (u == v && i < j); };
    if (before(b.max, b.argmax, max, argmax)) {
      const bool ours = before(max, argmax, b.second, b.second_index);
      second = ours ? max : b.second;
      second_index = ours ? argmax : b.second_index;
      if (b.max > max) sums.lower(b.max - max);
      max = b.max;
      argmax = b.argmax;
    } else {
      if (before(b.max, b.argmax, second, second_index)) second = b.max, second_index = b.argmax;
      if (b.max < max) b.sums.lower(max - b.max);
    }
    sums.below += b.sums.below;
    sums.equal += b.sums.equal;
    sums.weighted += b.sums.weighted;
    const double delta = b.mean - mean, n = count + b.count;
    mean += delta * (b.count / n);
    squares += b.squares + delta * delta * (count * b.count / n);
    count = n;
    rank += b.rank;
    poisoned |= b.poisoned;
    masked |= b.masked;
  }
};

// The running state of L rows (lanes).
template <class T, int L>
struct LogitState {
  alignas(64) T max[L], second[L], target[L], shift[L];
  alignas(64) LaneInt<T> argmax[L], second_index[L], rank[L], poisoned[L], masked[L];  // indices relative to first_class
  alignas(64) double below[L], equal[L], weighted[L], mean[L], squares[L];             // as in ExpSums and RowStats
  int64_t first_class, seen;

  // `targets`: the logit of each row's target, or +inf where there is none (nothing outranks it).
  void begin(const T* targets) {
    for (int i = 0; i < L; ++i) {
      max[i] = second[i] = -std::numeric_limits<T>::infinity();
      target[i] = targets[i];
      argmax[i] = second_index[i] = rank[i] = poisoned[i] = masked[i] = 0;
      below[i] = equal[i] = weighted[i] = mean[i] = squares[i] = 0;
    }
    first_class = -1;
    seen = 0;
  }

  // tile[count][L] are raw products of classes first, first + 1, ...; logit = product * scale + bias[class].
  // Overwrites the tile with the logits, unless scale is 1 and there is no bias.
  void add(T* tile, int64_t first, int64_t count, T scale, const T* bias) {
    if (first_class < 0) first_class = first;
    const LaneInt<T> offset = LaneInt<T>(first - first_class);
    if (scale != 1 || bias)
      for (int64_t j = 0; j < count; ++j)
        for (int lane = 0; lane < L; lane += kWidth<T>) {
          T* p = tile + j * L + lane;
          store(p, fma(load(p), splat<T>(scale), splat<T>(bias ? bias[j] : T(0))));
        }
    for (int lane = 0; lane < L; lane += kWidth<T>) add_lanes(tile + lane, lane, count, offset);
    seen += count;
  }

  RowStats row(int lane) const {
    RowStats r;
    r.max = max[lane];
    r.second = second[lane];
    r.sums = {below[lane], equal[lane], weighted[lane]};
    r.count = double(seen);
    r.mean = mean[lane];
    r.squares = squares[lane];
    r.argmax = first_class + argmax[lane];
    r.second_index = first_class + second_index[lane];
    r.rank = rank[lane];
    r.poisoned = poisoned[lane] != 0;
    r.masked = masked[lane] != 0;
    return r;
  }

 private:
  static constexpr T inf = std::numeric_limits<T>::infinity();

  void add_lanes(const T* tile, int lane, int64_t count, LaneInt<T> offset) {
    // Moments are formed about a shift near the mean: that of the classes seen before, at first that of this tile.
    if (seen == 0) {
      Vec<T> sum{};
      for (int64_t j = 0; j < count; ++j) sum += load(tile + j * L);
      sum /= T(count);
      store(shift + lane, sum - sum == 0 ? sum : Vec<T>{});
    }
    const Vec<T> c = load(shift + lane), zt = load(target + lane), old_max = load(max + lane);
    Vec<T> top = splat<T>(-inf), sum{}, square{};
    IntVec<T> above{};
    for (int64_t j = 0; j < count; ++j) {
      const Vec<T> z = load(tile + j * L), d = z - c;
      top = max_of(z, top);
      above -= z > zt;
      sum += d;
      square = fma(d, d, square);
    }
    store_int<T>(rank + lane, load_int<T>(rank + lane) + above);
    if (any<T>(sum - sum != 0)) look_for_infinities(tile, lane, count);
    // Most tiles hold no new candidate: the index bookkeeping (a third of all work) is left to those that may.
    if (any<T>(~(IntVec<T>)(top <= load(second + lane)))) top_two(tile, lane, count, offset);
    const Vec<T> new_max = load(max + lane);
    raise_max(lane, old_max, new_max);
    add_exponentials(tile, lane, count, top, new_max);
    join_moments(lane, count, sum, square);
  }

  void look_for_infinities(const T* tile, int lane, int64_t count) {
    IntVec<T> bad = load_int<T>(poisoned + lane), low = load_int<T>(masked + lane);
    for (int64_t j = 0; j < count; ++j) {
      const Vec<T> z = load(tile + j * L);
      bad |= ~(IntVec<T>)(z < inf);
      low |= (IntVec<T>)(z == -inf);
    }
    store_int<T>(poisoned + lane, bad);
    store_int<T>(masked + lane, low);
  }

  void top_two(const T* tile, int lane, int64_t count, LaneInt<T> offset) {
    Vec<T> m1 = load(max + lane), m2 = load(second + lane);
    IntVec<T> i1 = load_int<T>(argmax + lane), i2 = load_int<T>(second_index + lane), index = IntVec<T>{} + offset;
    for (int64_t j = 0; j < count; ++j, index += 1) {
      const Vec<T> z = load(tile + j * L);
      const IntVec<T> first = z > m1, next = z > m2;
      i2 = first ? i1 : (next ? index : i2);
      m2 = first ? m1 : (next ? z : m2);
      i1 = first ? index : i1;
      m1 = first ? z : m1;
    }
    store(max + lane, m1);
    store(second + lane, m2);
    store_int<T>(argmax + lane, i1);
    store_int<T>(second_index + lane, i2);
  }

  void raise_max(int lane, Vec<T> old_max, Vec<T> new_max) {
    if (!any<T>(old_max < new_max)) return;
    for (int i = lane; i < lane + kWidth<T>; ++i) {
      if (!(old_max[i - lane] < new_max[i - lane])) continue;
      ExpSums s{below[i], equal[i], weighted[i]};
      s.lower(double(new_max[i - lane]) - double(old_max[i - lane]));
      below[i] = s.below, equal[i] = s.equal, weighted[i] = s.weighted;
    }
  }

  void add_exponentials(const T* tile, int lane, int64_t count, Vec<T> tile_max, Vec<T> new_max) {
    const Vec<T> peak = new_max == -inf ? Vec<T>{} : new_max, low = splat<T>(ExpConstants<T>::lowest);
    Vec<T> sum{}, at_peak{}, product{};
    // e is 0 below `lowest`, also at -inf, and so is its product with the clamped difference.
    if (any<T>(~(IntVec<T>)(tile_max < peak))) {
      for (int64_t j = 0; j < count; ++j) {
        const Vec<T> d = load(tile + j * L) - peak, x = max_of(d, low), e = exp_nonpositive<T>(d);
        sum += d < 0 ? e : Vec<T>{};
        at_peak += d < 0 ? Vec<T>{} : splat<T>(1);
        product = fma(x, e, product);
      }
    } else {
      for (int64_t j = 0; j < count; ++j) {
        const Vec<T> d = load(tile + j * L) - peak, x = max_of(d, low), e = exp_nonpositive<T>(d);
        sum += e;
        product = fma(x, e, product);
      }
    }
    for (int i = 0; i < kWidth<T>; ++i) {
      below[lane + i] += double(sum[i]);
      equal[lane + i] += double(at_peak[i]);
      weighted[lane + i] += double(product[i]);
    }
  }

  // Chan's rule; the next tile's shift is the mean so far.
  void join_moments(int lane, int64_t count, Vec<T> sum, Vec<T> square) {
    const double n = double(seen), added = double(count), share = added / (n + added), cross = n * share;
    T sums[kWidth<T>], sq[kWidth<T>];
    store(sums, sum);
    store(sq, square);
    for (int i = 0; i < kWidth<T>; ++i) {
      const double offset = double(sums[i]) / added;
      const double delta = double(shift[lane + i]) + offset - mean[lane + i];
      mean[lane + i] += delta * share;
      squares[lane + i] += std::max(0.0, double(sq[i]) - double(sums[i]) * offset) + delta * delta * cross;
      const T next = T(mean[lane + i]);
      shift[lane + i] = next - next == 0 ? next : shift[lane + i];
    }
  }
};

// Writes every column of one row. `target_logit` is read only where there is a valid target.
template <class T>
inline void write_row(const LogitColumns& out, int64_t row, const RowStats& r, const int64_t* target, int64_t ignore_index,
                      T target_logit) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  const auto put = [row](void* column, double value) { static_cast<T*>(column)[row] = T(value); };
  const int64_t classes = int64_t(r.count);
  const bool none = r.max == -inf;  // every class is masked
  const double total = r.sums.below + r.sums.equal;
  double gap = none ? nan : std::log1p(r.sums.below + (r.sums.equal - 1));
  double entropy = none ? nan : gap - r.sums.weighted / total;
  double second = classes > 1 ? r.second : -inf;
  int64_t argmax = none ? 0 : r.argmax;
  int64_t second_index = classes < 2 ? -1 : second == -inf ? (argmax == 0 ? 1 : 0) : r.second_index;
  double max = r.max, lse = none ? -inf : r.max + gap;
  double mean = r.masked ? -inf : r.mean, var = r.masked ? nan : r.squares / r.count;
  if (r.poisoned) {
    max = lse = gap = entropy = second = mean = var = nan;
    argmax = second_index = -1;
  }
  put(out.lse, lse), put(out.gap, gap), put(out.max, max), put(out.second, second), put(out.entropy, entropy);
  put(out.mean, mean), put(out.var, var);
  out.argmax[row] = argmax;
  out.second_index[row] = second_index;
  if (target == nullptr) return;
  const bool valid = target[row] != ignore_index, inside = target[row] >= 0 && target[row] < classes;
  double logit = 0, nll = 0;
  int64_t rank = -1;
  if (valid && (!inside || r.poisoned)) logit = nll = nan;
  else if (valid) logit = double(target_logit), nll = (r.max - logit) + gap, rank = r.rank;
  put(out.target_logit, logit), put(out.nll, nll);
  out.target_rank[row] = rank;
  out.valid[row] = valid;
}

}  // namespace ncops::NCOPS_ISA
