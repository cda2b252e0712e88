// What this machine can do at best: multiply-adds that stay in registers, and reading memory. The benchmark's yardsticks.
#include "blocks/scratch.h"
#include "isa/vec.h"
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

}  // namespace

void register_products(const RegisterProductsArgs& args) {
  const int64_t tasks = int64_t(16) * workers();  // handed out one by one, like the kernels' own, to share a disturbance
  std::atomic<int> sink{0};
  const int64_t steps = (args.steps + 15) / 16;
  const bool pairs = kBf16Pairs && args.dtype == DType::bf16 && bf16_products();
  for_tasks(tasks, [&](int64_t, int) {
    double out = 0;
    if (args.dtype == DType::f64) out = chains<double>(steps, [](auto a, auto b, auto c) { return fma(a, b, c); });
    else if (pairs) out = chains<float>(steps, [](auto a, auto b, auto c) { return multiply_add_pairs(a, b, c); });
    else out = chains<float>(steps, [](auto a, auto b, auto c) { return fma(a, b, c); });
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
