// What the <op>.cpp files share: from tensors (seen through torch's stable ABI) to the kernels' plain pointers.
// The schemas that their functions are registered for stand in ncops/ops/<op>.py, once for all backends.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/blocks/scratch.h"

namespace ncops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: STD_TORCH_CHECK(false, name, ": expected float32, float64, bfloat16 or float16");
  }
}

inline ScalarType compute_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_cpu(const Tensor& t, const char* name) { STD_TORCH_CHECK(t.is_cpu(), name, ": expected a CPU tensor"); }

// like: a tensor on the device of this call; null on the CPU.
inline void check_device(const Tensor& t, const char* name, const Tensor* like) {
  if (like == nullptr || like->is_cpu()) return check_cpu(t, name);
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == like->get_device_index(), name, ": expected a tensor on CUDA device ",
                  like->get_device_index());
}

inline void check_size(const Tensor& t, const char* name, int64_t dim, int64_t expected) {
  STD_TORCH_CHECK(t.dim() > dim && t.size(dim) == expected, name, ": expected size ", expected, " in dimension ", dim);
}

inline Rows rows_of(const Tensor& t, const char* name, const Tensor* like = nullptr) {
  check_device(t, name, like);
  STD_TORCH_CHECK(t.dim() == 2, name, ": expected 2 dimensions, got ", t.dim());
  Rows r;
  r.data = t.const_data_ptr();
  r.dtype = dtype_of(t, name);
  r.rows = t.size(0);
  r.dim = t.size(1);
  r.row_stride = t.stride(0);
  r.col_stride = t.stride(1);
  return r;
}

// A dense vector or matrix of the given dtype, contiguous whatever came in.
inline Tensor dense(const Tensor& t, const char* name, ScalarType type, const Tensor* like = nullptr) {
  check_device(t, name, like);
  STD_TORCH_CHECK(t.scalar_type() == type, name, ": unexpected dtype");
  return torch::stable::contiguous(t);
}

inline Tensor dense_labels(const Tensor& labels, const char* name, int64_t rows, const Tensor* like = nullptr) {
  Tensor out = dense(labels, name, ScalarType::Long, like);
  check_size(out, name, 0, rows);
  return out;
}

template <class T>
inline const T* pointer(const std::optional<Tensor>& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

inline Tensor fresh(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  Tensor out = torch::stable::new_empty(like, sizes, type);
  if (out.is_cpu()) prefer_huge_pages(out.mutable_data_ptr(), size_t(out.numel()) * size_t(out.element_size()));
  return out;
}

// The rows that count, as indices for Rows::index: those whose label is a class, or whose mask is true.
struct KeptRows {
  std::vector<int64_t> index;

  KeptRows(const int64_t* labels, int64_t rows, int64_t num_classes, int64_t ignore_index) {
    index.reserve(rows);
    for (int64_t i = 0; i < rows; ++i)
      if (is_class(labels[i], num_classes, ignore_index)) index.push_back(i);
  }
  KeptRows(const bool* mask, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i)
      if (mask[i]) index.push_back(i);
  }
  void select(Rows& rows) const {
    rows.index = index.data();
    rows.rows = int64_t(index.size());
  }
};

// A centre per label (C, D), or one (D), in the compute dtype of x; the tensor must outlive the rows.
inline Tensor attach_center(Rows& rows, const Tensor& x, const Tensor& center, bool per_class, const int64_t* labels) {
  Tensor out = dense(center, "center", compute_type(x), &x);
  STD_TORCH_CHECK(out.dim() == (per_class ? 2 : 1), "center: expected (C, D) with labels, (D,) without");
  check_size(out, "center", per_class ? 1 : 0, rows.dim);
  rows.center = out.const_data_ptr();
  rows.labels = labels;
  return out;
}

// The options that linear_stats and logit_stats share, and their targets (N) where there are any; the tensor must outlive args.
template <class Args>
inline OptionalTensor attach_target(Args& args, const OptionalTensor& target, int64_t rows, const Tensor& like, double scale,
                                    int64_t ignore_index) {
  args.scale = scale;
  args.ignore_index = ignore_index;
  if (!target) return std::nullopt;
  OptionalTensor out = dense_labels(*target, "target", rows, &like);
  args.target = pointer<int64_t>(out);
  return out;
}

// Planes of N rows that linear_stats and logit_stats return; see logit_share.h.
struct Planes {
  Tensor floats, indices;

  // The columns.
  Planes(const Tensor& like, int64_t rows)
      : floats(fresh(like, {kFloatColumns, rows}, compute_type(like))),
        indices(fresh(like, {kIndexColumns, rows}, ScalarType::Long)) {}
  // Shares.
  static Planes of_shares(const Tensor& like, int64_t rows) {
    return {fresh(like, {kShareFloats, rows}, ScalarType::Double), fresh(like, {kShareIndices, rows}, ScalarType::Long)};
  }
  LogitColumns columns() const { return {floats.mutable_data_ptr(), ints(), floats.size(1)}; }
  LogitShares shares() const { return {static_cast<double*>(floats.mutable_data_ptr()), ints(), floats.size(1)}; }

  using Tuple = std::tuple<Tensor, Tensor>;
  Tuple tuple() const { return {floats, indices}; }

 private:
  Planes(Tensor f, Tensor i) : floats(f), indices(i) {}
  int64_t* ints() const { return static_cast<int64_t*>(indices.mutable_data_ptr()); }
};

// The gradients by the float columns and the forward's own columns, checked and dense, as their kernels take them.
struct GradientPlanes {
  Tensor grad, floats, indices;  // dense copies of expanded gradients live until the kernel has run

  GradientPlanes(LogitBackward& args, int64_t rows, ScalarType type, const Tensor& given_grad, const Tensor& given_floats,
                 const Tensor& given_indices)
      : grad(plane(given_grad, "grad", type, kFloatColumns, rows)),
        floats(plane(given_floats, "floats", type, kFloatColumns, rows)),
        indices(plane(given_indices, "indices", ScalarType::Long, kIndexColumns, rows)) {
    args.grad = grad.const_data_ptr();
    args.floats = floats.const_data_ptr();
    args.indices = static_cast<const int64_t*>(indices.const_data_ptr());
    args.rows = rows;
  }

 private:
  static Tensor plane(const Tensor& t, const char* name, ScalarType type, int64_t number, int64_t rows) {
    check_size(t, name, 0, number);
    check_size(t, name, 1, rows);
    return dense(t, name, type);
  }
};

}  // namespace ncops
