#include "rows_bind.h"

#include "cuda/class_scatter.cuh"

SIMT_MODULE(class_scatter, m) {
  using namespace ncops::cuda;
  m.def("class_scatter", [](const simt::In& x, const std::optional<simt::In>& labels,
                            const std::optional<simt::In>& center, int64_t ignore_index, const simt::Out& out) {
    ClassScatterArgs args{{},
                          rows_of(x),
                          labels ? labels->data<int64_t>() : nullptr,
                          labels ? center->size(0) : 0,
                          ignore_index,
                          center ? center->raw() : nullptr,
                          out.raw()};
    const simt::Workspace workspace(ScatterPlan(args.x.dtype, args.x.rows, args.x.dim).bytes);
    args.workspace = workspace.data();
    dispatch_dtype(args.x.dtype, [&](auto in) { launch_class_scatter<decltype(in)>(args); });
  });
  m.def("plan", [](int64_t element_bytes, int64_t rows, int64_t dim, const simt::Out& out) {
    using ncops::DType;
    const ScatterPlan plan(element_bytes == 8 ? DType::f64 : element_bytes == 4 ? DType::f32 : DType::bf16, rows, dim);
    const int64_t values[] = {plan.tile, plan.tiles, plan.chunks, plan.chunk_rows, int64_t(plan.bytes)};
    std::copy(std::begin(values), std::end(values), out.data<int64_t>());
  });
}
