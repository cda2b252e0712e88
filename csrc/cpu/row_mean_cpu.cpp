// row_mean: the mean of rows in double, the origin that centred products are formed about.
#include "kernels.h"
#include "pack.h"
#include "scratch.h"

namespace ncops::NCOPS_ISA {

void row_mean(const RowMeanArgs& args) {
  const Rows& x = args.rows;
  for_tasks((x.dim + kLoadBlock - 1) / kLoadBlock, [&](int64_t task, int) {
    const int64_t k = task * kLoadBlock, n = std::min(kLoadBlock, x.dim - k);
    double total[kLoadBlock] = {}, block[kLoadBlock];
    for (int64_t r = 0; r < x.rows; ++r) {
      load_raw<double>(x, x.index ? x.index[r] : r, k, n, block);
      for (int64_t i = 0; i < n; ++i) total[i] += block[i];
    }
    for (int64_t i = 0; i < n; ++i) args.out[k + i] = x.rows > 0 ? total[i] / double(x.rows) : 0.0;
  });
}

}  // namespace ncops::NCOPS_ISA
