// What the ops of a linear classifier take alike.
#pragma once

#include "tensors.h"

namespace ncops {

// The rows of a classifier of rows like `x_rows`, checked.
inline Rows classifier_of(const Tensor& weight, const char* name, const Tensor& x, const Rows& x_rows) {
  const Rows w = rows_of(weight, name, &x);
  STD_TORCH_CHECK(w.dtype == x_rows.dtype, name, ": expected the dtype of x");
  STD_TORCH_CHECK(w.rows > 0, name, ": expected at least one row");
  check_size(weight, name, 1, x_rows.dim);
  return w;
}

// A bias of the classifier w, where there is one; returns the dense tensor that `bias` points into.
inline OptionalTensor attach_bias(Rows& bias, const OptionalTensor& given, const char* name, const Tensor& x, const Rows& w) {
  if (!given) return std::nullopt;
  OptionalTensor out = dense(*given, name, x.scalar_type(), &x);
  check_size(*out, name, 0, w.rows);
  bias.data = data_of(*out);
  bias.dtype = w.dtype;
  return out;
}

// Rows, classifier and targets, checked; returns the dense bias and target that args points into.
template <class Args>
inline std::array<OptionalTensor, 2> attach(Args& args, const Tensor& x, const Tensor& weight, const OptionalTensor& given_bias,
                                            const OptionalTensor& target, double scale, double softcap, int64_t ignore_index) {
  args.x = rows_of(x, "x", &x);
  args.w = classifier_of(weight, "weight", x, args.x);
  return {attach_bias(args.bias, given_bias, "bias", x, args.w),
          attach_target(args, target, args.x.rows, x, scale, softcap, ignore_index)};
}

}  // namespace ncops
