#include <string>

#include "tensors.h"

namespace ncops {

static PairKernel pair_kernel(const std::string& name) {
  static const char* const names[] = {"dot", "cosine", "distance", "log_distance", "riesz", "gaussian", "cdnv"};
  for (int i = 0; i < 7; ++i)
    if (name == names[i]) return static_cast<PairKernel>(i);
  STD_TORCH_CHECK(false, "kernel: unknown name ", name);
}

// What forward and backward take alike: the valid rows, and what the arguments point into.
struct PairInputs {
  OptionalTensor mask, spread;
  std::vector<int64_t> kept;
  std::vector<double> variances, origin;
  int64_t total;

  template <class Args>
  PairInputs(Args& args, const Tensor& rows, const std::string& kernel, const OptionalTensor& given_variances, double power,
             const OptionalTensor& valid)
      : total(rows.size(0)) {
    args.rows = rows_of(rows, "rows");
    args.kernel = pair_kernel(kernel);
    args.power = power;
    if (valid) {
      mask = dense(*valid, "valid", ScalarType::Bool);
      check_size(*mask, "valid", 0, total);
      kept = keep_rows(args.rows, [&](int64_t i) { return pointer<bool>(mask)[i]; });
    }
    variances.resize(args.rows.rows);
    origin.resize(args.rows.dim);
    if (given_variances) {
      spread = dense(torch::stable::to(*given_variances, ScalarType::Double), "variances", ScalarType::Double);
      check_size(*spread, "variances", 0, total);
      for (int64_t i = 0; i < args.rows.rows; ++i) variances[i] = pointer<double>(spread)[original(i)];
      args.variances = variances.data();
    }
    if (is_distance(args.kernel)) {
      row_mean({args.rows, origin.data()});
      args.rows.offset = origin.data();
    }
  }

  int64_t original(int64_t gathered) const { return kept.empty() ? gathered : kept[gathered]; }
};

static void put(const Tensor& t, int64_t i, double value) {
  if (t.scalar_type() == ScalarType::Double) writable<double>(t)[i] = value;
  else writable<float>(t)[i] = static_cast<float>(value);
}

static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pair_stats_cpu(
    const Tensor& rows, std::string kernel, const OptionalTensor& variances, double power, const OptionalTensor& valid,
    bool /*allow_tf32: always exact*/) {
  PairStatsArgs args;
  const PairInputs inputs(args, rows, kernel, variances, power, valid);
  const int64_t total = inputs.total, count = args.rows.rows;
  std::vector<double> best(count);
  std::vector<int64_t> best_index(count);
  double stats[4];
  int64_t pairs = 0;
  args.mean = stats, args.var = stats + 1, args.min = stats + 2, args.max = stats + 3;
  args.count = &pairs;
  args.row_max = best.data();
  args.row_argmax = best_index.data();
  pair_stats(args);

  const ScalarType type = compute_type(rows);
  const Tensor mean = fresh(rows, {}, type), var = fresh(rows, {}, type);
  const Tensor min = fresh(rows, {}, type), max = fresh(rows, {}, type);
  const Tensor row_max = fresh(rows, {total}, type), number = fresh(rows, {}, ScalarType::Long);
  const Tensor row_argmax = fresh(rows, {total}, ScalarType::Long);
  const Tensor* scalars[] = {&mean, &var, &min, &max};
  for (int i = 0; i < 4; ++i) put(*scalars[i], 0, stats[i]);
  *writable<int64_t>(number) = pairs;
  int64_t* argmax = writable<int64_t>(row_argmax);
  for (int64_t i = 0; i < total; ++i) put(row_max, i, std::numeric_limits<double>::quiet_NaN()), argmax[i] = -1;
  for (int64_t i = 0; i < count; ++i) {
    put(row_max, inputs.original(i), best[i]);
    argmax[inputs.original(i)] = best_index[i] < 0 ? -1 : inputs.original(best_index[i]);
  }
  return {mean, var, min, max, row_max, number, row_argmax};
}

static std::tuple<Tensor, Tensor> pair_stats_backward_cpu(const Tensor& g_mean, const Tensor& g_row_max, const Tensor& count,
                                                          const Tensor& row_argmax, const Tensor& rows, std::string kernel,
                                                          const OptionalTensor& variances, double power,
                                                          const OptionalTensor& valid, bool /*allow_tf32: always exact*/) {
  PairStatsBackwardArgs args;
  const PairInputs inputs(args, rows, kernel, variances, power, valid);
  const auto doubles = [](const Tensor& t, const char* name) {
    return dense(torch::stable::to(t, ScalarType::Double), name, ScalarType::Double);
  };
  const Tensor mean = doubles(g_mean, "g_mean"), best = doubles(g_row_max, "g_row_max");
  const Tensor pairs = dense(count, "count", ScalarType::Long), index = dense(row_argmax, "row_argmax", ScalarType::Long);
  check_size(best, "g_row_max", 0, inputs.total);
  check_size(index, "row_argmax", 0, inputs.total);
  const int64_t number = *data_of<int64_t>(pairs);
  args.share = number > 0 ? *data_of<double>(mean) / double(number) : 0;
  const int64_t k = args.rows.rows;
  std::vector<int64_t> place(inputs.total, -1), partner(k, -1);
  std::vector<double> g_best(k), g_spread(k);
  for (int64_t i = 0; i < k; ++i) place[inputs.original(i)] = i;
  for (int64_t i = 0; i < k; ++i) {
    const int64_t row = inputs.original(i), other = data_of<int64_t>(index)[row];
    if (other >= 0 && other < inputs.total) partner[i] = place[other];
    if (partner[i] >= 0) g_best[i] = data_of<double>(best)[row];
  }
  args.partner = partner.data();
  args.g_row_max = g_best.data();
  args.total = inputs.total;
  const Tensor g_rows = fresh(rows, {inputs.total, args.rows.dim}, rows.scalar_type());
  args.g_rows = writable(g_rows);
  if (variances) args.g_variances = g_spread.data();
  pair_stats_backward(args);
  const Tensor g_variances = fresh(rows, {variances ? inputs.total : 0}, compute_type(rows));
  for (int64_t i = 0; variances && i < inputs.total; ++i) put(g_variances, i, place[i] < 0 ? 0.0 : g_spread[place[i]]);
  return {g_rows, g_variances};
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) {
  m.impl("pair_stats", TORCH_BOX(&pair_stats_cpu));
  m.impl("pair_stats_backward", TORCH_BOX(&pair_stats_backward_cpu));
}

}  // namespace ncops
