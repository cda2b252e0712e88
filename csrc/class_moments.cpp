#include "tensors.h"

#ifdef NCOPS_WITH_CUDA
#include "cuda/kernels.h"
#include "cuda_stream.h"
#endif

namespace ncops {

// Anchors (C, D) in the compute dtype of x.
static OptionalTensor dense_anchors(const OptionalTensor& center, const Tensor& x, int64_t num_classes, int64_t dim) {
  if (!center) return std::nullopt;
  OptionalTensor anchors = dense(*center, "center", compute_type(x), &x);
  check_size(*anchors, "center", 0, num_classes);
  check_size(*anchors, "center", 1, dim);
  return anchors;
}

using Moments = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// On any device: run(args) starts the kernels.
template <class Args, class Run>
static Moments fresh_moments(const Tensor& x, const Tensor& labels, int64_t num_classes, const OptionalTensor& center,
                             int64_t ignore_index, Run run) {
  Args args{};
  args.x = rows_of(x, "x", &x);
  const Tensor y = dense_labels(labels, "labels", args.x.rows, &x);
  args.labels = static_cast<const int64_t*>(y.const_data_ptr());
  args.num_classes = num_classes;
  args.ignore_index = ignore_index;
  const OptionalTensor anchors = dense_anchors(center, x, num_classes, args.x.dim);
  args.center = anchors ? anchors->const_data_ptr() : nullptr;
  const Tensor sums = fresh(x, {num_classes, args.x.dim}, compute_type(x)), sqnorms = fresh(x, {num_classes}, ScalarType::Double);
  const Tensor counts = fresh(x, {num_classes}, ScalarType::Long), invalid = fresh(x, {}, ScalarType::Long);
  args.sums = sums.mutable_data_ptr();
  args.sqnorms = static_cast<double*>(sqnorms.mutable_data_ptr());
  args.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  args.invalid = static_cast<int64_t*>(invalid.mutable_data_ptr());
  run(args);
  return {sums, sqnorms, counts, invalid};
}

static Moments class_moments_cpu(const Tensor& x, const Tensor& labels, int64_t num_classes, const OptionalTensor& center,
                                 int64_t ignore_index) {
  return fresh_moments<ClassMomentsArgs>(x, labels, num_classes, center, ignore_index,
                                         [](const ClassMomentsArgs& args) { class_moments(args); });
}

// Returns the number of invalid labels of this call. On the CPU the state is untouched when it is not zero.
template <class Args, class Run>
static Tensor add_moments(Tensor counts, Tensor center, Tensor sums, Tensor sqnorms, Tensor invalid, const Tensor& x,
                          const Tensor& labels, int64_t ignore_index, Run run) {
  Args args{};
  args.x = rows_of(x, "x", &x);
  const Tensor y = dense_labels(labels, "labels", args.x.rows, &x);
  const auto check = [&](const Tensor& t, const char* name, ScalarType type) {
    check_device(t, name, &x);
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
  run(args);
  return bad;
}

static Tensor accumulate_class_moments_cpu(Tensor counts, Tensor center, Tensor sums, Tensor sqnorms, Tensor invalid,
                                           const Tensor& x, const Tensor& labels, int64_t ignore_index) {
  return add_moments<AccumulateClassMomentsArgs>(
      counts, center, sums, sqnorms, invalid, x, labels, ignore_index,
      [](const AccumulateClassMomentsArgs& args) { accumulate_class_moments(args); });
}

static Tensor class_moments_backward_cpu(const Tensor& g_sums, const Tensor& g_sqnorms, const Tensor& x, const Tensor& labels,
                                         int64_t num_classes, const OptionalTensor& center, int64_t ignore_index) {
  ClassMomentsBackwardArgs args;
  args.x = rows_of(x, "x");
  const Tensor y = dense_labels(labels, "labels", args.x.rows);
  args.labels = static_cast<const int64_t*>(y.const_data_ptr());
  args.num_classes = num_classes;
  args.ignore_index = ignore_index;
  args.g_sums = rows_of(g_sums, "g_sums");
  STD_TORCH_CHECK(g_sums.scalar_type() == compute_type(x), "g_sums: unexpected dtype");
  check_size(g_sums, "g_sums", 0, num_classes);
  check_size(g_sums, "g_sums", 1, args.x.dim);
  const Tensor squares = dense(g_sqnorms, "g_sqnorms", ScalarType::Double);
  check_size(squares, "g_sqnorms", 0, num_classes);
  args.g_sqnorms = static_cast<const double*>(squares.const_data_ptr());
  const OptionalTensor anchors = dense_anchors(center, x, num_classes, args.x.dim);
  args.center = anchors ? anchors->const_data_ptr() : nullptr;
  const Tensor g_x = fresh(x, {args.x.rows, args.x.dim}, x.scalar_type());
  args.g_x = g_x.mutable_data_ptr();
  class_moments_backward(args);
  return g_x;
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) {
  m.impl("class_moments", TORCH_BOX(&class_moments_cpu));
  m.impl("class_moments_backward", TORCH_BOX(&class_moments_backward_cpu));
  m.impl("accumulate_class_moments_", TORCH_BOX(&accumulate_class_moments_cpu));
}

#ifdef NCOPS_WITH_CUDA

template <class Args>
static Tensor moments_workspace(const Tensor& x, Args& args, const CudaCall& call) {
  STD_TORCH_CHECK(args.x.rows <= cuda::kMostRows, "x: expected at most ", cuda::kMostRows, " rows, got ", args.x.rows);
  STD_TORCH_CHECK(args.num_classes <= cuda::kMostClasses, "num_classes: expected at most ", cuda::kMostClasses, ", got ",
                  args.num_classes);
  const Tensor memory = workspace(x, cuda::class_moments_workspace(args.x.dtype, args.x.rows, args.x.dim, args.num_classes));
  args.workspace = memory.mutable_data_ptr();
  args.stream = call.stream();
  return memory;
}

static Moments class_moments_cuda(const Tensor& x, const Tensor& labels, int64_t num_classes, const OptionalTensor& center,
                                  int64_t ignore_index) {
  const CudaCall call(x);
  return fresh_moments<cuda::ClassMomentsArgs>(x, labels, num_classes, center, ignore_index,
                                               [&](cuda::ClassMomentsArgs& args) {
                                                 const Tensor memory = moments_workspace(x, args, call);
                                                 cuda::class_moments(args);
                                               });
}

// Invalid labels are skipped and counted: nothing is read back.
static Tensor accumulate_class_moments_cuda(Tensor counts, Tensor center, Tensor sums, Tensor sqnorms, Tensor invalid,
                                            const Tensor& x, const Tensor& labels, int64_t ignore_index) {
  const CudaCall call(x);
  return add_moments<cuda::AccumulateClassMomentsArgs>(counts, center, sums, sqnorms, invalid, x, labels, ignore_index,
                                                       [&](cuda::AccumulateClassMomentsArgs& args) {
                                                         args.invalid_total = static_cast<int64_t*>(invalid.mutable_data_ptr());
                                                         const Tensor memory = moments_workspace(x, args, call);
                                                         cuda::accumulate_class_moments(args);
                                                       });
}

STABLE_TORCH_LIBRARY_IMPL(ncops_C, CUDA, m) {
  m.impl("class_moments", TORCH_BOX(&class_moments_cuda));
  m.impl("accumulate_class_moments_", TORCH_BOX(&accumulate_class_moments_cuda));
}

#endif

}  // namespace ncops
