// What this machine can do at best: multiply-adds that stay in registers, and reading memory. The benchmark's yardsticks.
#include "blocks/product.h"
#include "kernels.h"

namespace ncops::NCOPS_ISA {
namespace {

constexpr int kChains = kRegisters * 3 / 4;  // independent sums: more than latency times units, all in registers

template <class T, class MultiplyAdd>
NCOPS_INLINE T chains(int64_t steps, MultiplyAdd multiply_add) {
  Vec<T> acc[kChains], a = splat<T>(T(0.999)), b = splat<T>(T(0.001));
  // Opaque to the compiler, which would otherwise compute the sums beforehand.
  asm volatile("" : "+m"(a), "+m"(b));
#pragma GCC unroll 32
  for (int i = 0; i < kChains; ++i) acc[i] = splat<T>(T(i));
  for (int64_t s = 0; s < steps; ++s)
#pragma GCC unroll 32
    for (int i = 0; i < kChains; ++i) acc[i] = multiply_add(a, b, acc[i]);
  Vec<T> sum{};
#pragma GCC unroll 32
  for (int i = 0; i < kChains; ++i) sum += acc[i];
  return reduce_add<T>(sum);
}

// As many steps of products of tiles that stay in the first-level cache: two groups of rows by two vectors. Returns their flops.
double tiles(int64_t steps) {
  constexpr int64_t lines = 16, L = 2 * kWidth<float>, group = kMR * lines * kLine<float>;
  alignas(64) static thread_local float x[lines * kLine<float> * L], w[2 * group], out[2 * kMR * L];
  const int64_t depth = lines * kLine<float>, times = pieces(steps, lines);
  for (int64_t s = 0; s < times; ++s) multiply_panel<Bf16Tiles, 2>(x, w, group, 2 * kMR, depth, false, out);
  return 4.0 * double(times * depth * 2 * kMR * L);
}

}  // namespace

void register_products(const RegisterProductsArgs& args) {
  const int64_t tasks = int64_t(16) * workers();  // handed out one by one, like the kernels' own, to share a disturbance
  std::atomic<int> sink{0};
  const int64_t steps = (args.steps + 15) / 16;
  const Bf16Products bf16 = args.dtype == DType::bf16 ? bf16_products() : Bf16Products::none;
  const bool pairs = kBf16Pairs && bf16 == Bf16Products::pairs;
  if constexpr (kBf16Tiles)
    if (bf16 == Bf16Products::tiles) {
      std::atomic<int64_t> flops{0};
      for_tasks(tasks, [&](int64_t, int) { flops.fetch_add(int64_t(tiles(steps))); });
      *args.flops = double(flops.load());
      return;
    }
  for_tasks(tasks, [&](int64_t, int) {
    double out = 0;
    // The sum is a factor: without a fused instruction, one product of a and b would do for all sums, and for all steps.
    if (args.dtype == DType::f64) out = chains<double>(steps, [](auto a, auto b, auto c) { return fma(c, a, b); });
    else if (pairs) out = chains<float>(steps, [](auto a, auto b, auto c) { return multiply_add_pairs(a, b, c); });
    else out = chains<float>(steps, [](auto a, auto b, auto c) { return fma(c, a, b); });
    if (out == 12345.0) sink.fetch_add(1);
  });
  const int lanes = args.dtype == DType::f64 ? kWidth<double> : kWidth<float>;
  *args.flops = 2.0 * (pairs ? 2 : 1) * lanes * kChains * double(steps) * double(tasks);
}

void read_memory(const ReadMemoryArgs& args) {
  constexpr int64_t block = int64_t(1) << 16;
  const int64_t blocks = args.rows.dim / block;
  std::atomic<int> sink{0};
  for_tasks(blocks, [&](int64_t task, int) {
    const float* p = static_cast<const float*>(args.rows.data) + task * block;
    Vec<float> acc[8] = {};
    for (int64_t i = 0; i < block; i += 8 * kWidth<float>)
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) acc[j] += load(p + i + j * kWidth<float>);
    Vec<float> sum{};
    for (int j = 0; j < 8; ++j) sum += acc[j];
    if (reduce_add<float>(sum) == 12345.0f) sink.fetch_add(1);
  });
}

}  // namespace ncops::NCOPS_ISA
