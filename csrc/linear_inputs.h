// What the ops of a linear classifier take alike.
#pragma once

#include "tensors.h"

namespace ncops {

// Rows, classifier and targets, checked; returns the dense bias and target that args points into.
template <class Args>
inline std::array<OptionalTensor, 2> attach(Args& args, const Tensor& x, const Tensor& weight, const OptionalTensor& given_bias,
                                            const OptionalTensor& target, double scale, double softcap, int64_t ignore_index) {
  args.x = rows_of(x, "x", &x);
  args.w = rows_of(weight, "weight", &x);
  STD_TORCH_CHECK(args.w.dtype == args.x.dtype, "weight: expected the dtype of x");
  STD_TORCH_CHECK(args.w.rows > 0, "weight: expected at least one row");
  check_size(weight, "weight", 1, args.x.dim);
  OptionalTensor bias;
  if (given_bias) {
    bias = dense(*given_bias, "bias", x.scalar_type(), &x);
    check_size(*bias, "bias", 0, args.w.rows);
    args.bias.data = data_of(*bias);
    args.bias.dtype = args.x.dtype;
  }
  return {bias, attach_target(args, target, args.x.rows, x, scale, softcap, ignore_index)};
}

}  // namespace ncops
