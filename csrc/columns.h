// The columns of linear_stats and logit_stats as memory: planes of one number per row, ordered as in ncops/backends/planes.py.
#pragma once

#include <cstdint>

namespace ncops {

enum FloatColumn : int { kLse, kGap, kMax, kSecond, kTargetLogit, kNll, kEntropy, kMean, kVar, kSumSquaredProb, kFloatColumns };
enum IndexColumn : int { kArgmax, kSecondIndex, kTargetRank, kIndexColumns };

// The columns of linear_divergence and logit_divergence, in the same way.
namespace divergence {
enum Column : int {
  kKl, kReverseKl, kJs, kOverlap, kEntropy, kOtherEntropy, kLse, kOtherLse, kShift, kMixtureKl, kOtherMixtureKl, kBelow, kColumns
};
// Of some of the classes, by themselves: columns, the largest logit of each side and where it is.
enum SharePlane : int {
  kShareKl, kShareReverseKl, kShareEntropy, kShareOtherEntropy, kShareLse, kShareOtherLse, kShareShift, kShareMax, kShareOtherMax,
  kShareFloats
};
enum ShareIndex : int { kShareArgmax, kShareOtherArgmax, kShareIndices };
// Sums over some of the classes, as part of all of them.
enum Ratio : int { kSumMixtureKl, kSumOtherMixtureKl, kSumOverlap, kSumBelow, kRatios };
}

// The columns of `rows` rows, plane after plane; floats in the compute dtype.
struct LogitColumns {
  void* floats = nullptr;       // (kFloatColumns, rows)
  int64_t* indices = nullptr;   // (kIndexColumns, rows)
  int64_t rows = 0;
};

// Rows that stay shares (logit_share.h), plane after plane.
struct LogitShares {
  double* floats = nullptr;     // (kShareFloats, rows); the max of a poisoned row is NaN, the mean of a masked one -inf
  int64_t* indices = nullptr;   // (kShareIndices, rows)
  int64_t rows = 0;
};
constexpr int kShareFloats = 7, kShareIndices = 4;

}  // namespace ncops
