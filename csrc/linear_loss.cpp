#include <algorithm>
#include <limits>

#include "linear_inputs.h"

namespace ncops {
namespace {

// Rows that count in no term are left out of the sweep. Their columns are NaN, but for those of an ignored target.
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
  for (int64_t plane = 0; plane < kFloatColumns; ++plane) {
    T* row = static_cast<T*>(out.floats) + plane * out.rows;
    const bool of_target = plane == kTargetLogit || plane == kNll;
    std::fill_n(row, out.rows, of_target ? T(0) : std::numeric_limits<T>::quiet_NaN());
    for (int64_t i = 0; i < in.rows; ++i) row[index[i]] = static_cast<const T*>(in.floats)[plane * in.rows + i];
  }
  for (int64_t plane = 0; plane < kIndexColumns; ++plane) {
    int64_t* row = out.indices + plane * out.rows;
    std::fill_n(row, out.rows, -1);
    for (int64_t i = 0; i < in.rows; ++i) row[index[i]] = in.indices[plane * in.rows + i];
  }
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
  const auto empty = [&] { return fresh(x, {0}, type); };
  Tensor g_x = need_x ? fresh(x, {args.total, args.x.dim}, x.scalar_type()) : fresh(x, {0}, x.scalar_type());
  Tensor g_weight = need_weight ? fresh(x, {args.w.rows, args.x.dim}, type) : empty();
  Tensor g_bias = need_bias ? fresh(x, {args.w.rows}, type) : empty();
  if (need_x) args.g_x = writable(g_x);
  if (need_weight) args.g_weight = writable(g_weight);
  if (need_bias) args.g_bias = writable(g_bias);
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
  const auto stored = [&](const Tensor& t) { return x.scalar_type() == type ? t : torch::stable::to(t, x.scalar_type()); };
  return {out.floats, out.indices, g_x, stored(g_weight), stored(g_bias)};
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) { m.impl("linear_loss", TORCH_BOX(&linear_loss_cpu)); }

}  // namespace ncops
