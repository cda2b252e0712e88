#include "sorted_rows.h"

#include "../rows.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace ncops {

// Each of a few parts of the rows counts its labels, and then places its rows behind those of the parts before it: the order is
// that of one part. class_moments of 1M rows of one column on two threads: 26 -> 20 ms.
SortedRows::SortedRows(const int64_t* labels, int64_t rows, int64_t num_classes, int64_t ignore_index)
    : order_(rows * sizeof(int64_t)), starts_((num_classes + 1) * sizeof(int64_t)), num_classes_(num_classes) {
  int64_t* starts = starts_.at<int64_t>();
  int64_t* order = order_.at<int64_t>();
  const int64_t parts = std::clamp<int64_t>(2 * rows / std::max<int64_t>(num_classes, 16384), 1, std::min(workers(), 8));
  const int64_t width = num_classes + 1, size = pieces(rows, parts);  // the last count of a part: its invalid labels
  Scratch counts(parts * width * sizeof(int64_t));
  const auto for_rows = [&](auto visit) {
    for_tasks(parts, [&](int64_t part, int) {
      int64_t* own = counts.at<int64_t>() + part * width;
      for (int64_t i = part * size; i < std::min(rows, (part + 1) * size); ++i) visit(own, i, labels[i]);
    });
  };
  std::memset(counts.at<int64_t>(), 0, parts * width * sizeof(int64_t));
  for_rows([&](int64_t* own, int64_t, int64_t c) {
    if (is_class(c, num_classes, ignore_index)) ++own[c];
    else own[num_classes] += c != ignore_index;
  });
  for (int64_t c = 0; c < width; ++c) {
    starts[c] = kept_;
    for (int64_t part = 0; part < parts; ++part) {
      int64_t& own = counts.at<int64_t>()[part * width + c];
      if (c == num_classes) invalid_ += own;
      else kept_ += std::exchange(own, kept_);
    }
  }
  for_rows([&](int64_t* own, int64_t i, int64_t c) {
    if (is_class(c, num_classes, ignore_index)) order[own[c]++] = i;
  });
}

int64_t SortedRows::class_at(int64_t position) const {
  return std::upper_bound(starts(), starts() + num_classes_ + 1, position) - starts() - 1;
}

}  // namespace ncops
