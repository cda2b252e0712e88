#include <string>

#include "tensors.h"

namespace ncops {

static PairKernel pair_kernel(const std::string& name) {
  static const char* const names[] = {"dot", "cosine", "distance", "log_distance", "riesz", "gaussian", "cdnv"};
  for (int i = 0; i < 7; ++i)
    if (name == names[i]) return static_cast<PairKernel>(i);
  STD_TORCH_CHECK(false, "kernel: unknown name ", name);
}

static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pair_stats_cpu(
    const Tensor& rows, std::string kernel, const OptionalTensor& variances, double power, const OptionalTensor& valid,
    bool /*allow_tf32: always exact*/) {
  PairStatsArgs args;
  args.rows = rows_of(rows, "rows");
  args.kernel = pair_kernel(kernel);
  args.power = power;
  const int64_t total = args.rows.rows;
  OptionalTensor mask, spread;
  std::optional<KeptRows> kept;
  if (valid) {
    mask = dense(*valid, "valid", ScalarType::Bool);
    check_size(*mask, "valid", 0, total);
    kept.emplace(pointer<bool>(mask), total);
    kept->select(args.rows);
  }
  const int64_t count = args.rows.rows;
  std::vector<double> class_variances(count), origin(args.rows.dim), best(count);
  std::vector<int64_t> best_index(count);
  if (variances) {
    spread = dense(torch::stable::to(*variances, ScalarType::Double), "variances", ScalarType::Double);
    check_size(*spread, "variances", 0, total);
    for (int64_t i = 0; i < count; ++i) class_variances[i] = pointer<double>(spread)[kept ? kept->index[i] : i];
    args.variances = class_variances.data();
  }
  if (args.kernel >= PairKernel::distance) {
    row_mean({args.rows, origin.data()});
    args.rows.offset = origin.data();
  }
  double stats[4];
  int64_t pairs = 0;
  args.mean = stats, args.var = stats + 1, args.min = stats + 2, args.max = stats + 3;
  args.count = &pairs;
  args.row_max = best.data();
  args.row_argmax = best_index.data();
  pair_stats(args);

  const ScalarType type = compute_type(rows);
  const auto put = [type](const Tensor& t, int64_t i, double value) {
    if (type == ScalarType::Double) static_cast<double*>(t.mutable_data_ptr())[i] = value;
    else static_cast<float*>(t.mutable_data_ptr())[i] = static_cast<float>(value);
  };
  const Tensor mean = fresh(rows, {}, type), var = fresh(rows, {}, type), min = fresh(rows, {}, type), max = fresh(rows, {}, type);
  const Tensor row_max = fresh(rows, {total}, type), number = fresh(rows, {}, ScalarType::Long);
  const Tensor row_argmax = fresh(rows, {total}, ScalarType::Long);
  const Tensor* scalars[] = {&mean, &var, &min, &max};
  for (int i = 0; i < 4; ++i) put(*scalars[i], 0, stats[i]);
  *static_cast<int64_t*>(number.mutable_data_ptr()) = pairs;
  int64_t* argmax = static_cast<int64_t*>(row_argmax.mutable_data_ptr());
  for (int64_t i = 0; i < total; ++i) put(row_max, i, std::numeric_limits<double>::quiet_NaN()), argmax[i] = -1;
  for (int64_t i = 0; i < count; ++i) {
    const auto original = [&](int64_t r) { return kept ? kept->index[r] : r; };
    put(row_max, original(i), best[i]);
    argmax[original(i)] = best_index[i] < 0 ? -1 : original(best_index[i]);
  }
  return {mean, var, min, max, row_max, number, row_argmax};
}

STABLE_TORCH_LIBRARY_FRAGMENT(ncops_C, m) {
  m.def(
      "pair_stats(Tensor rows, str kernel, Tensor? variances, float power, Tensor? valid, bool allow_tf32)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) { m.impl("pair_stats", TORCH_BOX(&pair_stats_cpu)); }

}  // namespace ncops
