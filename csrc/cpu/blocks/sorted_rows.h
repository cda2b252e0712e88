// Rows grouped by label, in their own order inside a class: a stable counting sort, compiled once (sorted_rows.cpp).
#pragma once

#include <cstdint>

#include "scratch.h"

namespace ncops {

class SortedRows {
 public:
  SortedRows(const int64_t* labels, int64_t rows, int64_t num_classes, int64_t ignore_index);

  const int64_t* order() const { return order_.at<int64_t>(); }      // (kept) row numbers, ascending by class then row
  const int64_t* starts() const { return starts_.at<int64_t>(); }    // (C + 1) where each class begins in order
  int64_t class_at(int64_t position) const;                          // the class of order()[position]
  int64_t num_classes() const { return num_classes_; }
  int64_t kept() const { return kept_; }
  int64_t invalid() const { return invalid_; }                       // labels outside [0, C) other than ignore_index

 private:
  Scratch order_, starts_;
  int64_t num_classes_;
  int64_t kept_ = 0, invalid_ = 0;
};

}  // namespace ncops
