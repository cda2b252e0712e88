// What the <op>.cpp files share: from tensors (seen through torch's stable ABI) to the kernels' plain pointers.
// The schemas that their functions are registered for stand in ncops/ops/<op>.py, once for all backends.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <optional>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/blocks/scratch.h"
#include "cuda_build.h"  // of setup.py: NCOPS_WITH_CUDA where it has CUDA kernels

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

// Where a tensor's numbers lie. Never null, by which kernels know that there is no such tensor: empty ones have no address.
template <class T = void>
inline T* writable(const Tensor& t) {
  alignas(64) static char nothing[64];
  return static_cast<T*>(t.numel() == 0 ? nothing : t.mutable_data_ptr());
}
template <class T = void>
inline const T* data_of(const Tensor& t) {
  return t.numel() == 0 ? writable<T>(t) : static_cast<const T*>(t.const_data_ptr());
}

// Sharding frameworks free a tensor's memory and leave its shape.
inline void check_storage(const Tensor& t, const char* name) {
  if (t.numel() == 0) return;
  int64_t bytes = 0, offset = 0, last = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(t.get(), &offset));
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  STD_TORCH_CHECK((offset + last + 1) * int64_t(t.element_size()) <= bytes, name, ": its storage has ", bytes,
                  " bytes, fewer than its shape needs: it was freed or resized");
}

inline void check_cpu(const Tensor& t, const char* name) { STD_TORCH_CHECK(t.is_cpu(), name, ": expected a CPU tensor"); }

// like: a tensor on the device of this call; null on the CPU.
inline void check_device(const Tensor& t, const char* name, const Tensor* like) {
  check_storage(t, name);
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
  r.data = data_of(t);
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
  return t ? data_of<T>(*t) : nullptr;
}

inline Tensor fresh(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type) {
  Tensor out = torch::stable::new_empty(like, sizes, type);
  if (out.is_cpu()) prefer_huge_pages(writable(out), size_t(out.numel()) * size_t(out.element_size()));
  return out;
}

// A fresh gradient that `out` then points to; of size 0 where it is not needed, and `out` stays.
inline Tensor gradient(const Tensor& like, bool need, std::initializer_list<int64_t> sizes, ScalarType type, void*& out) {
  Tensor t = need ? fresh(like, sizes, type) : fresh(like, {0}, type);
  if (need) out = writable(t);
  return t;
}

inline Tensor stored_as(const Tensor& t, ScalarType type) {
  if (t.scalar_type() == type) return t;
  Tensor out = fresh(t, t.sizes(), type);  // in large pages: torch's own first touch took a twentieth of linear_loss in bfloat16
  return torch::stable::copy_(out, t);
}

// Leaves of `rows` those that count, keeps(row); returns the indices that they point into.
template <class Keeps>
inline std::vector<int64_t> keep_rows(Rows& rows, Keeps keeps) {
  std::vector<int64_t> index;
  index.reserve(rows.rows);
  for (int64_t i = 0; i < rows.rows; ++i)
    if (keeps(i)) index.push_back(i);
  rows.index = index.data();
  rows.rows = int64_t(index.size());
  return index;
}

// A centre per label (C, D), or one (D), in the compute dtype of x; the tensor must outlive the rows.
inline Tensor attach_center(Rows& rows, const Tensor& x, const Tensor& center, bool per_class, const int64_t* labels) {
  Tensor out = dense(center, "center", compute_type(x), &x);
  STD_TORCH_CHECK(out.dim() == (per_class ? 2 : 1), "center: expected (C, D) with labels, (D,) without");
  check_size(out, "center", per_class ? 1 : 0, rows.dim);
  rows.center = data_of(out);
  rows.labels = labels;
  return out;
}

// Rows less their centres, checked. Holds the dense copies that the rows point into.
struct Deviations {
  Rows rows;
  OptionalTensor labels, center;
  int64_t classes = 1;

  Deviations(const Tensor& x, const OptionalTensor& given_labels, const OptionalTensor& given_center)
      : rows(rows_of(x, "x", &x)) {
    if (given_labels) {
      STD_TORCH_CHECK(given_center.has_value(), "center: expected (C, D) with labels");
      labels = dense_labels(*given_labels, "labels", rows.rows, &x);
      classes = given_center->size(0);
    }
    if (given_center) center = attach_center(rows, x, *given_center, labels.has_value(), pointer<int64_t>(labels));
  }
};

// The options that linear_stats and logit_stats share, and their targets (N) where there are any; the tensor must outlive args.
inline OptionalTensor attach_target(LogitOptions& args, const OptionalTensor& target, int64_t rows, const Tensor& like,
                                    double scale, double softcap, int64_t ignore_index) {
  args.scale = scale;
  args.softcap = softcap;
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
  LogitColumns columns() const { return {writable(floats), ints(), floats.size(1)}; }
  LogitShares shares() const { return {writable<double>(floats), ints(), floats.size(1)}; }

  using Tuple = std::tuple<Tensor, Tensor>;
  Tuple tuple() const { return {floats, indices}; }

 private:
  Planes(Tensor f, Tensor i) : floats(f), indices(i) {}
  int64_t* ints() const { return writable<int64_t>(indices); }
};

// The gradients by the float columns and the forward's own columns, checked; returns the dense planes that args points into.
inline std::array<Tensor, 3> attach_planes(LogitBackward& args, int64_t rows, ScalarType type, const Tensor& grad,
                                           const Tensor& floats, const Tensor& indices) {
  const auto plane = [&](const Tensor& t, const char* name, ScalarType type, int64_t number) {
    check_size(t, name, 0, number);
    check_size(t, name, 1, rows);
    return dense(t, name, type);
  };
  std::array<Tensor, 3> planes = {plane(grad, "grad", type, kFloatColumns), plane(floats, "floats", type, kFloatColumns),
                                  plane(indices, "indices", ScalarType::Long, kIndexColumns)};
  args.grad = data_of(planes[0]);
  args.floats = data_of(planes[1]);
  args.indices = data_of<int64_t>(planes[2]);
  args.rows = rows;
  return planes;
}

// The gradients by the planes of divergences and those planes, checked; returns the dense ones that args points into.
inline std::array<Tensor, 2> attach_divergences(DivergenceArgs& args, int64_t rows, ScalarType type, const Tensor& grad,
                                                const Tensor& floats) {
  std::array<Tensor, 2> planes = {dense(grad, "grad", type), dense(floats, "floats", type)};
  for (const Tensor& plane : planes) {
    check_size(plane, "floats", 0, divergence::kColumns);
    check_size(plane, "floats", 1, rows);
  }
  args.grad = data_of(planes[0]);
  args.floats = data_of(planes[1]);
  return planes;
}

}  // namespace ncops
