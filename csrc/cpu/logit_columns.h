// Row statistics of logits, from tiles [class][row]: the epilogue of linear_stats, and all of logit_stats.
//
// Inside a tile everything is one vector operation per lane in T; a tile's partial sums then join the row's state in
// double. The largest term is counted apart (gap = log1p of the others): near collapse it is 1 and the rest is 1e-9.
#pragma once

#include "../logit_share.h"
#include "kernels.h"
#include "softcap.h"

namespace ncops::NCOPS_ISA {

// Sums over e^{z - max} of some logits, lane by lane; Peak: some may be at the maximum, which are counted apart.
template <class T, bool Peak>
struct ExpLanes {
  // What the squares start at: without, those of far terms are subnormal, with which sums are a hundred times slower.
  static constexpr T kTiny = sizeof(T) == 4 ? T(1e-30) : T(1e-280);
  Vec<T> below{}, equal{}, weighted{}, squared = Vec<T>{} + kTiny;

  // d = z - max. e is 0 below `low`, also at -inf, and so is its product with the clamped difference.
  NCOPS_INLINE void add(Vec<T> d, Vec<T> low) {
    const Vec<T> x = max_of(d, low), e = exp_nonpositive<T>(d), term = Peak ? (d < 0 ? e : Vec<T>{}) : e;
    below += term;
    if constexpr (Peak) equal += d < 0 ? Vec<T>{} : splat<T>(1);
    squared = fma(term, term, squared);
    weighted = fma(x, e, weighted);
  }
};

// tile[count][L] of products become logits, product * scale + bias[class], capped; `bias` may be null.
template <class T, int L>
NCOPS_INLINE void turn_into_logits(T* tile, int64_t count, T scale, const T* bias, Softcap<T> cap) {
  if (scale != 1 || bias)
    for (int64_t j = 0; j < count; ++j)
      for (int lane = 0; lane < L; lane += kWidth<T>) {
        T* p = tile + j * L + lane;
        store(p, fma(load(p), splat<T>(scale), splat<T>(bias ? bias[j] : T(0))));
      }
  if (cap) cap.apply(tile, count * L);
}

// The running state of L rows (lanes).
template <class T, int L>
struct LogitState {
  alignas(64) T max[L], second[L], target[L], shift[L];
  alignas(64) LaneInt<T> argmax[L], second_index[L], rank[L], poisoned[L], masked[L];  // indices relative to first_class
  alignas(64) double mean[L], squares[L];
  alignas(64) double below[L], equal[L], weighted[L], squared[L];  // ExpSums; as structures 5 % slower with 10 classes
  int64_t first_class, seen;

  // `targets`: the logit of each row's target, or +inf where there is none (nothing outranks it).
  void begin(const T* targets) {
    for (int i = 0; i < L; ++i) {
      max[i] = second[i] = -std::numeric_limits<T>::infinity();
      target[i] = targets[i];
      argmax[i] = second_index[i] = rank[i] = poisoned[i] = masked[i] = 0;
      mean[i] = squares[i] = below[i] = equal[i] = weighted[i] = squared[i] = 0;
    }
    first_class = -1;
    seen = 0;
  }

  // tile[count][L] are products of classes first, first + 1, ..., which become logits.
  void add(T* tile, int64_t first, int64_t count, T scale, const T* bias, Softcap<T> cap) {
    if (first_class < 0) first_class = first;
    const LaneInt<T> offset = LaneInt<T>(first - first_class);
    turn_into_logits<T, L>(tile, count, scale, bias, cap);
    for (int lane = 0; lane < L; lane += kWidth<T>) add_lanes(tile + lane, lane, count, offset);
    seen += count;
  }

  LogitShare row(int lane) const {
    LogitShare s;
    s.max = max[lane], s.second = second[lane];
    s.sums = sums(lane);
    s.mean = mean[lane], s.squares = squares[lane];
    s.argmax = first_class + argmax[lane], s.second_index = first_class + second_index[lane];
    s.count = seen;
    s.rank = rank[lane];
    s.flags = (poisoned[lane] ? kPoisoned : 0) | (masked[lane] ? kMasked : 0);
    return s;
  }

 private:
  static constexpr T inf = std::numeric_limits<T>::infinity();

  ExpSums sums(int i) const { return {below[i], equal[i], weighted[i], squared[i]}; }

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
    if (seen == 0 || !any<T>(old_max < new_max)) return;
    for (int i = lane; i < lane + kWidth<T>; ++i) {
      if (!(old_max[i - lane] < new_max[i - lane])) continue;
      ExpSums s = sums(i);
      s.lower(double(new_max[i - lane]) - double(old_max[i - lane]));
      below[i] = s.below, equal[i] = s.equal, weighted[i] = s.weighted, squared[i] = s.squared;
    }
  }

  void add_exponentials(const T* tile, int lane, int64_t count, Vec<T> tile_max, Vec<T> new_max) {
    const Vec<T> peak = new_max == -inf ? Vec<T>{} : new_max;
    if (any<T>(~(IntVec<T>)(tile_max < peak))) join_exponentials<true>(tile, lane, count, peak);
    else join_exponentials<false>(tile, lane, count, peak);
  }

  template <bool Peak>
  void join_exponentials(const T* tile, int lane, int64_t count, Vec<T> peak) {
    const Vec<T> low = splat<T>(ExpConstants<T>::lowest);
    ExpLanes<T, Peak> lanes;
    for (int64_t j = 0; j < count; ++j) lanes.add(load(tile + j * L) - peak, low);
    for (int i = 0; i < kWidth<T>; ++i) {
      below[lane + i] += double(lanes.below[i]);
      if constexpr (Peak) equal[lane + i] += double(lanes.equal[i]);
      weighted[lane + i] += double(lanes.weighted[i]);
      squared[lane + i] += double(lanes.squared[i]);
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

}  // namespace ncops::NCOPS_ISA
