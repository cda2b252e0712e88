// What the <op>.cpp files share: from tensors (seen through torch's stable ABI) to the kernels' plain pointers.
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

// The 13 columns of linear_stats and logit_stats, in the order of the op's schema.
struct LogitOutputs {
  Tensor lse, gap, max, second, target_logit, nll, entropy, mean, var, argmax, second_index, target_rank, valid;

  LogitOutputs(const Tensor& like, int64_t rows, bool targets)
      : lse(floats(like, rows)), gap(floats(like, rows)), max(floats(like, rows)), second(floats(like, rows)),
        target_logit(floats(like, targets ? rows : 0)), nll(floats(like, targets ? rows : 0)), entropy(floats(like, rows)),
        mean(floats(like, rows)), var(floats(like, rows)), argmax(fresh(like, {rows}, ScalarType::Long)),
        second_index(fresh(like, {rows}, ScalarType::Long)),
        target_rank(fresh(like, {targets ? rows : 0}, ScalarType::Long)),
        valid(fresh(like, {targets ? rows : 0}, ScalarType::Bool)) {}

  LogitColumns columns() const {
    const auto ints = [](const Tensor& t) { return static_cast<int64_t*>(t.mutable_data_ptr()); };
    return {lse.mutable_data_ptr(), gap.mutable_data_ptr(), max.mutable_data_ptr(), second.mutable_data_ptr(),
            target_logit.mutable_data_ptr(), nll.mutable_data_ptr(), entropy.mutable_data_ptr(), mean.mutable_data_ptr(),
            var.mutable_data_ptr(), ints(argmax), ints(second_index), ints(target_rank),
            static_cast<bool*>(valid.mutable_data_ptr())};
  }

  using Tuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
  Tuple tuple() const {
    return {lse, gap, max, second, target_logit, nll, entropy, mean, var, argmax, second_index, target_rank, valid};
  }

 private:
  static Tensor floats(const Tensor& like, int64_t rows) { return fresh(like, {rows}, compute_type(like)); }
};

// The gradients by those columns and the forward's own, checked and dense, as their kernels take them.
struct LogitGradientInputs {
  std::vector<Tensor> held;  // dense copies of expanded gradients live until the kernel has run

  LogitGradientInputs(LogitBackward& args, int64_t rows, ScalarType type, const Tensor& g_lse, const Tensor& g_gap,
                      const Tensor& g_max, const Tensor& g_second, const Tensor& g_target_logit, const Tensor& g_nll,
                      const Tensor& g_entropy, const Tensor& g_mean, const Tensor& g_var, const Tensor& gap,
                      const Tensor& max, const Tensor& entropy, const Tensor& mean, const Tensor& argmax,
                      const Tensor& second_index) {
    const auto column = [&](const Tensor& t, const char* name, ScalarType expected) {
      held.push_back(dense(t, name, expected));
      check_size(held.back(), name, 0, rows);
      return held.back().const_data_ptr();
    };
    args.grad = {column(g_lse, "g_lse", type), column(g_gap, "g_gap", type), column(g_max, "g_max", type),
                 column(g_second, "g_second", type),
                 args.target ? column(g_target_logit, "g_target_logit", type) : nullptr,
                 args.target ? column(g_nll, "g_nll", type) : nullptr, column(g_entropy, "g_entropy", type),
                 column(g_mean, "g_mean", type), column(g_var, "g_var", type)};
    args.gap = column(gap, "gap", type);
    args.max = column(max, "max", type);
    args.entropy = column(entropy, "entropy", type);
    args.mean = column(mean, "mean", type);
    args.argmax = static_cast<const int64_t*>(column(argmax, "argmax", ScalarType::Long));
    args.second_index = static_cast<const int64_t*>(column(second_index, "second_index", ScalarType::Long));
  }
};

}  // namespace ncops
