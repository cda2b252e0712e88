// The kernels as the rest of the extension sees them: plain pointers in, plain pointers out, one entry per op.
#pragma once

#include <cstdint>

#include "../columns.h"
#include "isa/dispatch.h"
#include "rows.h"

namespace ncops {

// What the kernels of logits take alike.
struct LogitOptions {
  const int64_t* target = nullptr;  // (N), or null
  double scale = 1;
  double softcap = 0;  // c: a logit z is c tanh(z / c), unless it is an infinity; 0: none
  int64_t ignore_index = -100;
};

struct LinearStatsArgs : LogitOptions {
  Rows x, w;
  Rows bias;                        // one row of V, or data == nullptr
  void* target_logit = nullptr;     // (N) in the compute dtype; result of linear_stats_targets: +inf where there is no class
  LogitColumns out;                 // either the columns, ...
  LogitShares shares;               // ... or shares, whose ranks are counted against target_logit, where that is not null
};
NCOPS_KERNEL(linear_stats, LinearStatsArgs)
NCOPS_KERNEL(linear_stats_targets, LinearStatsArgs)

struct LinearTopkArgs {
  Rows x, w, bias;       // bias: one row of V, or data == nullptr
  int64_t k = 1;         // of at most V
  double scale = 1, softcap = 0;
  // (N, k) and, planes of N, the log-sum-exp and what it is above the largest, in the compute dtype; (N, k) classes.
  void *values = nullptr, *sums = nullptr;
  int64_t* indices = nullptr;
};
NCOPS_KERNEL(linear_topk, LinearTopkArgs)

// What the gradient by a row's logits needs besides the logits; see logit_gradient.h.
struct LogitBackward : LogitOptions {
  const void* grad = nullptr;        // (kFloatColumns, N) by the float columns, in the compute dtype, as are ...
  const void* floats = nullptr;      // ... (kFloatColumns, N) those columns
  const int64_t* indices = nullptr;  // (kIndexColumns, N)
  int64_t rows = 0;
};
struct LinearStatsBackwardArgs : LogitBackward {
  Rows x, w, bias;
  void *g_x = nullptr, *g_weight = nullptr, *g_bias = nullptr;  // (N, D), (V, D), (V) in the compute dtype; null: not wanted
};
NCOPS_KERNEL(linear_stats_backward, LinearStatsBackwardArgs)

// What each row's columns count for in its loss: linear_loss's coefficients, ordered as in ncops/backends/planes.py.
enum LossTerm : int { kOfNll, kOfLse, kOfLseSquared, kOfEntropy, kOfMean, kLossTerms };
struct LinearLossArgs : LogitOptions {
  Rows x, w, bias;
  const double* coefficients = nullptr;                         // (N, kLossTerms)
  LogitColumns out;
  int64_t total = 0;                                            // rows of g_x: those that x leaves out get zero
  void *g_x = nullptr, *g_weight = nullptr, *g_bias = nullptr;  // (total, D) in the dtype of x; (V, D), (V) in the compute dtype
};
NCOPS_KERNEL(linear_loss, LinearLossArgs)

struct DivergenceArgs {
  double scale = 1, softcap = 0, beta = 0.5;
  // Planes (divergence::kColumns, N) in the compute dtype:
  void* out = nullptr;                            // of a forward, with ...
  bool* agree = nullptr;                          // ... (N)
  const void *grad = nullptr, *floats = nullptr;  // of a backward: the gradient by the columns, and the columns
};
struct LinearDivergenceArgs : DivergenceArgs {
  Rows x, w, other, other_w, bias, other_bias;
  bool one_head = false;  // other_w and other_bias are w and bias
  // In the compute dtype but for those of x and other; null: not wanted. With one head its gradient is that of both.
  void *g_x = nullptr, *g_weight = nullptr, *g_other = nullptr, *g_other_weight = nullptr, *g_bias = nullptr, *g_other_bias = nullptr;
  // Instead of `out`, of some of the classes, planes in float64; see columns.h:
  double* share_floats = nullptr;                          // by themselves (divergence::kShareFloats, N), with ...
  int64_t* share_indices = nullptr;                        // ... (divergence::kShareIndices, N)
  double* ratios = nullptr;                                // as part of all (divergence::kRatios, N), ...
  const double* whole = nullptr;                           // ... of which lse, other_lse and shift are these (3, N)
};
NCOPS_KERNEL(linear_divergence, LinearDivergenceArgs)
NCOPS_KERNEL(linear_divergence_backward, LinearDivergenceArgs)

struct LogitDivergenceArgs : DivergenceArgs {
  Rows logits, other;
  void *g_logits = nullptr, *g_other = nullptr;  // (N, V) dense, in the dtype of the logits; null: not wanted
};
NCOPS_KERNEL(logit_divergence, LogitDivergenceArgs)
NCOPS_KERNEL(logit_divergence_backward, LogitDivergenceArgs)

struct LogitStatsArgs : LogitOptions {
  Rows logits;
  LogitColumns out;
};
NCOPS_KERNEL(logit_stats, LogitStatsArgs)

struct LogitStatsBackwardArgs : LogitBackward {
  Rows logits;
  void* g_logits;  // (N, V) dense, in the dtype of the logits
};
NCOPS_KERNEL(logit_stats_backward, LogitStatsBackwardArgs)

struct RegisterProductsArgs {
  DType dtype;
  int64_t steps;
  double* flops;
};
NCOPS_KERNEL(register_products, RegisterProductsArgs)

struct ReadMemoryArgs {
  Rows rows;  // one row of float32
};
NCOPS_KERNEL(read_memory, ReadMemoryArgs)

struct RowMeanArgs {
  Rows rows;
  double* out;  // (D); zero where there are no rows
};
NCOPS_KERNEL(row_mean, RowMeanArgs)
NCOPS_KERNEL(row_center, RowMeanArgs)  // a point amid most rows: coordinate-wise median of up to 63, evenly spaced

struct RowScalesArgs {
  Rows rows;
  double least;  // of the norms; 0: a zero row has NaN
  double* out;   // by stored row: 1 / norm
};
NCOPS_KERNEL(row_scales, RowScalesArgs)

struct NearestClassMeanArgs {
  Rows x, means;               // offset already set on both: a point amid the valid means
  const bool* valid = nullptr;  // (C), or null
  void* sqdist;
  int64_t* index;
};
NCOPS_KERNEL(nearest_class_mean, NearestClassMeanArgs)

struct NearestNeighborsArgs {
  Rows x, rows;
  const bool* valid = nullptr;  // (rows), or null
  bool exclude_self = false;    // x and rows are the same
  int64_t k = 1;                // of at most all rows
  void* sqdist = nullptr;       // (N, k) in the compute dtype
  int64_t* index = nullptr;     // (N, k)
};
NCOPS_KERNEL(nearest_neighbors, NearestNeighborsArgs)

struct ProjectedSqnormsArgs {
  Rows x, basis;
  const bool* keep = nullptr;  // (N), rows that are not ignored; null: all
  void* out;
};
NCOPS_KERNEL(projected_sqnorms, ProjectedSqnormsArgs)

struct ProjectedSqnormsBackwardArgs {
  Rows x;                        // only the rows that count and have a gradient
  Rows basis;                    // (r, D) in the compute dtype
  const void* factor = nullptr;  // by stored row, in the compute dtype: twice the gradient; null: ones
  int64_t total = 0;             // rows of g_x: those that x leaves out get zero
  void* g_x = nullptr;           // (total, D) in the dtype of x, may be x's own memory; null: not wanted
  void* g_basis = nullptr;       // (r, D) in the compute dtype; null: not wanted
};
NCOPS_KERNEL(projected_sqnorms_backward, ProjectedSqnormsBackwardArgs)

struct ClassScatterArgs {
  Rows x;  // only the rows that count
  void* out;
};
NCOPS_KERNEL(class_scatter, ClassScatterArgs)

// Sums of factor * weight * (x - center) per class, or over all rows where x has no labels. Rows of weight 0 are not looked at.
struct ClassSumsArgs {
  Rows x;
  int64_t num_classes, ignore_index;  // one class without labels
  const void* weights = nullptr;  // (N) in the compute dtype; null: ones
  double factor = 1;
  void* out;                      // (C, D), or (D) without labels, in the compute dtype
};
NCOPS_KERNEL(class_sums, ClassSumsArgs)

struct ClassScatterBackwardArgs {
  Rows x;                    // only the rows that count
  Rows g;                    // (D, D) in the compute dtype
  int64_t total = 0;         // rows of g_x: those that x leaves out get zero
  void* g_x = nullptr;       // (total, D) in the dtype of x; null: not wanted
  int64_t centers = 0;
  void* g_center = nullptr;  // (centers, D) in the compute dtype, in place: minus class_sums in, gradient out; null: not wanted
};
NCOPS_KERNEL(class_scatter_backward, ClassScatterBackwardArgs)

struct LabelledRows {
  Rows x;
  const int64_t* labels;  // (N)
  int64_t num_classes, ignore_index;
};

struct ClassMomentsArgs : LabelledRows {
  const void* center;  // (C, D) in the compute dtype, or null
  int64_t* counts;     // fresh results, all overwritten
  void* sums;
  double* sqnorms;
  int64_t* invalid;
};
NCOPS_KERNEL(class_moments, ClassMomentsArgs)

struct ClassMomentsBackwardArgs : LabelledRows {
  const void* center;       // (C, D) in the compute dtype, or null
  Rows g_sums;              // (C, D) in the compute dtype
  const double* g_sqnorms;  // (C)
  void* g_x;                // (N, D) in the dtype of x
};
NCOPS_KERNEL(class_moments_backward, ClassMomentsBackwardArgs)

struct AccumulateClassMomentsArgs : LabelledRows {
  int64_t* counts;  // the running state; rows of classes that do not occur are not touched
  void* center;
  double *sums, *sqnorms;
  int64_t* invalid_total;  // of the state: grows by *invalid on CUDA, ...
  int64_t* invalid;        // ... labels of this call, which are skipped there; here nothing has changed when it is not zero
};
NCOPS_KERNEL(accumulate_class_moments, AccumulateClassMomentsArgs)

enum class PairKernel { dot, cosine, angle, distance, log_distance, riesz, gaussian, cdnv };
static constexpr bool is_distance(PairKernel kernel) { return kernel >= PairKernel::distance; }
// Pairs are counted apart where there are labels: those of one class first, then the others. All sides are one behind the other.
struct PairStatsArgs {
  Rows rows;  // the K valid rows, gathered by index; offset set for the distance kernels, scale (1 / norm) for angle
  PairKernel kernel;
  const double* variances = nullptr;  // (K), gathered
  double power = 1;
  int sides = 1;
  const int64_t* labels = nullptr;  // (K), gathered, below `classes`; with 2 sides
  int64_t classes = 0;
  double *mean, *var, *min, *max;  // (sides)
  double* row_max;                 // (sides, K)
  int64_t *count, *row_argmax;     // (sides), (sides, K); row_argmax indexes the gathered rows
};
NCOPS_KERNEL(pair_stats, PairStatsArgs)

struct PairStatsBackwardArgs {
  Rows rows;  // as in the forward
  PairKernel kernel;
  const double* variances = nullptr;
  double power = 1;
  int sides = 1;
  const int64_t* labels = nullptr;
  int64_t classes = 0;
  double share[2] = {0, 0};        // by side: gradient by the value of each ordered pair, through the mean
  const double* g_row_max;         // (sides, K), gathered; 0 where there is no partner
  const int64_t* partner;          // (sides, K) the row that gives row_max, among the gathered ones; -1: none
  int64_t total = 0;               // rows of g_rows: those that are not gathered get zero
  void* g_rows;                    // (total, D) in the dtype of rows
  double* g_variances = nullptr;   // (K), gathered, for cdnv
};
NCOPS_KERNEL(pair_stats_backward, PairStatsBackwardArgs)

}  // namespace ncops
