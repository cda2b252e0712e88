#include "tensors.h"

namespace ncops {

// Multiply-adds in registers on every thread, `steps` rounds; returns how many floating-point operations that was.
static Tensor register_products_cpu(const Tensor& like, int64_t steps) {
  const Tensor flops = fresh(like, {}, ScalarType::Double);
  register_products({dtype_of(like, "like"), steps, writable<double>(flops)});
  return flops;
}

// Reads x (1, n) float32 once, n in multiples of 65536.
static void read_memory_cpu(const Tensor& x) {
  const Rows rows = rows_of(x, "x");
  STD_TORCH_CHECK(rows.dtype == DType::f32 && rows.col_stride == 1, "x: expected contiguous float32");
  read_memory({rows});
}

STABLE_TORCH_LIBRARY_FRAGMENT(ncops_C, m) {
  m.def("register_products(Tensor like, int steps) -> Tensor");
  m.def("read_memory(Tensor x) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(ncops_C, CPU, m) {
  m.impl("register_products", TORCH_BOX(&register_products_cpu));
  m.impl("read_memory", TORCH_BOX(&read_memory_cpu));
}

}  // namespace ncops
