#include <algorithm>
#include <cmath>
#include <string>

#include "tensors.h"

namespace ncops {

static PairKernel pair_kernel(const std::string& name) {
  static const char* const names[] = {"dot", "cosine", "angle", "distance", "log_distance", "riesz", "gaussian", "cdnv"};
  for (int i = 0; i < 8; ++i)
    if (name == names[i]) return static_cast<PairKernel>(i);
  STD_TORCH_CHECK(false, "kernel: unknown name ", name);
}

// What forward and backward take alike: the valid rows, and what the arguments point into.
struct PairInputs {
  OptionalTensor mask, spread, given;
  std::vector<int64_t> kept, labels;
  std::vector<double> variances, origin, scale;
  int64_t total;

  template <class Args>
  PairInputs(Args& args, const Tensor& rows, const std::string& kernel, const OptionalTensor& given_variances, double power,
             const OptionalTensor& valid, const OptionalTensor& given_labels, int64_t ignore_index)
      : total(rows.size(0)) {
    args.rows = rows_of(rows, "rows");
    args.kernel = pair_kernel(kernel);
    args.power = power;
    if (valid) {
      mask = dense(*valid, "valid", ScalarType::Bool);
      check_size(*mask, "valid", 0, total);
    }
    if (given_labels) given = dense_labels(*given_labels, "labels", total);
    if (mask || given) {
      const bool* good = pointer<bool>(mask);
      const int64_t* label = pointer<int64_t>(given);
      kept = keep_rows(args.rows, [&](int64_t i) {
        return (!good || good[i]) && (!label || (label[i] >= 0 && label[i] != ignore_index));
      });
    }
    if (given) rank_labels(args, pointer<int64_t>(given));
    variances.resize(args.rows.rows);
    origin.resize(args.rows.dim);
    if (given_variances) {
      spread = dense(torch::stable::to(*given_variances, ScalarType::Double), "variances", ScalarType::Double);
      check_size(*spread, "variances", 0, total);
      for (int64_t i = 0; i < args.rows.rows; ++i) variances[i] = pointer<double>(spread)[original(i)];
      args.variances = variances.data();
    }
    if (args.kernel == PairKernel::angle) unit_rows(args.rows);
    if (is_distance(args.kernel)) {
      row_mean({args.rows, origin.data()});
      args.rows.offset = origin.data();
    }
  }

  // Labels of the gathered rows as 0, 1, ... without gaps.
  template <class Args>
  void rank_labels(Args& args, const int64_t* label) {
    const int64_t k = args.rows.rows;
    labels.resize(k);
    for (int64_t i = 0; i < k; ++i) labels[i] = label[kept[i]];
    std::vector<int64_t> known(labels);
    std::sort(known.begin(), known.end());
    known.erase(std::unique(known.begin(), known.end()), known.end());
    for (int64_t& own : labels) own = std::lower_bound(known.begin(), known.end(), own) - known.begin();
    args.sides = 2;
    args.labels = labels.data();
    args.classes = int64_t(known.size());
  }

  void unit_rows(Rows& rows) {
    scale.resize(total);
    row_scales({rows, 0.0, scale.data()});
    rows.scale = scale.data();
  }

  int64_t original(int64_t gathered) const { return kept.empty() ? gathered : kept[gathered]; }
};

static void put(const Tensor& t, int64_t i, double value) {
  if (t.scalar_type() == ScalarType::Double) writable<double>(t)[i] = value;
  else writable<float>(t)[i] = static_cast<float>(value);
}

// One number, or one of each side.
static Tensor fresh_sides(const Tensor& like, bool labelled, ScalarType type) {
  return labelled ? fresh(like, {2}, type) : fresh(like, {}, type);
}
static Tensor fresh_rows(const Tensor& like, bool labelled, int64_t total, ScalarType type) {
  return labelled ? fresh(like, {2, total}, type) : fresh(like, {total}, type);
}

static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pair_stats_cpu(
    const Tensor& rows, std::string kernel, const OptionalTensor& variances, double power, const OptionalTensor& valid,
    const OptionalTensor& labels, int64_t ignore_index, bool /*allow_tf32: always exact*/) {
  PairStatsArgs args;
  const PairInputs inputs(args, rows, kernel, variances, power, valid, labels, ignore_index);
  const bool labelled = labels.has_value();
  const int64_t total = inputs.total, count = args.rows.rows;
  std::vector<double> best(args.sides * count);
  std::vector<int64_t> best_index(args.sides * count);
  double stats[4][2];
  int64_t pairs[2] = {0, 0};
  args.mean = stats[0], args.var = stats[1], args.min = stats[2], args.max = stats[3];
  args.count = pairs;
  args.row_max = best.data();
  args.row_argmax = best_index.data();
  pair_stats(args);

  const ScalarType type = compute_type(rows);
  const auto scalar = [&](ScalarType t) { return fresh_sides(rows, labelled, t); };
  const Tensor mean = scalar(type), var = scalar(type), min = scalar(type), max = scalar(type), number = scalar(ScalarType::Long);
  const Tensor row_max = fresh_rows(rows, labelled, total, type), row_argmax = fresh_rows(rows, labelled, total, ScalarType::Long);
  const Tensor* scalars[] = {&mean, &var, &min, &max};
  int64_t* argmax = writable<int64_t>(row_argmax);
  for (int64_t i = 0; i < args.sides * total; ++i) put(row_max, i, std::numeric_limits<double>::quiet_NaN()), argmax[i] = -1;
  for (int side = 0; side < args.sides; ++side) {
    for (int i = 0; i < 4; ++i) put(*scalars[i], side, stats[i][side]);
    writable<int64_t>(number)[side] = pairs[side];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t from = side * count + i, to = side * total + inputs.original(i);
      put(row_max, to, best[from]);
      argmax[to] = best_index[from] < 0 ? -1 : inputs.original(best_index[from]);
    }
  }
  return {mean, var, min, max, row_max, number, row_argmax};
}

static std::tuple<Tensor, Tensor> pair_stats_backward_cpu(const Tensor& g_mean, const Tensor& g_row_max, const Tensor& count,
                                                          const Tensor& row_argmax, const Tensor& rows, std::string kernel,
                                                          const OptionalTensor& variances, double power,
                                                          const OptionalTensor& valid, const OptionalTensor& labels,
                                                          int64_t ignore_index, bool /*allow_tf32: always exact*/) {
  PairStatsBackwardArgs args;
  const PairInputs inputs(args, rows, kernel, variances, power, valid, labels, ignore_index);
  const auto doubles = [](const Tensor& t, const char* name) {
    return dense(torch::stable::to(t, ScalarType::Double), name, ScalarType::Double);
  };
  const Tensor mean = doubles(g_mean, "g_mean"), best = doubles(g_row_max, "g_row_max");
  const Tensor pairs = dense(count, "count", ScalarType::Long), index = dense(row_argmax, "row_argmax", ScalarType::Long);
  const auto check_sides = [&](const Tensor& t, const char* name, int64_t each) {
    STD_TORCH_CHECK(t.numel() == args.sides * each, name, ": expected ", args.sides * each, " elements, got ", t.numel());
  };
  check_sides(mean, "g_mean", 1);
  check_sides(pairs, "count", 1);
  check_sides(best, "g_row_max", inputs.total);
  check_sides(index, "row_argmax", inputs.total);
  const int64_t k = args.rows.rows;
  std::vector<int64_t> place(inputs.total, -1), partner(args.sides * k, -1);
  std::vector<double> g_best(args.sides * k), g_spread(k);
  for (int64_t i = 0; i < k; ++i) place[inputs.original(i)] = i;
  for (int side = 0; side < args.sides; ++side) {
    const int64_t number = data_of<int64_t>(pairs)[side];
    args.share[side] = number > 0 ? data_of<double>(mean)[side] / double(number) : 0;
    for (int64_t i = 0; i < k; ++i) {
      const int64_t from = side * inputs.total + inputs.original(i), to = side * k + i, other = data_of<int64_t>(index)[from];
      if (other >= 0 && other < inputs.total) partner[to] = place[other];
      if (partner[to] >= 0) g_best[to] = data_of<double>(best)[from];
    }
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
