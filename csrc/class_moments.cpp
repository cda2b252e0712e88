#include "tensors.h"

namespace ncops {

static std::tuple<Tensor, Tensor, Tensor, Tensor> class_moments_cpu(const Tensor& x, const Tensor& labels, int64_t num_classes,
                                                                    const OptionalTensor& center, int64_t ignore_index) {
  ClassMomentsArgs args;
  args.x = rows_of(x, "x");
  const Tensor y = dense_labels(labels, "labels", args.x.rows);
  args.labels = static_cast<const int64_t*>(y.const_data_ptr());
  args.num_classes = num_classes;
  args.ignore_index = ignore_index;
  OptionalTensor anchors;
  if (center) {
    anchors = dense(*center, "center", compute_type(x));
    check_size(*anchors, "center", 0, num_classes);
    check_size(*anchors, "center", 1, args.x.dim);
  }
  args.center = anchors ? anchors->const_data_ptr() : nullptr;
  const Tensor sums = fresh(x, {num_classes, args.x.dim}, compute_type(x)), sqnorms = fresh(x, {num_classes}, ScalarType::Double);
  const Tensor counts = fresh(x, {num_classes}, ScalarType::Long), invalid = fresh(x, {}, ScalarType::Long);
  args.sums = sums.mutable_data_ptr();
  args.sqnorms = static_cast<double*>(sqnorms.mutable_data_ptr());
  args.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  args.invalid = static_cast<int64_t*>(invalid.mutable_data_ptr());
  class_moments(args);
  return {sums, sqnorms, counts, invalid};
}

// Returns the number of invalid labels; the state is untouched when it is not zero.
static Tensor accumulate_class_moments_cpu(Tensor counts, Tensor center, Tensor sums, Tensor sqnorms, Tensor invalid,
                                           const Tensor& x, const Tensor& labels, int64_t ignore_index) {
  AccumulateClassMomentsArgs args;
  args.x = rows_of(x, "x");
  const Tensor y = dense_labels(labels, "labels", args.x.rows);
  const auto check = [](const Tensor& t, const char* name, ScalarType type) {
    check_cpu(t, name);
    STD_TORCH_CHECK(t.scalar_type() == type && t.is_contiguous(), name, ": unexpected dtype or layout");
  };
  check(counts, "counts", ScalarType::Long);
  check(center, "center", compute_type(x));
  check(sums, "sums", ScalarType::Double);
  check(sqnorms, "sqnorms", ScalarType::Double);
  check(invalid, "invalid", ScalarType::Long);
  const int64_t classes = counts.size(0);
  for (const Tensor* t : {&center, &sums}) {
    check_size(*t, "center and sums", 0, classes);
    check_size(*t, "center and sums", 1, args.x.dim);
  }
  check_size(sqnorms, "sqnorms", 0, classes);
  const Tensor bad = fresh(x, {}, ScalarType::Long);
  args.labels = static_cast<const int64_t*>(y.const_data_ptr());
  args.num_classes = classes;
  args.ignore_index = ignore_index;
  args.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  args.center = center.mutable_data_ptr();
  args.sums = static_cast<double*>(sums.mutable_data_ptr());
  args.sqnorms = static_cast<double*>(sqnorms.mutable_data_ptr());
  args.invalid = static_cast<int64_t*>(bad.mutable_data_ptr());
  accumulate_class_moments(args);
  return bad;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ncops_C, m) {
  m.def(
      "class_moments(Tensor x, Tensor labels, int num_classes, Tensor? center, int ignore_index)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "accumulate_class_moments_(Tensor(a!) counts, Tensor(b!) center, Tensor(c!) sums, Tensor(d!) sqnorms,"
      " Tensor(e!) invalid, Tensor x, Tensor labels, int ignore_index) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) {
  m.impl("class_moments", TORCH_BOX(&class_moments_cpu));
  m.impl("accumulate_class_moments_", TORCH_BOX(&accumulate_class_moments_cpu));
}

}  // namespace ncops
