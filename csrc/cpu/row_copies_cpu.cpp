// row_copies: some rows of a matrix of double, side by side, past the caches: nothing is read of where they go.
#include "blocks/scratch.h"
#include "isa/convert.h"
#include "kernels.h"

namespace ncops::NCOPS_ISA {

void row_copies(const RowCopiesArgs& args) {
  constexpr int W = kWidth<double>;
  const int64_t dim = args.dim;
  const bool aligned = dim % W == 0 && reinterpret_cast<uintptr_t>(args.out) % kVectorBytes == 0;
  for_blocks(args.rows, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const double* from = args.source + args.index[i] * dim;
      double* to = args.out + i * dim;
      if (!aligned) std::memcpy(to, from, dim * sizeof(double));
      else for (int64_t k = 0; k < dim; k += W) stream(to + k, load(from + k));
    }
    finish_streams();
  });
}

}  // namespace ncops::NCOPS_ISA
