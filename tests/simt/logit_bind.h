// What the bindings of linear_stats and logit_stats share: rows and the thirteen columns from arrays.
#pragma once

#include "bind.h"
#include "cuda/kernels.h"
#include "rows_bind.h"

// Columns in the order of the op's schema.
inline ncops::LogitColumns columns_of(const std::vector<simt::Out>& out) {
  const auto ints = [&](int i) { return out.at(i).data<int64_t>(); };
  return {out.at(0).raw(), out.at(1).raw(), out.at(2).raw(), out.at(3).raw(), out.at(4).raw(), out.at(5).raw(), out.at(6).raw(),
          out.at(7).raw(), out.at(8).raw(), ints(9),         ints(10),        ints(11),        out.at(12).data<bool>()};
}
