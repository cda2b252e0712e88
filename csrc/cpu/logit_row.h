// Row statistics of one row of stored logits, read block by block: lanes are neighbouring classes, all against one maximum.
//
// A block is passed over twice while it is in the first-level cache: maximum, moments and rank, then exponentials below the
// maximum known by then. The second pass computes (about 16 operations per vector), the first reads; both prefetch the next
// block, or computing would wait for reading and reading for computing. Indices are looked up only in blocks that hold a new
// maximum or second: with shuffled classes about 2 log(blocks) of them. From block to block sums stay apart by lane, in double:
// to add up lanes and to join moments after every block took a quarter of the time.
#pragma once

#include "isa/convert.h"
#include "logit_columns.h"

namespace ncops::NCOPS_ISA {

template <class T>
class LogitRow {
 public:
  static constexpr int W = kWidth<T>;
  static constexpr int64_t kBlock = 128 * W;  // classes: at most 8 KB, beside the next block; sums in chains of 64 at most

  // `target`: the logit of the row's target, or +inf where there is none (nothing outranks it).
  explicit LogitRow(T target) : target_(splat<T>(target)), share_{} {
    share_.max = share_.second = -inf;
  }

  // The next n <= kBlock classes, as stored; those of 16 bits are left in `loaded`. `ahead`: what will be read next, at `line`
  // bytes per vector of the pass.
  template <class Stored>
  void add(const Stored* in, T* loaded, int64_t n, const char* ahead, int64_t line) {
    constexpr bool in_place = std::is_same_v<Stored, T>;
    const int64_t vectors = n / W, rest = n % W;
    const T* z;
    if constexpr (in_place) z = in;
    else z = loaded, load_elements(in + vectors * W, 1, rest, loaded + vectors * W);
    const auto next = [&](int64_t j) __attribute__((always_inline)) {
      const Vec<T> v = load_stored(in + j * W);
      if constexpr (!in_place) store(loaded + j * W, v);
      return v;
    };
    Tail tail{z + vectors * W, rest};
    if (read_ == 0) first_shift(in, n);
    Sweep s(shift_);
    int64_t j = 0;
    for (; j + kAtOnce <= vectors; j += kAtOnce, ahead += line) {
      prefetch(ahead);
#pragma GCC unroll 4
      for (int u = 0; u < kAtOnce; ++u) s.add(u, next(j + u), target_);
    }
    for (; j < vectors; ++j) s.add(0, next(j), target_);
    if (rest) s.add_some(tail.padded, rest, target_);
    const Vec<T> largest = s.join_chains();
    if (any<T>(s.sums[0] - s.sums[0] != 0)) look_for_infinities(z, n);
    if (any<T>(splat<T>(T(share_.second)) < s.tops[0])) top_two(z, n, tail, reduce<T>(s.tops[0], larger));
    // How far below the shift a term is not zero yet, less a margin for rounding.
    const T max = T(share_.max), room = shift_ - max - (ExpConstants<T>::lowest + 1);
    const T* end = z + vectors * W;
    if (any<T>(~(IntVec<T>)(s.tops[0] < max))) exponentials<true, false>(z, end, tail, ahead, line);
    else if (room > 0 && !any<T>(~(IntVec<T>)(largest < room * room))) exponentials<false, true>(z, end, tail, ahead, line);
    else exponentials<false, false>(z, end, tail, ahead, line);
    above_ += s.above[0];
    sums_.add(s.sums[0]), squares_.add(s.squares[0]);
    read_ += n;
    const int64_t unjoined = read_ - share_.count;
    if (unjoined >= share_.count || unjoined >= 8 * kBlock) join_moments();
  }

  // Of all classes so far.
  LogitShare share() {
    join_moments();
    join_exponentials();
    alignas(64) LaneInt<T> counts[W];
    store_int<T>(counts, above_);
    share_.rank = 0;
    for (int i = 0; i < W; ++i) share_.rank += counts[i];
    return share_;
  }

 private:
  static constexpr T inf = std::numeric_limits<T>::infinity();
  static constexpr int kAtOnce = kRegisters / 8;  // vectors in flight: as many chains as registers allow

  static Vec<T> larger(Vec<T> a, Vec<T> b) { return a > b ? a : b; }

  // Sums by lane, in double.
  struct Wide {
    alignas(64) double lanes[W] = {};
    NCOPS_INLINE void add(Vec<T> v) {
      T part[W];
      store(part, v);
      for (int i = 0; i < W; ++i) lanes[i] += double(part[i]);
    }
    double take() {
      double total = 0;
      for (int i = 0; i < W; ++i) total += lanes[i], lanes[i] = 0;
      return total;
    }
  };

  // The classes past the last whole vector; -inf in the other lanes is neither counted nor summed.
  struct Tail {
    Vec<T> padded;
    int64_t count;
    Tail(const T* z, int64_t n) : count(n) {
      alignas(64) T lanes[W];
      for (int i = 0; i < W; ++i) lanes[i] = -inf;
      std::memcpy(lanes, z, n * sizeof(T));
      padded = load(lanes);
    }
  };

  // The first pass.
  struct Sweep {
    Vec<T> shift, tops[kAtOnce], sums[kAtOnce], squares[kAtOnce];
    IntVec<T> above[kAtOnce];

    explicit NCOPS_INLINE Sweep(T c) : shift(splat<T>(c)) {
#pragma GCC unroll 4
      for (int u = 0; u < kAtOnce; ++u) tops[u] = splat<T>(-inf), sums[u] = squares[u] = Vec<T>{}, above[u] = IntVec<T>{};
    }
    NCOPS_INLINE void add(int u, Vec<T> z, Vec<T> target) { add(u, z, z - shift, target); }
    NCOPS_INLINE void add_some(Vec<T> z, int64_t count, Vec<T> target) {
      IntVec<T> lane;
      for (int i = 0; i < W; ++i) lane[i] = i;
      add(0, z, lane < IntVec<T>{} + LaneInt<T>(count) ? z - shift : Vec<T>{}, target);
    }
    NCOPS_INLINE void add(int u, Vec<T> z, Vec<T> deviation, Vec<T> target) {
      tops[u] = max_of(z, tops[u]);
      above[u] = count_above(above[u], z, target);
      sums[u] += deviation;
      squares[u] = fma(deviation, deviation, squares[u]);
    }
    // Leaves everything in the first chain. Returns, by lane, what no squared deviation is larger than.
    NCOPS_INLINE Vec<T> join_chains() {
      Vec<T> largest = squares[0];
#pragma GCC unroll 4
      for (int u = 1; u < kAtOnce; ++u) {
        largest = larger(squares[u], largest);
        tops[0] = larger(tops[u], tops[0]);
        sums[0] += sums[u];
        squares[0] += squares[u];
        above[0] += above[u];
      }
      return largest;
    }
  };

  // The mean of the first block; from then on the mean so far. (That of the first 64 classes alone costs four digits of the
  // variance where they are unlike the rest.)
  template <class Stored>
  void first_shift(const Stored* z, int64_t n) {
    Vec<T> sums[kAtOnce];
#pragma GCC unroll 4
    for (int u = 0; u < kAtOnce; ++u) sums[u] = Vec<T>{};
    int64_t i = 0;
    for (; i + kAtOnce * W <= n; i += kAtOnce * W)
#pragma GCC unroll 4
      for (int u = 0; u < kAtOnce; ++u) sums[u] += load_stored(z + i + u * W);
#pragma GCC unroll 4
    for (int u = 1; u < kAtOnce; ++u) sums[0] += sums[u];
    T sum = reduce_add<T>(sums[0]);
    for (; i < n; ++i) sum += T(widen(z[i]));
    sum /= T(n);
    shift_ = sum - sum == 0 ? sum : T(0);
  }

  void look_for_infinities(const T* z, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      if (!(z[i] < inf)) share_.flags |= kPoisoned;
      if (z[i] == -inf) share_.flags |= kMasked;
    }
  }

  // `top` is the block's maximum, and above the second so far.
  void top_two(const T* z, int64_t n, const Tail& tail, T top) {
    const int64_t at = find(z, n, top, -1);
    if (at < 0) return;
    if (!(T(share_.max) < top)) {
      share_.second = top, share_.second_index = read_ + at;
      return;
    }
    const T old = T(share_.max);
    join_exponentials();
    share_.sums.lower(double(top) - double(old));
    share_.second = share_.max, share_.second_index = share_.argmax;
    share_.max = top, share_.argmax = read_ + at;
    // The block's own second: its maximum without one occurrence of `top`.
    Vec<T> m1 = tail.count ? tail.padded : splat<T>(-inf), m2 = splat<T>(-inf);
    for (int64_t j = 0; j + W <= n; j += W) {
      const Vec<T> v = load(z + j);
      m2 = max_of(min_of(v, m1), m2);
      m1 = max_of(v, m1);
    }
    alignas(64) T first[W], next[W];
    store(first, m1), store(next, m2);
    T second = -inf;
    bool removed = false;
    for (int i = 0; i < W; ++i) {
      const bool remove = first[i] == top && !removed;
      removed |= remove;
      second = std::max(second, remove ? next[i] : first[i]);
    }
    if (!(old < second)) return;
    share_.second = second, share_.second_index = read_ + find(z, n, second, at);
  }

  // The first class that has this logit, other than `except`.
  static int64_t find(const T* z, int64_t n, T value, int64_t except) {
    const Vec<T> wanted = splat<T>(value);
    for (int64_t i = 0; i < n;) {
      if (i + W <= n && !any<T>(load(z + i) == wanted)) {
        i += W;
        continue;
      }
      for (const int64_t end = std::min(n, i + W); i < end; ++i)
        if (z[i] == value && i != except) return i;
    }
    return -1;
  }

  // The second pass. `Peak`: some logit of the block is the row's maximum so far, and counted apart; `near`: none is so far
  // below it that its term is zero.
  template <bool Peak, bool near>
  void exponentials(const T* z, const T* end, const Tail& tail, const char* ahead, int64_t line) {
    const T max = T(share_.max);
    const Vec<T> peak = splat<T>(max == -inf ? T(0) : max), low = splat<T>(ExpConstants<T>::lowest);
    ExpLanes<T, Peak, kAtOnce> lanes;
    const auto add = [&](int u, Vec<T> d) __attribute__((always_inline)) {
      if constexpr (near) {
        const Vec<T> e = exp_near<T>(d);
        lanes.below[u] += e;
        lanes.squared = fma(e, e, lanes.squared);
        lanes.weighted[u] = fma(d, e, lanes.weighted[u]);
      } else {
        lanes.add(u, d, low);
      }
    };
    for (; z + kAtOnce * W <= end; z += kAtOnce * W) {
#pragma GCC unroll 4
      for (int u = 1; u < kAtOnce; ++u, ahead += line) prefetch(ahead);
#pragma GCC unroll 4
      for (int u = 0; u < kAtOnce; ++u) add(u, load(z + u * W) - peak);
    }
    for (; z < end; z += W) add(0, load(z) - peak);
    if (tail.count) lanes.add(0, tail.padded - peak, low);
    lanes.join_chains();
    below_.add(lanes.below[0]), weighted_.add(lanes.weighted[0]), squared_.add(lanes.squared);
    if constexpr (Peak) share_.sums.equal += double(reduce_add<T>(lanes.equal[0]));
  }

  void join_exponentials() { share_.sums.add({below_.take(), 0, weighted_.take(), squared_.take()}); }

  // Chan's rule, as LogitState::join_moments.
  void join_moments() {
    const double added = double(read_ - share_.count), before = double(share_.count);
    if (added == 0) return;
    const double sum = sums_.take(), part = added / (before + added), offset = sum / added;
    const double delta = double(shift_) + offset - share_.mean;
    share_.squares += std::max(0.0, squares_.take() - sum * offset) + delta * delta * before * part;
    share_.mean += delta * part;
    share_.count = read_;
    const T next = T(share_.mean);
    shift_ = next - next == 0 ? next : shift_;
  }

  Vec<T> target_;
  IntVec<T> above_{};                              // of the target
  T shift_ = 0;                                    // what deviations are from
  Wide sums_, squares_;                            // of the deviations of classes that share_ does not count yet
  Wide below_, weighted_, squared_;                // of the exponentials that its sums lack
  int64_t read_ = 0;
  LogitShare share_;
};

}  // namespace ncops::NCOPS_ISA
