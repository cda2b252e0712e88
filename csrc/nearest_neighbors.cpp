#include "tensors.h"

namespace ncops {

static std::tuple<Tensor, Tensor> nearest_neighbors_cpu(const Tensor& x, const OptionalTensor& given, int64_t k,
                                                        const OptionalTensor& valid, bool /*allow_tf32: always exact*/) {
  NearestNeighborsArgs args;
  const Tensor& rows = given ? *given : x;
  args.x = rows_of(x, "x");
  args.rows = rows_of(rows, "rows");
  STD_TORCH_CHECK(args.rows.dtype == args.x.dtype, "rows: expected the dtype of x");
  check_size(rows, "rows", 1, args.x.dim);
  STD_TORCH_CHECK(args.rows.rows <= INT32_MAX, "rows: expected fewer than 2^31 rows, got ", args.rows.rows);
  STD_TORCH_CHECK(k >= 1 && k <= args.rows.rows, "k: expected 1 to ", args.rows.rows, ", got ", k);
  OptionalTensor mask;
  if (valid) {
    mask = dense(*valid, "valid", ScalarType::Bool);
    check_size(*mask, "valid", 0, args.rows.rows);
    args.valid = pointer<bool>(mask);
  }
  args.k = k;
  args.exclude_self = !given;
  const Tensor sqdist = fresh(x, {args.x.rows, k}, compute_type(x)), index = fresh(x, {args.x.rows, k}, ScalarType::Long);
  args.sqdist = writable(sqdist);
  args.index = writable<int64_t>(index);
  nearest_neighbors(args);
  return {sqdist, index};
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) { m.impl("nearest_neighbors", TORCH_BOX(&nearest_neighbors_cpu)); }

}  // namespace ncops
