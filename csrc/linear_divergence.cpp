#include "linear_inputs.h"

namespace ncops {
namespace {

// What forward and backward take alike, checked. Holds the dense copies that args points into.
struct Attached {
  LinearDivergenceArgs args;
  std::vector<Tensor> held;

  Attached(const Tensor& x, const Tensor& weight, const Tensor& other, const OptionalTensor& other_weight, const OptionalTensor& bias,
           const OptionalTensor& other_bias, double scale, double softcap, double beta) {
    args.scale = scale, args.softcap = softcap, args.beta = beta;
    args.one_head = !other_weight;
    STD_TORCH_CHECK(other_weight || !other_bias, "other_bias: expected none without other_weight");
    args.x = rows_of(x, "x", &x);
    args.w = classifier_of(weight, "weight", x, args.x);
    args.other = rows_of(other, "other", &x);
    args.other_w = other_weight ? classifier_of(*other_weight, "other_weight", x, args.other) : args.w;
    STD_TORCH_CHECK(args.other.dtype == args.x.dtype && args.other_w.dtype == args.x.dtype, "other: expected the dtype of x");
    STD_TORCH_CHECK(args.other.dim == args.other_w.dim, "other: expected as many columns as the weight");
    check_size(other, "other", 0, args.x.rows);
    STD_TORCH_CHECK(args.other_w.rows == args.w.rows, "other_weight: expected as many rows as weight");
    attach(args.bias, bias, "bias", x);
    attach(args.other_bias, other_bias, "other_bias", x);
  }

 private:
  void attach(Rows& bias, const OptionalTensor& given, const char* name, const Tensor& x) {
    if (auto made = attach_bias(bias, given, name, x, args.w)) held.push_back(*made);
  }
};

}  // namespace

static std::tuple<Tensor, Tensor> linear_divergence_cpu(const Tensor& x, const Tensor& weight, const Tensor& other,
                                                        const OptionalTensor& other_weight, const OptionalTensor& bias,
                                                        const OptionalTensor& other_bias, double scale, double softcap, double beta,
                                                        bool /*allow_tf32*/) {
  Attached of(x, weight, other, other_weight, bias, other_bias, scale, softcap, beta);
  const Tensor floats = fresh(x, {divergence::kColumns, of.args.x.rows}, compute_type(x));
  const Tensor agree = fresh(x, {of.args.x.rows}, ScalarType::Bool);
  of.args.out = writable(floats);
  of.args.agree = writable<bool>(agree);
  linear_divergence(of.args);
  return {floats, agree};
}

// Of some of the classes, by themselves.
static std::tuple<Tensor, Tensor> linear_divergence_share_cpu(const Tensor& x, const Tensor& weight, const Tensor& other,
                                                              const OptionalTensor& other_weight, const OptionalTensor& bias,
                                                              const OptionalTensor& other_bias, double scale, double softcap,
                                                              bool /*allow_tf32*/) {
  Attached of(x, weight, other, other_weight, bias, other_bias, scale, softcap, 0.5);
  const Tensor floats = fresh(x, {divergence::kShareFloats, of.args.x.rows}, ScalarType::Double);
  const Tensor indices = fresh(x, {divergence::kShareIndices, of.args.x.rows}, ScalarType::Long);
  of.args.share_floats = writable<double>(floats);
  of.args.share_indices = writable<int64_t>(indices);
  linear_divergence(of.args);
  return {floats, indices};
}

// Of some of the classes, as part of all, whose lse, other_lse and shift are `whole` (3, N).
static Tensor linear_divergence_ratios_cpu(const Tensor& x, const Tensor& weight, const Tensor& other,
                                           const OptionalTensor& other_weight, const OptionalTensor& bias,
                                           const OptionalTensor& other_bias, const Tensor& whole, double scale, double softcap,
                                           double beta, bool /*allow_tf32*/) {
  Attached of(x, weight, other, other_weight, bias, other_bias, scale, softcap, beta);
  const Tensor given = dense(whole, "whole", ScalarType::Double, &x);
  check_size(given, "whole", 0, 3);
  check_size(given, "whole", 1, of.args.x.rows);
  Tensor sums = fresh(x, {divergence::kRatios, of.args.x.rows}, ScalarType::Double);
  of.args.whole = data_of<double>(given);
  of.args.ratios = writable<double>(sums);
  linear_divergence(of.args);
  return sums;
}

static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> linear_divergence_backward_cpu(
    const Tensor& grad, const Tensor& floats, const Tensor& x, const Tensor& weight, const Tensor& other,
    const OptionalTensor& other_weight, const OptionalTensor& bias, const OptionalTensor& other_bias, double scale, double softcap,
    double beta, bool /*allow_tf32*/, bool need_x, bool need_weight, bool need_other, bool need_other_weight, bool need_bias,
    bool need_other_bias) {
  Attached of(x, weight, other, other_weight, bias, other_bias, scale, softcap, beta);
  const auto planes = attach_divergences(of.args, of.args.x.rows, compute_type(x), grad, floats);
  const ScalarType type = compute_type(x);
  LinearDivergenceArgs& args = of.args;
  const int64_t rows = args.x.rows, classes = args.w.rows;
  const Tensor g_x = gradient(x, need_x, {rows, args.x.dim}, x.scalar_type(), args.g_x);
  const Tensor g_weight = gradient(x, need_weight, {classes, args.x.dim}, type, args.g_weight);
  const Tensor g_other = gradient(x, need_other, {rows, args.other.dim}, x.scalar_type(), args.g_other);
  const Tensor g_other_weight =
      gradient(x, need_other_weight && other_weight, {classes, args.other.dim}, type, args.g_other_weight);
  const Tensor g_bias = gradient(x, need_bias && bias, {classes}, type, args.g_bias);
  const Tensor g_other_bias = gradient(x, need_other_bias && other_bias, {classes}, type, args.g_other_bias);
  linear_divergence_backward(args);
  const auto stored = [&](const Tensor& t) { return stored_as(t, x.scalar_type()); };
  return {g_x, stored(g_weight), g_other, stored(g_other_weight), stored(g_bias), stored(g_other_bias)};
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) {
  m.impl("linear_divergence", TORCH_BOX(&linear_divergence_cpu));
  m.impl("linear_divergence_share", TORCH_BOX(&linear_divergence_share_cpu));
  m.impl("linear_divergence_ratios", TORCH_BOX(&linear_divergence_ratios_cpu));
  m.impl("linear_divergence_backward", TORCH_BOX(&linear_divergence_backward_cpu));
}

}  // namespace ncops
