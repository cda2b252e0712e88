// Row statistics of one row of stored logits, read block by block: lanes are neighbouring classes, all against one maximum.
//
// A block is passed over twice while it is in the first-level cache: maximum, moments and rank (6 operations per vector), then
// exponentials below the maximum known by then (11 with AVX-512, else 14). Both prefetch the next block, or computing would
// wait for reading and reading for computing. Exponents are z log2(e) less that of the maximum, rounded once, and vectors go
// through the exponential four at a time: 1.3x the speed of z - max one by one. Indices are looked up, and terms at the maximum
// counted apart, only where a block holds a new maximum or second: with shuffled classes about 2 log(blocks) do, which took
// a fifth of the time while all of such a block was counted so. From block to block sums stay apart by lane, in double: to add
// up lanes and to join moments after every block took a quarter of the time.
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

  // The next n <= kBlock classes, as stored; those of 16 bits are left in `loaded`. `ahead`: what will be read next, `along`
  // whose lines.
  template <class Stored>
  void add(const Stored* in, T* loaded, int64_t n, const char* ahead, bool along) {
    constexpr bool in_place = std::is_same_v<Stored, T>;
    constexpr int lines = std::max<int>(1, kStep * W * sizeof(Stored) / 64);  // of a step
    const int64_t vectors = n / W, rest = n % W, line = along ? 64 : 0;
    const T* z;
    if constexpr (in_place) z = in;
    else z = loaded, load_elements(in + vectors * W, 1, rest, loaded + vectors * W);
    const auto next = [&](int64_t j) __attribute__((always_inline)) {
      const Vec<T> v = load_stored(in + j * W);
      if constexpr (!in_place) store(loaded + j * W, v);
      return v;
    };
    const Tail tail(z + vectors * W, rest);
    if (read_ == 0) first_shift(in, n);
    Sweep s(shift_);
    int64_t j = 0;
    for (; j + kStep <= vectors; j += kStep, ahead += line) {
      prefetch(ahead);
#pragma GCC unroll 4
      for (int u = 0; u < kStep; ++u) s.add(u % kChains, next(j + u), target_);
    }
    for (; j < vectors; ++j) s.add(0, next(j), target_);
    if (rest) s.add_some(tail.padded, rest, target_);
    const Vec<T> largest = s.join_chains();
    if (any<T>(s.sums[0] - s.sums[0] != 0)) look_for_infinities(z, n);
    above_ += s.above[0];
    sums_.add(s.sums[0]), squares_.add(s.squares[0]);

    int64_t at = -1;
    if (any<T>(splat<T>(T(share_.second)) < s.tops[0])) at = top_two(z, n, reduce<T>(s.tops[0], larger));
    // The vectors that may be at the row's maximum so far: none, one step of them, or all.
    int64_t from = vectors, to = vectors;
    if (any<T>(s.tops[0] == T(share_.max))) {
      from = at < 0 ? 0 : std::min(at / (kStep * W) * kStep, vectors);
      if (at >= 0) to = std::min(from + kStep, vectors);
    }
    // How far below the shift a term is not zero yet, less a margin for rounding.
    const T room = shift_ - T(share_.max) - (ExpConstants<T>::lowest + 1);
    const bool near = room > 0 && !any<T>(~(IntVec<T>)(largest < room * room));
    Terms terms;
    const auto below = [&](int64_t begin, int64_t end) {
      if (near) ahead = add_terms<false, true, lines>(terms, z + begin * W, z + end * W, ahead, line);
      else ahead = add_terms<false, false, lines>(terms, z + begin * W, z + end * W, ahead, line);
    };
    below(0, from);
    if (from < to) ahead = add_terms<true, false, lines>(terms, z + from * W, z + to * W, ahead, line);
    if (to < vectors) below(to, vectors);
    if (rest) add_terms<true, false, 1>(terms, tail.lanes, tail.lanes + W, ahead, 0);
    below_.add(terms.below), weighted_.add(terms.weighted), squared_.add(terms.squared);
    share_.sums.equal += terms.equal;
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
  static constexpr int kStep = 4, kChains = kRegisters / 8;  // vectors at once, and chains of sums of the first pass
  static constexpr T kLowest = kExpUnit<T> * ExpConstants<T>::lowest;

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
    alignas(64) T lanes[W];
    Vec<T> padded;
    Tail(const T* z, int64_t n) {
      for (int i = 0; i < W; ++i) lanes[i] = -inf;
      std::memcpy(lanes, z, n * sizeof(T));
      padded = load(lanes);
    }
  };

  // The first pass.
  struct Sweep {
    Vec<T> shift, tops[kChains], sums[kChains], squares[kChains];
    IntVec<T> above[kChains];

    explicit NCOPS_INLINE Sweep(T c) : shift(splat<T>(c)) {
#pragma GCC unroll 4
      for (int u = 0; u < kChains; ++u) tops[u] = splat<T>(-inf), sums[u] = squares[u] = Vec<T>{}, above[u] = IntVec<T>{};
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
      for (int u = 1; u < kChains; ++u) {
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
    Vec<T> sums[kChains];
#pragma GCC unroll 4
    for (int u = 0; u < kChains; ++u) sums[u] = Vec<T>{};
    int64_t i = 0;
    for (; i + kChains * W <= n; i += kChains * W)
#pragma GCC unroll 4
      for (int u = 0; u < kChains; ++u) sums[u] += load_stored(z + i + u * W);
#pragma GCC unroll 4
    for (int u = 1; u < kChains; ++u) sums[0] += sums[u];
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

  // `top` is the block's maximum, and above the second so far. Returns where it is, if it is above the maximum too, and once.
  int64_t top_two(const T* z, int64_t n, T top) {
    const int64_t at = find(z, n, top, -1);
    if (at < 0) return at;
    const T old = T(share_.max);
    if (!(old < top)) {
      share_.second = top, share_.second_index = read_ + at;
      return -1;
    }
    join_exponentials();
    share_.sums.lower(double(top) - double(old));
    share_.second = share_.max, share_.second_index = share_.argmax;
    share_.max = top, share_.argmax = read_ + at;
    origin_ = top * kExpUnit<T>;
    const T second = std::max(largest_of(z, at), largest_of(z + at + 1, n - at - 1));
    if (old < second) share_.second = second, share_.second_index = read_ + find(z, n, second, at);
    return second < top ? at : -1;
  }

  static T largest_of(const T* z, int64_t n) {
    T top = -inf;
    int64_t i = 0;
    if (n >= W) {
      Vec<T> tops[4];
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) tops[u] = splat<T>(-inf);
      for (; i + 4 * W <= n; i += 4 * W)
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) tops[u] = max_of(load(z + i + u * W), tops[u]);
      for (; i + W <= n; i += W) tops[0] = max_of(load(z + i), tops[0]);
      top = reduce<T>(larger(larger(tops[0], tops[1]), larger(tops[2], tops[3])), larger);
    }
    for (; i < n; ++i) top = z[i] > top ? z[i] : top;
    return top;
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

  // Sums of a block's terms e^(z - origin); `equal` are at the maximum, and in no other sum.
  struct Terms {
    Vec<T> below{}, weighted{}, squared{};
    double equal = 0;
  };

  // The second pass, over whole vectors. `Peak`: some logit may be the row's maximum so far; `near`: no term is zero. Fetches
  // all but one of `lines` a step ahead; returns where the next one is.
  template <bool Peak, bool near, int lines>
  const char* add_terms(Terms& terms, const T* z, const T* end, const char* ahead, int64_t line) const {
    const Vec<T> unit = splat<T>(kExpUnit<T>), origin = splat<T>(origin_), low = splat<T>(kLowest);
    const Vec<T> peak = splat<T>(T(share_.max)), tiny = splat<T>(ExpLanes<T, Peak>::kTiny);
    Vec<T> below[2] = {}, weighted[2] = {}, squared[2] = {tiny, tiny}, equal{};
    const auto add = [&](auto count) __attribute__((always_inline)) {
      constexpr int N = decltype(count)::value;
      Vec<T> v[N], y[N], e[N];
#pragma GCC unroll 4
      for (int u = 0; u < N; ++u) {
        v[u] = load(z + u * W), y[u] = fma(v[u], unit, -origin);
        if constexpr (!near) y[u] = max_of(y[u], low);
      }
      exp_near<T, N>(y, e);
#pragma GCC unroll 4
      for (int u = 0; u < N; ++u) {
        if constexpr (!near) e[u] = y[u] > low ? e[u] : Vec<T>{};
        if constexpr (Peak) {
          equal += v[u] < peak ? Vec<T>{} : splat<T>(1);
          e[u] = v[u] < peak ? e[u] : Vec<T>{};
        }
        below[u % 2] += e[u];
        squared[u % 2] = fma(e[u], e[u], squared[u % 2]);
        weighted[u % 2] = fma(y[u], e[u], weighted[u % 2]);
      }
      z += N * W;
    };
    while (z + kStep * W <= end) {
#pragma GCC unroll 4
      for (int u = 1; u < lines; ++u, ahead += line) prefetch(ahead);
      add(std::integral_constant<int, kStep>());
    }
    while (z < end) add(std::integral_constant<int, 1>());
    terms.below += below[0] + below[1];
    terms.weighted += weighted[0] + weighted[1];
    terms.squared += squared[0] + squared[1];
    if constexpr (Peak) terms.equal += double(reduce_add<T>(equal));
    return ahead;
  }

  // The sums so far are of e^(z - origin_ / unit), a rounding of the maximum away from it.
  void join_exponentials() {
    ExpSums sums{below_.take(), 0, weighted_.take() / kExpUnit<T>, squared_.take()};
    if (share_.max - share_.max != 0) return;
    sums.lower(share_.max - double(origin_) / kExpUnit<T>);
    share_.sums.add(sums);
  }

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
  T origin_ = 0;                                   // of the exponents: about the maximum, in their unit
  T shift_ = 0;                                    // what deviations are from
  Wide sums_, squares_;                            // of the deviations of classes that share_ does not count yet
  Wide below_, weighted_, squared_;                // of the exponentials that its sums lack
  int64_t read_ = 0;
  LogitShare share_;
};

}  // namespace ncops::NCOPS_ISA
