// linear_topk: a product whose tiles leave the largest logits of each row, and the log-sum-exp of all of them.
#include "blocks/few_rows.h"
#include "largest.h"
#include "linear_logits.h"

namespace ncops::NCOPS_ISA {
namespace {

// Of some classes of a row: the largest logit, the sum of e^(z - max) below it and how many are at it.
struct Peak {
  double max, below, equal;
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
    Largest<T, L> largest;
    alignas(64) T max[L];
    alignas(64) LaneInt<T> poisoned[L];
    double below[L], equal[L];
  };

  const LinearTopkArgs& args;
  const T* bias;
  const Candidates<T>& candidates;
  Peak* peaks;  // [split][row]

  void begin(State& s, int64_t row, int64_t count, int64_t split, const T* = nullptr) const {
    s.largest.begin(candidates, row, count, split);
    for (int i = 0; i < L; ++i) {
      s.max[i] = -inf;
      s.poisoned[i] = 0;
      s.below[i] = s.equal[i] = 0;
    }
  }

  void tile(State& s, T* tile, int64_t first, int64_t count) const {
    turn_into_logits<T, L>(tile, count, T(args.scale), bias ? bias + first : nullptr, Softcap<T>(args.softcap));
    for (int lane = 0; lane < L; lane += kWidth<T>) add_lanes(s, tile + lane, lane, first, count);
  }

  void end(State& s, int64_t row, int64_t count, int64_t split) const {
    s.largest.end(candidates, row, count, split);
    for (int64_t i = 0; i < count; ++i)
      peaks[split * args.x.rows + row + i] = {double(s.max[i]), s.below[i], s.equal[i], s.poisoned[i] != 0};
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
    s.largest.add(tile, lane, top, first, count);
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

  void raise_max(State& s, int lane, Vec<T> max) const {
    for (int i = 0; i < kWidth<T>; ++i) {
      Peak p{double(s.max[lane + i]), s.below[lane + i], s.equal[lane + i], false};
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

// Writes row `at` of a range, which is row `row` of all, from what its splits have found.
template <class T>
void write_row(const LinearTopkArgs& args, int64_t row, int64_t total_rows, const Candidates<T>& candidates, const Peak* peaks,
               int64_t at, Key<T>* best) {
  const int64_t k = args.k;
  Peak total = peaks[at];
  for (int64_t split = 1; split < candidates.splits; ++split) {
    Peak p = peaks[split * candidates.rows + at];
    total.lower(p.max);
    p.lower(total.max);
    total.below += p.below, total.equal += p.equal;
    total.poisoned |= p.poisoned;
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
  const int64_t found = candidates.best(at, best);
  for (int64_t j = 0; j < found; ++j) values[j] = value_of<T>(best[j]), indices[j] = class_of<T>(best[j]);
  if (found == k) return;
  // Every class that is not masked is among them: the rest are the lowest of the masked ones.
  for (int64_t j = 0; j < found; ++j) best[j] = Key<T>(indices[j]);
  std::sort(best, best + found);
  for (int64_t c = 0, next = 0, j = found; j < k; ++c) {
    if (next < found && int64_t(best[next]) == c) ++next;
    else values[j] = -inf, indices[j++] = c;
  }
}

template <class Mode, int NV>
void some_rows(const LinearTopkArgs& args, const Plan& plan, int64_t first_row, int64_t total_rows, const typename Mode::T* bias) {
  using T = typename Mode::T;
  const int64_t n = args.x.rows;
  const Candidates<T> candidates(args.k, n, plan.splits);
  Scratch peaks(plan.splits * n * sizeof(Peak));
  LinearTopk<Mode, NV> epilogue{args, bias, candidates, peaks.at<Peak>()};
  const bool done = with_few_rows<Mode, NV>(args.x, args.w, [&](const auto& products) {
    products.run(n, plan, epilogue, [&](auto& state, int64_t split) { epilogue.begin(state, 0, n, split); });
  });
  if (!done) run_product<Mode, NV>(args.x, args.w, plan, epilogue);
  for_each_best(candidates, [&](int64_t row, Key<T>* memory) {
    write_row<T>(args, first_row + row, total_rows, candidates, peaks.at<Peak>(), row, memory);
  });
}

}  // namespace

void linear_topk(const LinearTopkArgs& args) {
  by_shape(args.x, [&](auto mode, auto nv) {
    using Mode = decltype(mode);
    using T = typename Mode::T;
    const Bias<T> bias(args.bias, args.w.rows);
    const auto plan_of = [&](int64_t rows) {
      return plan_product<T>(rows, args.w.rows, Mode::depth(args.x.dim), decltype(nv)::value * kWidth<T>,
                             Candidates<T>::most_splits(args.k, args.w.rows));
    };
    const int64_t at_once = Candidates<T>::rows_at_once(args.k, plan_of(args.x.rows).splits);
    for (int64_t row = 0; row < args.x.rows; row += at_once) {
      LinearTopkArgs part = args;
      part.x = args.x.some(row, std::min(at_once, args.x.rows - row));
      some_rows<Mode, decltype(nv)::value>(part, plan_of(part.x.rows), row, args.x.rows, bias.data);
    }
  });
}

}  // namespace ncops::NCOPS_ISA
