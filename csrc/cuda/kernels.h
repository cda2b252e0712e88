// The CUDA kernels as the rest of the extension sees them: device pointers in, device pointers out, one entry per op.
//
// Plain C++: the callers are compiled without nvcc. Nothing here allocates, synchronises or reads back; workspace is device
// memory of at least <op>_workspace(...) bytes, aligned to 256. Errors of a launch are thrown as std::runtime_error.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../cpu/kernels.h"

namespace ncops::cuda {

// What every kernel takes besides.
struct OnDevice {
  void *workspace, *stream;
};

// ---- class_moments.cuh

// Rows and classes are sorted as 32-bit numbers.
constexpr int64_t kMostRows = (int64_t(1) << 32) - 1, kMostClasses = (int64_t(1) << 32) - 2;

struct ClassMomentsArgs : ncops::ClassMomentsArgs, OnDevice {};
void class_moments(const ClassMomentsArgs& args);

struct AccumulateClassMomentsArgs : ncops::AccumulateClassMomentsArgs, OnDevice {};
void accumulate_class_moments(const AccumulateClassMomentsArgs& args);

// 16 bytes a row for the sort, 4 a class, and 2 rows of D in the compute dtype per 8 to 256 sorted rows.
size_t class_moments_workspace(DType dtype, int64_t rows, int64_t dim, int64_t num_classes);

// ---- class_scatter.cuh

struct ClassScatterArgs : OnDevice {
  Rows x;
  const int64_t* labels;  // (N) with centre (C, D); null: every row counts
  int64_t num_classes, ignore_index;
  const void* center;     // (C, D) with labels, else (D) or null; in the compute dtype
  void* out;              // (D, D) in the compute dtype
};
void class_scatter(const ClassScatterArgs& args);

// At most 8 D x D float32, but 4 MB where that is more.
size_t class_scatter_workspace(DType dtype, int64_t rows, int64_t dim);

// ---- logit_stats.cuh

struct LogitStatsArgs : ncops::LogitStatsArgs, OnDevice {};
void logit_stats(const LogitStatsArgs& args);

// 104 bytes per row and split, where rows are split at all: fewer than 512 rows, or more than 2^20 classes.
size_t logit_stats_workspace(int64_t rows, int64_t classes);

// ---- linear_stats.cuh

struct LinearStatsArgs : ncops::LinearStatsArgs, OnDevice {};
void linear_stats(const LinearStatsArgs& args);
void linear_stats_targets(const LinearStatsArgs& args);  // without workspace

// 8 bytes a row, and 104 per row and split of the classes; up to 512 splits where the rows are few.
size_t linear_stats_workspace(DType dtype, int64_t rows, int64_t classes);

}  // namespace ncops::cuda
