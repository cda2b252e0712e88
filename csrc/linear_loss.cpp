#include <algorithm>

#include "linear_inputs.h"

namespace ncops {
namespace {

// Rows that count in no term are left out of the sweep, and their columns unwritten.
struct Kept {
  std::vector<int64_t> index, target;
  std::vector<double> coefficients;

  Kept(LinearLossArgs& args, const double* all) {
    index = keep_rows(args.x, [&](int64_t row) {
      const double* of = all + row * kLossTerms;
      return std::any_of(of, of + kLossTerms, [](double c) { return c != 0; });
    });
    for (const int64_t row : index) {
      if (args.target) target.push_back(args.target[row]);
      coefficients.insert(coefficients.end(), all + row * kLossTerms, all + (row + 1) * kLossTerms);
    }
    if (args.target) args.target = target.data();
    args.coefficients = coefficients.data();
  }
};

template <class T>
void spread(const Planes& from, const std::vector<int64_t>& index, const Planes& to) {
  const LogitColumns in = from.columns(), out = to.columns();
  for (int64_t plane = 0; plane < kFloatColumns; ++plane)
    for (int64_t i = 0; i < in.rows; ++i)
      static_cast<T*>(out.floats)[plane * out.rows + index[i]] = static_cast<const T*>(in.floats)[plane * in.rows + i];
  for (int64_t plane = 0; plane < kIndexColumns; ++plane)
    for (int64_t i = 0; i < in.rows; ++i) out.indices[plane * out.rows + index[i]] = in.indices[plane * in.rows + i];
}

}  // namespace

static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_loss_cpu(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& target, const Tensor& coefficients,
    double scale, double softcap, int64_t ignore_index, bool /*allow_tf32*/, bool need_x, bool need_weight, bool need_bias) {
  LinearLossArgs args;
  const auto inputs = attach(args, x, weight, bias, target, scale, softcap, ignore_index);
  const Tensor terms = dense(coefficients, "coefficients", ScalarType::Double);
  check_size(terms, "coefficients", 0, args.x.rows);
  check_size(terms, "coefficients", 1, kLossTerms);
  const Planes out(x, args.x.rows);
  args.total = args.x.rows;
  const Kept kept(args, data_of<double>(terms));
  const Planes columns(x, args.x.rows);
  args.out = columns.columns();
  const ScalarType type = compute_type(x);
  const Tensor g_x = gradient(x, need_x, {args.total, args.x.dim}, x.scalar_type(), args.g_x);
  const Tensor g_weight = gradient(x, need_weight, {args.w.rows, args.x.dim}, type, args.g_weight);
  const Tensor g_bias = gradient(x, need_bias, {args.w.rows}, type, args.g_bias);
  if (need_x || need_weight || need_bias) {
    linear_loss(args);
  } else {
    LinearStatsArgs stats;
    static_cast<LogitOptions&>(stats) = args;
    stats.x = args.x, stats.w = args.w, stats.bias = args.bias, stats.out = args.out;
    linear_stats(stats);
  }
  if (type == ScalarType::Double) spread<double>(columns, kept.index, out);
  else spread<float>(columns, kept.index, out);
  return {out.floats, out.indices, g_x, stored_as(g_weight, x.scalar_type()), stored_as(g_bias, x.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) { m.impl("linear_loss", TORCH_BOX(&linear_loss_cpu)); }

}  // namespace ncops
