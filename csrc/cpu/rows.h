// Rows of a matrix as the kernels see them: any dtype, any strides, optionally gathered and scaled, minus a centre.
#pragma once

#include <cstdint>

namespace ncops {

enum class DType : int { f32, f64, bf16, f16 };
static constexpr bool is_half(DType dtype) { return dtype == DType::bf16 || dtype == DType::f16; }
static constexpr int64_t element_bytes(DType dtype) { return is_half(dtype) ? 2 : dtype == DType::f64 ? 8 : 4; }

// Whether a label is a class: any other value but ignore_index is an error, which callers report or count.
static inline bool is_class(int64_t label, int64_t num_classes, int64_t ignore_index) {
  return label >= 0 && label < num_classes && label != ignore_index;
}

struct Rows {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t rows = 0, dim = 0;
  int64_t row_stride = 0, col_stride = 1;   // in elements
  const int64_t* index = nullptr;           // row r is stored at index[r]
  const double* scale = nullptr;            // by stored row: what a row is multiplied by, in double, before anything is subtracted
  const int64_t* labels = nullptr;          // by stored row, with `center`: centre + labels[...] * dim is a row's ...
  const void* center = nullptr;             // ... in the compute dtype; without labels one centre serves all rows
  const double* offset = nullptr;           // (dim) subtracted in double before rounding to the compute dtype

  int64_t stored(int64_t r) const { return index ? index[r] : r; }
  const char* at(int64_t r) const { return static_cast<const char*>(data) + stored(r) * row_stride * element_bytes(dtype); }
  // Rows [first, first + count), of those without labels.
  Rows some(int64_t first, int64_t count) const {
    Rows part = *this;
    if (index) part.index += first;
    else part.data = static_cast<const char*>(data) + first * row_stride * element_bytes(dtype);
    part.rows = count;
    return part;
  }
};

}  // namespace ncops
