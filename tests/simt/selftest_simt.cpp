#include "bind.h"
#include "selftest_intrinsics.cuh"
#include "selftest_kernels.cuh"
#include "selftest_misuse.cuh"

SIMT_MODULE(selftest, m) {
  using simt::In, simt::Out;

  m.def("row_sums", [](In x, Out sums) {
    selftest::row_sums(x.data<float>(), sums.data<float>(), x.size(0), x.size(1), nullptr);
  });
  m.def("histogram", [](In labels, Out counts) {
    selftest::histogram(labels.data<int64_t>(), counts.data<int>(), labels.numel(), int(counts.numel()), nullptr);
  });
  m.def("tiled_product", [](In a, In b, Out c) {
    selftest::tiled_product(a.data<float>(), b.data<float>(), c.data<float>(), int(a.size(0)), int(b.size(0)),
                            int(a.size(1)), nullptr);
  });
  m.def("tensor_product", [](In a, In b, Out c) {
    simt::dispatch<__half, __nv_bfloat16>(a, [&](auto zero) {
      using T = decltype(zero);
      selftest::tensor_product(a.data<T>(), b.data<T>(), c.data<float>(), int(a.size(0)), int(b.size(0)),
                               int(a.size(1)), nullptr);
    });
  });
  m.def("reverse_warps", [](In x, Out y) { selftest::reverse_warps(x.data<int>(), y.data<int>(), nullptr); });

  m.def("warp_functions", [](In x, Out out, int width, int amount) {
    selftest::warp_functions(x.data<int>(), out.data<int>(), width, amount);
  });
  m.def("block_votes", [](In x, Out out, int leave) {
    selftest::block_votes(x.data<int>(), out.data<int>(), int(x.size(0)), int(x.size(1)), leave);
  });
  m.def("last_block", [](In x, Out partial, Out sum) {
    simt::Workspace arrived(sizeof(unsigned));
    cudaMemsetAsync(arrived.data(), 0, sizeof(unsigned));
    selftest::last_block(x.data<int>(), partial.data<int>(), static_cast<unsigned*>(arrived.data()), sum.data<int>(),
                         int(x.numel()));
  });
  m.def("convert", [](In x, Out y, Out back) {
    simt::dispatch<__half, __nv_bfloat16>(y, [&](auto zero) {
      using T = decltype(zero);
      selftest::convert(x.data<float>(), y.data<T>(), back.data<float>(), x.numel());
    });
  });
  m.def("scalar_functions", [](In a, In b, Out out) {
    selftest::scalar_functions(a.data<float>(), b.data<float>(), out.data<float>(), int(a.numel()));
  });
  m.def("ldmatrix", [](In x, Out out) { selftest::ldmatrix(x.data<uint16_t>(), out.data<unsigned>()); });

  m.def("misuse", [](int which, Out memory) {
    selftest::misuse(static_cast<selftest::Misuse>(which), memory.data<float>());
  });
  m.def("launch_nothing", [](unsigned blocks, unsigned threads, size_t shared_bytes) {
    selftest::launch_nothing(blocks, threads, shared_bytes);
  });
}
