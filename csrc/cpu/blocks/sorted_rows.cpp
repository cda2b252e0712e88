#include "sorted_rows.h"

#include "../rows.h"

#include <algorithm>
#include <cstring>

namespace ncops {

SortedRows::SortedRows(const int64_t* labels, int64_t rows, int64_t num_classes, int64_t ignore_index)
    : order_(rows * sizeof(int64_t)), starts_((num_classes + 1) * sizeof(int64_t)), num_classes_(num_classes) {
  int64_t* starts = starts_.at<int64_t>();
  int64_t* order = order_.at<int64_t>();
  std::memset(starts, 0, (num_classes + 1) * sizeof(int64_t));
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t c = labels[i];
    if (is_class(c, num_classes, ignore_index)) ++starts[c + 1];
    else invalid_ += c != ignore_index;
  }
  for (int64_t c = 0; c < num_classes; ++c) starts[c + 1] += starts[c];
  kept_ = starts[num_classes];
  // Place each row at its class's cursor; the cursors end one class further on, so shift them back afterwards.
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t c = labels[i];
    if (is_class(c, num_classes, ignore_index)) order[starts[c]++] = i;
  }
  for (int64_t c = num_classes; c > 0; --c) starts[c] = starts[c - 1];
  if (num_classes > 0) starts[0] = 0;
}

int64_t SortedRows::class_at(int64_t position) const {
  return std::upper_bound(starts(), starts() + num_classes_ + 1, position) - starts() - 1;
}

}  // namespace ncops
