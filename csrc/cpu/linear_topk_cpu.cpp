// linear_topk: a product whose tiles leave the largest logits of each row, and the log-sum-exp of all of them.
//
// A row collects the logits above its k-th largest so far, twice as many as it needs before it looks for those to keep: after
// the first k there are about k log(V / k) more, which is what selecting costs beside a comparison per logit. What one split
// has found, others need not beat: whatever has been told to whom, the k largest of all that were collected are the same.
#include "blocks/few_rows.h"
#include "linear_logits.h"

namespace ncops::NCOPS_ISA {
namespace {

constexpr int64_t kCandidateBytes = int64_t(64) << 20;

// A logit and its class as one integer: the lower the number the larger the logit, of equal ones the lower class. Numbers, since
// the comparison of a type of ours is no part of an instruction set that the standard library's algorithms are compiled for.
template <class T>
struct Candidates;
template <>
struct Candidates<float> {
  using Key = uint64_t;
  using Bits = uint32_t;
};
template <>
struct Candidates<double> {
  using Key = unsigned __int128;
  using Bits = uint64_t;
};
template <class T>
using Key = typename Candidates<T>::Key;

template <class T>
NCOPS_INLINE Key<T> key_of(T z, int64_t c) {
  using Bits = typename Candidates<T>::Bits;
  constexpr int width = 8 * sizeof(Bits);
  constexpr Bits sign = Bits(1) << (width - 1);
  const T unsigned_zero = z + T(0);
  Bits bits;
  std::memcpy(&bits, &unsigned_zero, sizeof bits);
  return Key<T>(bits & sign ? bits : Bits(~(bits | sign))) << width | Bits(c);
}
template <class T>
inline T value_of(Key<T> key) {
  using Bits = typename Candidates<T>::Bits;
  constexpr int width = 8 * sizeof(Bits);
  constexpr Bits sign = Bits(1) << (width - 1);
  const Bits high = Bits(key >> width), bits = high & sign ? high : Bits(~high & ~sign);
  T z;
  std::memcpy(&z, &bits, sizeof z);
  return z;
}
template <class T>
inline int64_t class_of(Key<T> key) {
  return int64_t(typename Candidates<T>::Bits(key));
}

// Of some classes of a row: the largest logit, the sum of e^(z - max) below it and how many are at it.
struct Peak {
  double max, below, equal;
  int64_t candidates;
  bool poisoned;

  void lower(double new_max) {
    if (!(max < new_max)) return;
    below = (below + equal) * std::exp(max - new_max);  // max is -inf where there was none
    equal = 0;
    max = new_max;
  }
  double gap() const { return std::log1p(below + (equal - 1)); }
};

template <class Mode, int NV>
struct LinearTopk {
  using T = typename Mode::T;
  static constexpr int L = NV * kWidth<T>;
  static constexpr T inf = std::numeric_limits<T>::infinity();

  struct State {
    alignas(64) T max[L], floor[L];  // floor: the k-th largest when it was last looked for
    alignas(64) LaneInt<T> poisoned[L];
    double below[L], equal[L];
    int64_t count[L];
    Key<T>* candidates[L];
    std::atomic<T>* told[L];
  };

  const LinearTopkArgs& args;
  const T* bias;
  int64_t room;              // for candidates of a row and split
  Key<T>* candidates;        // [split][row][room]
  Peak* peaks;               // [split][row]
  std::atomic<T>* floors;    // [row] logits above this are among the k largest so far of some split, or as large as those

  void begin(State& s, int64_t row, int64_t count, int64_t split, const T* = nullptr) const {
    for (int i = 0; i < L; ++i) {
      s.max[i] = -inf;
      s.told[i] = floors + row + i;
      s.floor[i] = i < count ? s.told[i]->load(std::memory_order_relaxed) : inf;  // nothing is above it in lanes without a row
      s.poisoned[i] = 0;
      s.below[i] = s.equal[i] = 0;
      s.count[i] = 0;
      s.candidates[i] = candidates + (split * args.x.rows + row + i) * room;
    }
  }

  void tile(State& s, T* tile, int64_t first, int64_t count) const {
    turn_into_logits<T, L>(tile, count, T(args.scale), bias ? bias + first : nullptr, Softcap<T>(args.softcap));
    for (int lane = 0; lane < L; lane += kWidth<T>) add_lanes(s, tile + lane, lane, first, count);
  }

  void end(State& s, int64_t row, int64_t count, int64_t split) const {
    for (int64_t i = 0; i < count; ++i) {
      if (s.count[i] > args.k) keep_largest(s, i);
      peaks[split * args.x.rows + row + i] = {double(s.max[i]), s.below[i], s.equal[i], s.count[i], s.poisoned[i] != 0};
    }
  }

 private:
  void add_lanes(State& s, const T* tile, int lane, int64_t first, int64_t count) const {
    Vec<T> top = splat<T>(-inf), sum{};
    for (int64_t j = 0; j < count; ++j) {
      const Vec<T> z = load(tile + j * L);
      top = max_of(z, top);
      sum += z;
    }
    if (any<T>(sum - sum != 0)) look_for_infinities(s, tile, lane, count);
    if (any<T>(top > load(s.floor + lane))) collect(s, tile, lane, first, count);
    const Vec<T> old_max = load(s.max + lane), max = max_of(top, old_max);
    if (any<T>(old_max < max)) raise_max(s, lane, max);
    const Vec<T> peak = max == -inf ? Vec<T>{} : max;
    if (any<T>(~(IntVec<T>)(top < peak))) add_exponentials<true>(s, tile, lane, count, peak);
    else add_exponentials<false>(s, tile, lane, count, peak);
  }

  void look_for_infinities(State& s, const T* tile, int lane, int64_t count) const {
    IntVec<T> bad = load_int<T>(s.poisoned + lane);
    for (int64_t j = 0; j < count; ++j) bad |= ~(IntVec<T>)(load(tile + j * L) < inf);
    store_int<T>(s.poisoned + lane, bad);
  }

  void collect(State& s, const T* tile, int lane, int64_t first, int64_t count) const {
    for (int64_t j = 0; j < count; ++j) {
      const Vec<T> z = load(tile + j * L);
      for (unsigned above = lane_bits((IntVec<T>)(z > load(s.floor + lane))); above; above &= above - 1) {
        const int i = __builtin_ctz(above);
        push(s, lane + i, tile[j * L + i], first + j);
      }
    }
  }

  void push(State& s, int i, T value, int64_t index) const {
    s.candidates[i][s.count[i]++] = key_of(value, index);
    if (s.count[i] == room) keep_largest(s, i);
  }

  void keep_largest(State& s, int i) const {
    Key<T>* own = s.candidates[i];
    std::nth_element(own, own + args.k - 1, own + s.count[i]);
    s.count[i] = args.k;
    const T least = value_of<T>(own[args.k - 1]), told = s.told[i]->load(std::memory_order_relaxed);
    s.floor[i] = std::max(least, told);  // what equals it later is of a higher class; elsewhere it may be of a lower one
    const T below = std::nextafter(least, -inf);
    if (below > told) s.told[i]->store(below, std::memory_order_relaxed);
  }

  void raise_max(State& s, int lane, Vec<T> max) const {
    for (int i = 0; i < kWidth<T>; ++i) {
      Peak p{double(s.max[lane + i]), s.below[lane + i], s.equal[lane + i]};
      p.lower(double(max[i]));
      s.below[lane + i] = p.below, s.equal[lane + i] = p.equal;
    }
    store(s.max + lane, max);
  }

  template <bool AtPeak>
  void add_exponentials(State& s, const T* tile, int lane, int64_t count, Vec<T> peak) const {
    Vec<T> below{}, equal{};
    for (int64_t j = 0; j < count; ++j) {
      const Vec<T> d = load(tile + j * L) - peak, e = exp_nonpositive<T>(d);
      below += AtPeak ? (d < 0 ? e : Vec<T>{}) : e;
      if constexpr (AtPeak) equal += d < 0 ? Vec<T>{} : splat<T>(1);
    }
    for (int i = 0; i < kWidth<T>; ++i) {
      s.below[lane + i] += double(below[i]);
      if constexpr (AtPeak) s.equal[lane + i] += double(equal[i]);
    }
  }
};

// Writes a row from what its splits have found; `all` has room for all of their candidates.
template <class T>
void write_row(const LinearTopkArgs& args, int64_t row, const Plan& plan, const Key<T>* candidates, int64_t room,
               const Peak* peaks, int64_t at, int64_t rows, int64_t total_rows, Key<T>* all) {
  const int64_t k = args.k;
  Peak total = peaks[at];
  int64_t count = 0;
  for (int64_t split = 0; split < plan.splits; ++split) {
    Peak p = peaks[split * rows + at];
    std::memcpy(all + count, candidates + (split * rows + at) * room, p.candidates * sizeof(Key<T>));
    count += p.candidates;
    total.poisoned |= p.poisoned;
    if (split == 0) continue;
    total.lower(p.max);
    p.lower(total.max);
    total.below += p.below, total.equal += p.equal;
  }
  T *values = static_cast<T*>(args.values) + row * k, *sums = static_cast<T*>(args.sums);
  int64_t* indices = args.indices + row * k;
  const T nan = std::numeric_limits<T>::quiet_NaN(), inf = std::numeric_limits<T>::infinity();
  if (total.poisoned) {
    std::fill_n(values, k, nan);
    std::fill_n(indices, k, int64_t(-1));
    sums[row] = sums[total_rows + row] = nan;
    return;
  }
  const bool none = total.max == -inf;
  sums[row] = none ? -inf : T(total.max + total.gap());
  sums[total_rows + row] = none ? nan : T(total.gap());
  const int64_t found = std::min(k, count);
  if (count > k) std::nth_element(all, all + k - 1, all + count);
  std::sort(all, all + found);
  for (int64_t j = 0; j < found; ++j) values[j] = value_of<T>(all[j]), indices[j] = class_of<T>(all[j]);
  if (found == k) return;
  // Every class that is not masked is among them: the rest are the lowest of the masked ones.
  for (int64_t j = 0; j < found; ++j) all[j] = Key<T>(indices[j]);
  std::sort(all, all + found);
  for (int64_t c = 0, next = 0, j = found; j < k; ++c) {
    if (next < found && int64_t(all[next]) == c) ++next;
    else values[j] = -inf, indices[j++] = c;
  }
}

template <class Mode, int NV>
void some_rows(const LinearTopkArgs& args, const Plan& plan, int64_t first_row, int64_t total_rows, int64_t room,
               const typename Mode::T* bias) {
  using T = typename Mode::T;
  const int64_t n = args.x.rows, row_bytes = room * int64_t(sizeof(Key<T>));
  Layout layout;
  const size_t at = layout.add<Key<T>>(plan.splits * n * room), peaks_at = layout.add<Peak>(plan.splits * n);
  const size_t floors_at = layout.add<std::atomic<T>>(n);
  Scratch memory(layout.bytes);
  auto* floors = memory.at<std::atomic<T>>(floors_at);
  for (int64_t i = 0; i < n; ++i) new (floors + i) std::atomic<T>(-std::numeric_limits<T>::infinity());
  LinearTopk<Mode, NV> epilogue{args, bias, room, memory.at<Key<T>>(at), memory.at<Peak>(peaks_at), floors};
  const bool done = with_few_rows<Mode, NV>(args.x, args.w, [&](const auto& products) {
    products.run(n, plan, epilogue, [&](auto& state, int64_t split) { epilogue.begin(state, 0, n, split); });
  });
  if (!done) run_product<Mode, NV>(args.x, args.w, plan, epilogue);
  const int64_t share = round_up(plan.splits * row_bytes, 64);
  Scratch all(share * workers());
  for_blocks(n, 16, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i)
      write_row<T>(args, first_row + i, plan, epilogue.candidates, room, epilogue.peaks, i, n, total_rows,
                   all.at<Key<T>>(worker * share));
  });
}

}  // namespace

void linear_topk(const LinearTopkArgs& args) {
  by_shape(args.x, [&](auto mode, auto nv) {
    using Mode = decltype(mode);
    using T = typename Mode::T;
    const Bias<T> bias(args.bias, args.w.rows);
    const int64_t room = args.k + std::max<int64_t>(args.k, 32);
    // A split begins with k candidates that mean little: at least eight times as many classes each.
    const auto plan_of = [&](int64_t rows) {
      return plan_product<T>(rows, args.w.rows, Mode::depth(args.x.dim), decltype(nv)::value * kWidth<T>,
                             std::min(kMostSplits, std::max<int64_t>(1, args.w.rows / (8 * args.k))));
    };
    const int64_t row_bytes = plan_of(args.x.rows).splits * room * int64_t(sizeof(Key<T>));
    const int64_t at_once = std::max<int64_t>(1024, kCandidateBytes / row_bytes / 1024 * 1024);
    for (int64_t row = 0; row < args.x.rows; row += at_once) {
      LinearTopkArgs part = args;
      part.x = args.x.some(row, std::min(at_once, args.x.rows - row));
      some_rows<Mode, decltype(nv)::value>(part, plan_of(part.x.rows), row, args.x.rows, room, bias.data);
    }
  });
}

}  // namespace ncops::NCOPS_ISA
