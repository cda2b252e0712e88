// class_scatter on the device.
#include "class_scatter.cuh"

namespace ncops::cuda {

size_t class_scatter_workspace(DType dtype, int64_t rows, int64_t dim) { return ScatterPlan(dtype, rows, dim).bytes; }

void class_scatter(const ClassScatterArgs& args) {
  dispatch_dtype(args.x.dtype, [&](auto in) { launch_class_scatter<decltype(in)>(args); });
}

}  // namespace ncops::cuda
