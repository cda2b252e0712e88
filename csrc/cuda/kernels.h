// The CUDA kernels as the rest of the extension sees them: device pointers in, device pointers out, one entry per op.
//
// Plain C++: the callers are compiled without nvcc. Nothing here allocates, synchronises or reads back; workspace is device
// memory of at least <op>_workspace(...) bytes, aligned to 256. Errors of a launch are thrown as std::runtime_error.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../cpu/kernels.h"

namespace ncops::cuda {

// ---- class_moments.cuh

// Rows and classes are sorted as 32-bit numbers.
constexpr int64_t kMostRows = (int64_t(1) << 32) - 1, kMostClasses = (int64_t(1) << 32) - 2;

struct ClassMomentsArgs {
  Rows x;
  const int64_t* labels;
  int64_t num_classes, ignore_index;
  const void* center;  // (C, D) in the compute dtype, or null
  int64_t* counts;     // fresh results, all overwritten
  void* sums;
  double* sqnorms;
  int64_t* invalid;
  void *workspace, *stream;
};
void class_moments(const ClassMomentsArgs& args);

struct AccumulateClassMomentsArgs {
  Rows x;
  const int64_t* labels;
  int64_t num_classes, ignore_index;
  int64_t* counts;  // the running state; rows of classes that do not occur are not touched
  void* center;
  double *sums, *sqnorms;
  int64_t* invalid_total;  // of the state: grows by *invalid
  int64_t* invalid;        // of this call; such rows are skipped
  void *workspace, *stream;
};
void accumulate_class_moments(const AccumulateClassMomentsArgs& args);

// 16 bytes a row for the sort, 4 a class, and 2 rows of D in the compute dtype per 8 to 256 sorted rows.
size_t class_moments_workspace(DType dtype, int64_t rows, int64_t dim, int64_t num_classes);

// ---- class_scatter.cuh

struct ClassScatterArgs {
  Rows x;
  const int64_t* labels;  // (N) with centre (C, D); null: every row counts
  int64_t num_classes, ignore_index;
  const void* center;     // (C, D) with labels, else (D) or null; in the compute dtype
  void* out;              // (D, D) in the compute dtype
  void *workspace, *stream;
};
void class_scatter(const ClassScatterArgs& args);

// At most 8 D x D float32, but 4 MB where that is more.
size_t class_scatter_workspace(DType dtype, int64_t rows, int64_t dim);

// ---- logit_stats.cuh

struct LogitStatsArgs : ncops::LogitStatsArgs {
  void *workspace, *stream;
};
void logit_stats(const LogitStatsArgs& args);

// 104 bytes per row and split, where rows are split at all: fewer than 512 rows, or more than 2^20 classes.
size_t logit_stats_workspace(int64_t rows, int64_t classes);

// ---- linear_stats.cuh

struct LinearStatsArgs : ncops::LinearStatsArgs {
  void *workspace, *stream;
};
void linear_stats(const LinearStatsArgs& args);
void linear_stats_targets(const LinearStatsArgs& args);  // without workspace

// 8 bytes a row, and 104 per row and split of the classes; up to 512 splits where the rows are few.
size_t linear_stats_workspace(DType dtype, int64_t rows, int64_t classes);

}  // namespace ncops::cuda
