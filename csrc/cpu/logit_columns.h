// Row statistics of logits, from tiles [class][row]: the epilogue of linear_stats, and all of logit_stats.
//
// Inside a tile everything is one vector operation per lane in T; a tile's partial sums then join the row's state in
// double. The largest term is counted apart (gap = log1p of the others): near collapse it is 1 and the rest is 1e-9.
#pragma once

#include "kernels.h"
#include "simd.h"

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

// One row of logits, or a row's share of consecutive classes.
struct RowStats {
  double max, second;
  ExpSums sums;
  double count, mean, squares;  // squared deviations from the mean
  int64_t argmax, second_index, rank;
  bool poisoned, masked;        // a NaN or +inf logit; a -inf logit

  void merge(const RowStats& later) {
    RowStats b = later;
    if (b.max > max) {
      const bool ours = max >= b.second;  // ties: the lower class index, which is ours
      second = ours ? max : b.second;
      second_index = ours ? argmax : b.second_index;
      sums.lower(b.max - max);
      max = b.max;
      argmax = b.argmax;
    } else {
      if (b.max > second) second = b.max, second_index = b.argmax;
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
  alignas(64) LaneInt<T> argmax[L], second_index[L], rank[L], poisoned[L];  // indices relative to first_class
  alignas(64) double mean[L], squares[L];
  ExpSums sums[L];
  bool masked[L];
  int64_t first_class, seen;

  // `targets`: the logit of each row's target, or +inf where there is none (nothing outranks it).
  void begin(const T* targets) {
    for (int i = 0; i < L; ++i) {
      max[i] = second[i] = -std::numeric_limits<T>::infinity();
      target[i] = targets[i];
      argmax[i] = second_index[i] = rank[i] = poisoned[i] = 0;
      mean[i] = squares[i] = 0;
      sums[i] = ExpSums{0, 0, 0};
      masked[i] = false;
    }
    first_class = -1;
    seen = 0;
  }

  // tile[count][L] are raw products of classes first, first + 1, ...; logit = product * scale + bias[class].
  // Overwrites the tile with the logits.
  void add(T* tile, int64_t first, int64_t count, T scale, const T* bias) {
    constexpr int W = kWidth<T>;
    if (first_class < 0) first_class = first;
    const LaneInt<T> offset = LaneInt<T>(first - first_class);
    for (int lane = 0; lane < L; lane += W) add_lanes(tile + lane, lane, count, offset, scale, bias);
    seen += count;
  }

  RowStats row(int lane) const {
    RowStats r;
    r.max = max[lane];
    r.second = second[lane];
    r.sums = sums[lane];
    r.count = double(seen);
    r.mean = mean[lane];
    r.squares = squares[lane];
    r.argmax = first_class + argmax[lane];
    r.second_index = first_class + second_index[lane];
    r.rank = rank[lane];
    r.poisoned = poisoned[lane] != 0;
    r.masked = masked[lane];
    return r;
  }

 private:
  void add_lanes(T* tile, int lane, int64_t count, LaneInt<T> offset, T scale, const T* bias) {
    constexpr T inf = std::numeric_limits<T>::infinity();
    Vec<T> m1 = load(max + lane), m2 = load(second + lane);
    IntVec<T> i1 = load_int<T>(argmax + lane), i2 = load_int<T>(second_index + lane);
    IntVec<T> above = load_int<T>(rank + lane), bad = load_int<T>(poisoned + lane);
    const Vec<T> old_max = m1, zt = load(target + lane);
    if (seen == 0) {  // squares are formed about the row's first finite-or-zero logit
      const Vec<T> z = fma(load(tile), splat<T>(scale), splat<T>(bias ? bias[0] : T(0)));
      store(shift + lane, z > -inf && z < inf ? z : Vec<T>{});
    }
    const Vec<T> c = load(shift + lane);
    Vec<T> sum{};
    IntVec<T> index = IntVec<T>{} + offset;
    T* p = tile;
    for (int64_t j = 0; j < count; ++j, p += L, index += 1) {
      const Vec<T> z = fma(load(p), splat<T>(scale), splat<T>(bias ? bias[j] : T(0)));
      store(p, z);
      const IntVec<T> first = z > m1, next = z > m2;
      i2 = first ? i1 : (next ? index : i2);
      m2 = first ? m1 : (next ? z : m2);
      i1 = first ? index : i1;
      m1 = first ? z : m1;
      above -= (IntVec<T>)(z > zt);
      bad |= ~(IntVec<T>)(z < inf);
      sum += z - c;
    }
    const Vec<T> top = m1 == -inf ? Vec<T>{} : m1, centre = sum / T(count);
    Vec<T> below{}, equal{}, weighted{}, square{};
    p = tile;
    for (int64_t j = 0; j < count; ++j, p += L) {
      const Vec<T> z = load(p), d = z - top, e = exp_nonpositive<T>(d), dev = (z - c) - centre;
      const Vec<T> finite = d < ExpConstants<T>::lowest ? Vec<T>{} : d;  // e is 0 there, and 0 * -inf must be 0
      below += d < 0 ? e : Vec<T>{};
      equal += d < 0 ? Vec<T>{} : splat<T>(1);
      weighted = fma(finite, e, weighted);
      square = fma(dev, dev, square);
    }
    store(max + lane, m1);
    store(second + lane, m2);
    store_int<T>(argmax + lane, i1);
    store_int<T>(second_index + lane, i2);
    store_int<T>(rank + lane, above);
    store_int<T>(poisoned + lane, bad);
    join(lane, count, old_max, m1, below, equal, weighted, sum, centre, square);
  }

  void join(int lane, int64_t count, Vec<T> old_max, Vec<T> new_max, Vec<T> below, Vec<T> equal, Vec<T> weighted, Vec<T> sum,
            Vec<T> centre, Vec<T> square) {
    const double n = double(seen), added = double(count), share = added / (n + added), cross = n * share;
    for (int i = 0; i < kWidth<T>; ++i) {
      ExpSums& s = sums[lane + i];
      if (old_max[i] < new_max[i]) s.lower(double(new_max[i]) - double(old_max[i]));
      s.below += double(below[i]);
      s.equal += double(equal[i]);
      s.weighted += double(weighted[i]);
      masked[lane + i] |= sum[i] == -std::numeric_limits<T>::infinity();
      const double delta = double(shift[lane + i]) + double(centre[i]) - mean[lane + i];
      mean[lane + i] += delta * share;
      squares[lane + i] += double(square[i]) + delta * delta * cross;
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
