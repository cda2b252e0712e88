// class_moments and accumulate_class_moments_ on the device: rows sorted by label with CUB, then the kernels.
#include "class_moments.cuh"

#include <cub/device/device_radix_sort.cuh>

namespace ncops::cuda {
namespace {

// Stable, so rows of a class keep their order and results their bits. Only the bits that tell classes apart are sorted.
size_t sort_pairs(void* temporary, size_t bytes, cub::DoubleBuffer<uint32_t>& keys, cub::DoubleBuffer<uint32_t>& order,
                  int64_t rows, int64_t num_classes, cudaStream_t stream) {
  throw_on_error(cub::DeviceRadixSort::SortPairs(temporary, bytes, keys, order, uint32_t(rows), 0,
                                                 key_bits(num_classes), stream),
                 "class_moments: sort");
  return bytes;
}

size_t sort_bytes(int64_t rows, int64_t num_classes) {
  cub::DoubleBuffer<uint32_t> keys, order;
  return rows == 0 ? 0 : sort_pairs(nullptr, 0, keys, order, rows, num_classes, nullptr);
}

template <class Args, class Launch>
void sort_and_launch(const Args& args, Launch launch) {
  const int64_t rows = args.x.rows;
  const auto stream = static_cast<cudaStream_t>(args.stream);
  const size_t bytes = sort_bytes(rows, args.num_classes);
  const MomentWorkspace work(args.workspace, args.x.dtype, rows, args.x.dim, args.num_classes, bytes);
  cub::DoubleBuffer<uint32_t> keys(work.keys[0], work.keys[1]), order(work.order[0], work.order[1]);
  launch_class_keys(args.labels, rows, args.num_classes, args.ignore_index, keys.Current(), order.Current(),
                    work.invalid_parts, stream);
  if (rows > 0) sort_pairs(work.sort, bytes, keys, order, rows, args.num_classes, stream);
  launch(work, keys.Current(), order.Current());
}

}  // namespace

size_t class_moments_workspace(DType dtype, int64_t rows, int64_t dim, int64_t num_classes) {
  return MomentWorkspace(nullptr, dtype, rows, dim, num_classes, sort_bytes(rows, num_classes)).bytes;
}

void class_moments(const ClassMomentsArgs& args) {
  sort_and_launch(args, [&](const MomentWorkspace& work, const uint32_t* keys, const uint32_t* order) {
    dispatch_dtype(args.x.dtype, [&](auto in) { launch_class_moments<decltype(in)>(args, work, keys, order); });
  });
}

void accumulate_class_moments(const AccumulateClassMomentsArgs& args) {
  sort_and_launch(args, [&](const MomentWorkspace& work, const uint32_t* keys, const uint32_t* order) {
    dispatch_dtype(args.x.dtype, [&](auto in) { launch_accumulate<decltype(in)>(args, work, keys, order); });
  });
}

}  // namespace ncops::cuda
