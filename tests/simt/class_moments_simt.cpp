#include "rows_bind.h"

#include <algorithm>
#include <numeric>

#include "cuda/class_moments.cuh"

namespace {

using namespace ncops::cuda;

// What CUB's stable radix sort does on a GPU; everything before and after is what runs there.
void sort_pairs(const MomentWorkspace& work, int64_t rows) {
  std::vector<uint32_t> index(rows);
  std::iota(index.begin(), index.end(), 0u);
  const uint32_t* keys = work.keys[0];
  std::stable_sort(index.begin(), index.end(), [&](uint32_t a, uint32_t b) { return keys[a] < keys[b]; });
  for (int64_t i = 0; i < rows; ++i) {
    work.keys[1][i] = work.keys[0][index[i]];
    work.order[1][i] = work.order[0][index[i]];
  }
}

template <class Args, class Launch>
void sort_and_launch(Args& args, Launch launch) {
  const auto carve = [&](void* base) {
    return MomentWorkspace(base, args.x.dtype, args.x.rows, args.x.dim, args.num_classes, 0);
  };
  const simt::Workspace memory(carve(nullptr).bytes);
  const MomentWorkspace work = carve(memory.data());
  launch_class_keys(args.labels, args.x.rows, args.num_classes, args.ignore_index, work.keys[0], work.order[0],
                    work.invalid_parts, nullptr);
  sort_pairs(work, args.x.rows);
  dispatch_dtype(args.x.dtype, [&](auto in) { launch(in, work); });
}

}  // namespace

SIMT_MODULE(class_moments, m) {
  m.def("class_moments", [](const simt::In& x, const simt::In& labels, int64_t num_classes,
                            const std::optional<simt::In>& center, int64_t ignore_index, const simt::Out& sums,
                            const simt::Out& sqnorms, const simt::Out& counts, const simt::Out& invalid) {
    ClassMomentsArgs args{rows_of(x), labels.data<int64_t>(), num_classes, ignore_index,
                          center ? center->raw() : nullptr, counts.data<int64_t>(), sums.raw(), sqnorms.data<double>(),
                          invalid.data<int64_t>(), nullptr, nullptr};
    sort_and_launch(args, [&](auto in, const MomentWorkspace& work) {
      launch_class_moments<decltype(in)>(args, work, work.keys[1], work.order[1]);
    });
  });
  m.def("accumulate_class_moments_", [](const simt::Out& counts, const simt::Out& center, const simt::Out& sums,
                                        const simt::Out& sqnorms, const simt::Out& invalid, const simt::In& x,
                                        const simt::In& labels, int64_t ignore_index, const simt::Out& bad) {
    AccumulateClassMomentsArgs args{rows_of(x), labels.data<int64_t>(), counts.size(0), ignore_index,
                                    counts.data<int64_t>(), center.raw(), sums.data<double>(), sqnorms.data<double>(),
                                    invalid.data<int64_t>(), bad.data<int64_t>(), nullptr, nullptr};
    sort_and_launch(args, [&](auto in, const MomentWorkspace& work) {
      launch_accumulate<decltype(in)>(args, work, work.keys[1], work.order[1]);
    });
  });
  m.def("split_rows", &split_rows, "Sorted rows per block.");
  m.def("key_bits", &key_bits, "Bits of a class that are sorted.");
}
