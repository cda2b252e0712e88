// What this machine can do at best: multiply-adds that stay in registers, and reading memory. The benchmark's yardsticks.
#include "blocks/pack.h"
#include "kernels.h"

namespace ncops::NCOPS_ISA {
namespace {

constexpr int kChains = kRegisters * 3 / 4;  // independent sums: more than latency times units, all in registers

// v, as the compiler cannot know: where there is no fused instruction, one product would do for all sums and for all steps.
template <class V>
NCOPS_INLINE V another(V v) {
#ifdef __aarch64__
  asm volatile("" : "+w"(v));
#else
  asm volatile("" : "+x"(v));
#endif
  return v;
}

template <class T, class MultiplyAdd>
NCOPS_INLINE T chains(int64_t steps, MultiplyAdd multiply_add) {
  Vec<T> acc[kChains], a = splat<T>(T(0.999)), b = splat<T>(T(0.001));
  // Opaque to the compiler, which would otherwise compute the sums beforehand.
  asm volatile("" : "+m"(a), "+m"(b));
#pragma GCC unroll 32
  for (int i = 0; i < kChains; ++i) acc[i] = splat<T>(T(i));
  for (int64_t s = 0; s < steps; ++s)
#pragma GCC unroll 32
    for (int i = 0; i < kChains; ++i) acc[i] = multiply_add(another(a), b, acc[i]);
  Vec<T> sum{};
#pragma GCC unroll 32
  for (int i = 0; i < kChains; ++i) sum += acc[i];
  return reduce_add<T>(sum);
}

#ifdef NCOPS_BF16_TILES
constexpr int64_t kRowsOfTile = 16;  // a product takes as long with fewer
constexpr double kTileFlops = 4 * 2.0 * kRowsOfTile * kLine<float> * 2 * kLine<float>;

// Four sums of tiles, two by two, which are all the eight that there are.
void tiles(int64_t steps) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = kRowsOfTile;
  alignas(64) float ones[kRowsOfTile * kLine<float>];
  for (float& one : ones) one = 1;
  configure_tiles(config);
  clear_tile<0>(), clear_tile<1>(), clear_tile<2>(), clear_tile<3>();
  load_tile<4>(ones, kLine<float>), load_tile<5>(ones, kLine<float>);
  load_tile<6>(ones, kLine<float>), load_tile<7>(ones, kLine<float>);
  for (int64_t s = 0; s < steps; ++s)
    multiply_tiles<0, 4, 6>(), multiply_tiles<1, 4, 7>(), multiply_tiles<2, 5, 6>(), multiply_tiles<3, 5, 7>();
  release_tiles();
}
#endif

}  // namespace

void register_products(const RegisterProductsArgs& args) {
  const int64_t tasks = int64_t(16) * workers();  // handed out one by one, like the kernels' own, to share a disturbance
  std::atomic<int> sink{0};
  const int64_t steps = (args.steps + 15) / 16;
  const Bf16Products bf16 = args.dtype == DType::bf16 ? bf16_products() : Bf16Products::none;
  const bool pairs = kBf16Pairs && bf16 == Bf16Products::pairs;
#ifdef NCOPS_BF16_TILES
  if (bf16 == Bf16Products::tiles) {
    for_tasks(tasks, [&](int64_t, int) { tiles(steps); });
    *args.flops = kTileFlops * double(steps) * double(tasks);
    return;
  }
#endif
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
