// The one page on the statistics of a row of logits: what a share of its classes holds, how two shares join, and the columns
// that a whole row ends as. The CPU, CUDA, Triton (triton_kernels/_logit_state.py) and the reference with the shards of a
// vocabulary (ncops/reference/logit_share.py) keep to these names; planes are ordered as in ncops/backends/planes.py.
//
//   max, argmax            the largest logit, and the lowest index that has it
//   second, second_index   the largest of the others
//   rest                   sum of e^(z - max) over all logits but the one at argmax
//   weighted, squared      sums of e^(z - max) (z - max), and of e^(2 (z - max)) over all logits but the one at argmax
//   count, mean, squares   of the logits; squares: squared deviations from the mean
//   target_logit, rank     the logit of the row's target; how many logits are strictly greater
//   poisoned, masked       there is a NaN or +inf logit; there is a -inf logit
//
// The largest term is 1 and stays out of `rest`: near collapse the others sum up to 1e-9, which 1 + 1e-9 would lose.
// While terms are still added up, those at the maximum are counted apart, in `equal`: rest = below + (equal - 1).
#pragma once

#include <cmath>
#include <limits>

#include "columns.h"

// On the CPU every instruction set has its own copy, or the linker would give old machines the code of new ones.
#if defined(NCOPS_ISA)
#define NCOPS_SHARE_NAMESPACE NCOPS_ISA
#define NCOPS_BOTH inline
#else
#define NCOPS_SHARE_NAMESPACE cuda
#define NCOPS_BOTH __device__ inline
#endif

namespace ncops::NCOPS_SHARE_NAMESPACE {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();

// Sums over e^(z - max): of the terms below the maximum, how many are at it, times z - max, and of the squares of those below.
struct ExpSums {
  double below = 0, equal = 0, weighted = 0, squared = 0;

  // Refers the sums to a maximum that is larger by `rise`.
  NCOPS_BOTH void lower(double rise) {
    const double all = total(), factor = exp(-rise);
    weighted = factor == 0 ? 0 : (weighted - all * rise) * factor;
    below = all * factor;
    squared = (squared + equal) * factor * factor;
    equal = 0;
  }
  NCOPS_BOTH void add(const ExpSums& other) {
    below += other.below;
    equal += other.equal;
    weighted += other.weighted;
    squared += other.squared;
  }
  NCOPS_BOTH double total() const { return below + equal; }
  NCOPS_BOTH double rest() const { return below + (equal - 1); }
};

enum : int { kPoisoned = 1, kMasked = 2 };

// One row of logits, or a row's share of some classes.
struct LogitShare {
  double max, second;
  ExpSums sums;
  double mean, squares;
  int64_t argmax, second_index, count, rank;
  int64_t flags;

  // Joins the share of other classes. Ties go to the lower class index.
  NCOPS_BOTH void merge(const LogitShare& other) {
    LogitShare b = other;
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
    sums.add(b.sums);
    if (b.count > 0) {  // Chan's rule
      const double mine = double(count), added = double(b.count), n = mine + added, delta = b.mean - mean;
      mean += delta * (added / n);
      squares += b.squares + delta * delta * (mine * added / n);
    }
    count += b.count;
    rank += b.rank;
    flags |= b.flags;
  }

  // Every column of the row, in doubles. `label`: of its target; `target_logit` counts where that is a class.
  struct Columns {
    double floats[kFloatColumns];
    int64_t indices[kIndexColumns];
  };
  NCOPS_BOTH Columns finish(int64_t label, int64_t ignore_index, double target_logit) const {
    const bool none = max == -kInf, poisoned = (flags & kPoisoned) != 0, masked = (flags & kMasked) != 0;  // none: all masked
    const double gap = none ? kNaN : log1p(sums.rest());
    Columns c;
    c.floats[kLse] = none ? -kInf : max + gap;
    c.floats[kGap] = gap;
    c.floats[kMax] = max;
    c.floats[kSecond] = count > 1 ? second : -kInf;
    c.floats[kEntropy] = none ? kNaN : gap - sums.weighted / sums.total();
    c.floats[kSumSquaredProb] = none ? kNaN : (sums.squared + sums.equal) / (sums.total() * sums.total());
    c.floats[kMean] = masked ? -kInf : mean;
    c.floats[kVar] = masked ? kNaN : squares / double(count);
    c.indices[kArgmax] = none ? 0 : argmax;
    const int64_t other = c.indices[kArgmax] == 0 ? 1 : 0;
    c.indices[kSecondIndex] = count < 2 ? -1 : c.floats[kSecond] == -kInf ? other : second_index;
    if (poisoned) {
      for (double& value : c.floats) value = kNaN;
      c.indices[kArgmax] = c.indices[kSecondIndex] = -1;
    }
    const bool valid = label != ignore_index, good = label >= 0 && label < count && !poisoned;
    c.floats[kTargetLogit] = !valid ? 0 : good ? target_logit : kNaN;
    c.floats[kNll] = !valid ? 0 : good ? (max - target_logit) + gap : kNaN;
    c.indices[kTargetRank] = valid && good ? rank : -1;
    return c;
  }

 private:
  static NCOPS_BOTH bool before(double u, int64_t i, double v, int64_t j) { return u > v || (u == v && i < j); }
};

// A row's share where shares are wanted, else its columns; without `target` those of an ignored one.
template <class T>
NCOPS_BOTH void write_row(const LogitColumns& out, const LogitShares& shares, int64_t row, const LogitShare& s,
                          const int64_t* target, int64_t ignore_index, T target_logit) {
  if (shares.floats != nullptr) {
    const double floats[kShareFloats] = {(s.flags & kPoisoned) ? kNaN : s.max, s.second, s.sums.rest(), s.sums.weighted,
                                         s.sums.squared + (s.sums.equal - 1), (s.flags & kMasked) ? -kInf : s.mean, s.squares};
    const int64_t indices[kShareIndices] = {s.argmax, s.second_index, s.count, s.rank};
    for (int p = 0; p < kShareFloats; ++p) shares.floats[p * shares.rows + row] = floats[p];
    for (int p = 0; p < kShareIndices; ++p) shares.indices[p * shares.rows + row] = indices[p];
    return;
  }
  const LogitShare::Columns c =
      s.finish(target == nullptr ? ignore_index : target[row], ignore_index, double(target_logit));
  for (int p = 0; p < kFloatColumns; ++p) static_cast<T*>(out.floats)[p * out.rows + row] = T(c.floats[p]);
  for (int p = 0; p < kIndexColumns; ++p) out.indices[p * out.rows + row] = c.indices[p];
}

}  // namespace ncops::NCOPS_SHARE_NAMESPACE
