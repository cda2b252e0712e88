// Rows, as the kernels take them, from an array.
#pragma once

#include "bind.h"
#include "cpu/rows.h"

inline ncops::Rows rows_of(const simt::In& x) {
  using ncops::DType;
  ncops::Rows rows;
  rows.data = x.raw();
  rows.dtype = x.dtype() == "float64"    ? DType::f64
               : x.dtype() == "bfloat16" ? DType::bf16
               : x.dtype() == "float16"  ? DType::f16
                                         : DType::f32;
  rows.rows = x.size(0);
  rows.dim = x.dim() == 2 ? x.size(1) : 1;
  rows.row_stride = x.stride(0);
  rows.col_stride = x.dim() == 2 ? x.stride(1) : 1;
  return rows;
}
