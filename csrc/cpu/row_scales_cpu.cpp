// row_scales: one over the norm of each row, for kernels of unit rows, in double.
#include "blocks/load.h"
#include "blocks/scratch.h"
#include "kernels.h"

namespace ncops::NCOPS_ISA {

void row_scales(const RowScalesArgs& args) {
  const Rows& x = args.rows;
  for_blocks(x.rows, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const double norm = std::sqrt(squared_norm<double>(x, r));
      args.out[x.stored(r)] = norm == 0 && args.least == 0 ? std::numeric_limits<double>::quiet_NaN()
                                                           : 1 / (norm < args.least ? args.least : norm);
    }
  });
}

}  // namespace ncops::NCOPS_ISA
