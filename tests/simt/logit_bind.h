// What the bindings of linear_stats and logit_stats share: rows and planes from arrays.
#pragma once

#include "bind.h"
#include "cuda/kernels.h"
#include "rows_bind.h"

inline ncops::LogitColumns columns_of(const simt::Out& floats, const simt::Out& indices) {
  return {floats.raw(), indices.data<int64_t>(), floats.size(1)};
}
inline ncops::LogitShares shares_of(const simt::Out& floats, const simt::Out& indices) {
  return {floats.data<double>(), indices.data<int64_t>(), floats.size(1)};
}
