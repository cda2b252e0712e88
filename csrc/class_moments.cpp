#include "tensors.h"

#ifdef NCOPS_WITH_CUDA
#include "cuda_stream.h"
#endif

namespace ncops {
namespace {

// Rows and their labels, checked. Returns the labels that args points into.
Tensor attach_labels(LabelledRows& args, const Tensor& x, const Tensor& labels, int64_t num_classes, int64_t ignore_index) {
  args.x = rows_of(x, "x", &x);
  Tensor y = dense_labels(labels, "labels", args.x.rows, &x);
  args.labels = data_of<int64_t>(y);
  args.num_classes = num_classes;
  args.ignore_index = ignore_index;
  return y;
}

// Anchors (C, D) in the compute dtype of x.
OptionalTensor dense_anchors(const OptionalTensor& center, const Tensor& x, const LabelledRows& rows) {
  if (!center) return std::nullopt;
  OptionalTensor anchors = dense(*center, "center", compute_type(x), &x);
  check_size(*anchors, "center", 0, rows.num_classes);
  check_size(*anchors, "center", 1, rows.x.dim);
  return anchors;
}

// How the kernels of a device start.
void run(const ClassMomentsArgs& args, const Tensor&) { class_moments(args); }
void run(const AccumulateClassMomentsArgs& args, const Tensor&) { accumulate_class_moments(args); }

#ifdef NCOPS_WITH_CUDA
template <class Args>
void run_on_device(Args& args, const Tensor& x, void (*kernel)(const Args&)) {
  STD_TORCH_CHECK(args.x.rows <= cuda::kMostRows, "x: expected at most ", cuda::kMostRows, " rows, got ", args.x.rows);
  STD_TORCH_CHECK(args.num_classes <= cuda::kMostClasses, "num_classes: expected at most ", cuda::kMostClasses, ", got ",
                  args.num_classes);
  const CudaCall call(args, x, cuda::class_moments_workspace(args.x.dtype, args.x.rows, args.x.dim, args.num_classes));
  kernel(args);
}
void run(cuda::ClassMomentsArgs& args, const Tensor& x) { run_on_device(args, x, cuda::class_moments); }
void run(cuda::AccumulateClassMomentsArgs& args, const Tensor& x) { run_on_device(args, x, cuda::accumulate_class_moments); }
#endif

template <class Args>
std::tuple<Tensor, Tensor, Tensor, Tensor> class_moments_on(const Tensor& x, const Tensor& labels, int64_t num_classes,
                                                            const OptionalTensor& center, int64_t ignore_index) {
  Args args{};
  const Tensor y = attach_labels(args, x, labels, num_classes, ignore_index);
  const OptionalTensor anchors = dense_anchors(center, x, args);
  args.center = anchors ? data_of(*anchors) : nullptr;
  const Tensor sums = fresh(x, {num_classes, args.x.dim}, compute_type(x));
  const Tensor sqnorms = fresh(x, {num_classes}, ScalarType::Double);
  const Tensor counts = fresh(x, {num_classes}, ScalarType::Long), invalid = fresh(x, {}, ScalarType::Long);
  args.sums = writable(sums);
  args.sqnorms = writable<double>(sqnorms);
  args.counts = writable<int64_t>(counts);
  args.invalid = writable<int64_t>(invalid);
  run(args, x);
  return {sums, sqnorms, counts, invalid};
}

// Returns the number of invalid labels of this call. On the CPU the state is untouched when it is not zero; on CUDA they are
// skipped and counted, and nothing is read back.
template <class Args>
Tensor accumulate_class_moments_on(Tensor counts, Tensor center, Tensor sums, Tensor sqnorms, Tensor invalid, const Tensor& x,
                                   const Tensor& labels, int64_t ignore_index) {
  Args args{};
  const int64_t classes = counts.size(0);
  const Tensor y = attach_labels(args, x, labels, classes, ignore_index);
  const auto check = [&](const Tensor& t, const char* name, ScalarType type) {
    check_device(t, name, &x);
    STD_TORCH_CHECK(t.scalar_type() == type && t.is_contiguous(), name, ": unexpected dtype or layout");
  };
  check(counts, "counts", ScalarType::Long);
  check(center, "center", compute_type(x));
  check(sums, "sums", ScalarType::Double);
  check(sqnorms, "sqnorms", ScalarType::Double);
  check(invalid, "invalid", ScalarType::Long);
  for (const Tensor* t : {&center, &sums}) {
    check_size(*t, "center and sums", 0, classes);
    check_size(*t, "center and sums", 1, args.x.dim);
  }
  check_size(sqnorms, "sqnorms", 0, classes);
  const Tensor bad = fresh(x, {}, ScalarType::Long);
  args.counts = writable<int64_t>(counts);
  args.center = writable(center);
  args.sums = writable<double>(sums);
  args.sqnorms = writable<double>(sqnorms);
  args.invalid_total = writable<int64_t>(invalid);
  args.invalid = writable<int64_t>(bad);
  run(args, x);
  return bad;
}

Tensor class_moments_backward_cpu(const Tensor& g_sums, const Tensor& g_sqnorms, const Tensor& x, const Tensor& labels,
                                  int64_t num_classes, const OptionalTensor& center, int64_t ignore_index) {
  ClassMomentsBackwardArgs args;
  const Tensor y = attach_labels(args, x, labels, num_classes, ignore_index);
  args.g_sums = rows_of(g_sums, "g_sums");
  STD_TORCH_CHECK(g_sums.scalar_type() == compute_type(x), "g_sums: unexpected dtype");
  check_size(g_sums, "g_sums", 0, num_classes);
  check_size(g_sums, "g_sums", 1, args.x.dim);
  const Tensor squares = dense(g_sqnorms, "g_sqnorms", ScalarType::Double);
  check_size(squares, "g_sqnorms", 0, num_classes);
  args.g_sqnorms = data_of<double>(squares);
  const OptionalTensor anchors = dense_anchors(center, x, args);
  args.center = anchors ? data_of(*anchors) : nullptr;
  const Tensor g_x = fresh(x, {args.x.rows, args.x.dim}, x.scalar_type());
  args.g_x = writable(g_x);
  class_moments_backward(args);
  return g_x;
}

// For memory that is about to be touched for the first time.
void prefer_huge_pages_cpu(const Tensor& x) {
  check_device(x, "x", nullptr);
  prefer_huge_pages(writable(x), size_t(x.numel()) * size_t(x.element_size()));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ncops_C, m) { m.def("prefer_huge_pages(Tensor x) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) {
  m.impl("prefer_huge_pages", TORCH_BOX(&prefer_huge_pages_cpu));
  m.impl("class_moments", TORCH_BOX(&class_moments_on<ClassMomentsArgs>));
  m.impl("class_moments_backward", TORCH_BOX(&class_moments_backward_cpu));
  m.impl("accumulate_class_moments_", TORCH_BOX(&accumulate_class_moments_on<AccumulateClassMomentsArgs>));
}

#ifdef NCOPS_WITH_CUDA

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CUDA, m) {
  m.impl("class_moments", TORCH_BOX(&class_moments_on<cuda::ClassMomentsArgs>));
  m.impl("accumulate_class_moments_", TORCH_BOX(&accumulate_class_moments_on<cuda::AccumulateClassMomentsArgs>));
}

#endif

}  // namespace ncops
