// row_mean and row_center: the mean of rows, or a point amid most of them, in double: origins of centred products.
#include "blocks/load.h"
#include "blocks/scratch.h"
#include "kernels.h"

namespace ncops::NCOPS_ISA {

void row_mean(const RowMeanArgs& args) {
  const Rows& x = args.rows;
  for_blocks(x.dim, kLoadBlock, [&](int64_t k, int64_t end, int) {
    const int64_t n = end - k;
    double total[kLoadBlock] = {}, block[kLoadBlock];
    for (int64_t r = 0; r < x.rows; ++r) {
      load_raw<double>(x, x.stored(r), k, n, block);
      for (int64_t i = 0; i < n; ++i) total[i] += block[i];
    }
    for (int64_t i = 0; i < n; ++i) args.out[k + i] = x.rows > 0 ? total[i] / double(x.rows) : 0.0;
  });
}

// One far row drags the mean away from all others, whose products about it then agree in every digit that tells them apart.
void row_center(const RowMeanArgs& args) {
  constexpr int64_t most = 63;
  const Rows& x = args.rows;
  NCOPS_ISA::row_mean(args);
  if (x.rows == 0) return;
  for_blocks(x.dim, kLoadBlock, [&](int64_t k, int64_t end, int) {
    const int64_t n = end - k;
    Scratch memory(size_t(most) * kLoadBlock * sizeof(double));
    double* sample = memory.at<double>();  // [column][most]
    for (int64_t i = 0; i < most; ++i) {
      const int64_t r = i * x.rows / most;
      double block[kLoadBlock];
      load_raw<double>(x, x.stored(r), k, n, block);
      for (int64_t j = 0; j < n; ++j) sample[j * most + i] = block[j];
    }
    for (int64_t j = 0; j < n; ++j) {
      if (!std::isfinite(args.out[k + j])) continue;  // a row that is not finite spoils the origin, as it does the mean
      double* column = sample + j * most;
      std::nth_element(column, column + most / 2, column + most);
      args.out[k + j] = column[most / 2];
    }
  });
}

}  // namespace ncops::NCOPS_ISA
