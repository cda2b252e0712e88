// The micro-kernel of products in tiles. Packed rows are tiles as they lie: a line of a group has kMR rows of 16 pairs, and of a
// panel 16 steps. Two groups share what is loaded of a panel.
#pragma once

#include "pack.h"

namespace ncops::NCOPS_ISA {

// ... or 16 pairs at a time, in tiles. Steps are whole lines, of which those past the last feature are zero.
struct Bf16Tiles : Bf16Pairs {
  static int64_t depth(int64_t dim) { return round_up(Bf16Pairs::depth(dim), kLine<float>); }
};

template <class Mode>
constexpr bool kInTiles = std::is_same_v<Mode, Bf16Tiles>;

// Calls f(mode) if such rows are multiplied as bfloat16.
template <class F>
bool with_bf16_products(DType dtype, F f) {
  if (dtype != DType::bf16) return false;
  if constexpr (kBf16Tiles)
    if (bf16_products() == Bf16Products::tiles) return f(Bf16Tiles()), true;
  if constexpr (kBf16Pairs)
    if (bf16_products() == Bf16Products::pairs) return f(Bf16Pairs()), true;
  return false;
}

// multiply_panel of product.h: `count` rows of w in groups `group` elements apart.
template <int NV>
void multiply_in_tiles(const float* x, const float* w, int64_t group, int64_t count, int64_t steps, bool onto, float* out);
// What it gives for one row of w per lane, to the bit: w[step][lane] * x[step][lane].
template <int NV>
void tile_diagonal(const float* x, const float* w, int64_t depth, float* out);
// add_weight_gradient of gradient_products.h.
template <int NV>
void weight_gradient_in_tiles(const float* dz, int64_t panel, int64_t panels, const bool* zero, const float* x, int64_t dim, float* out,
                              int64_t classes);

#ifdef NCOPS_BF16_TILES

// Tiles 0 to 3 are sums, [group][vector], 4 and 5 a line of either group, 6 and 7 one of either vector.
constexpr TileConfig tile_config() {
  TileConfig config;
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = i < 6 ? kMR : kLine<float>;
  return config;
}

constexpr int64_t kLinesAtOnce = 12;  // of a panel, 24 KB, stay in the first-level cache

class TileScope {
 public:
  TileScope() {
    alignas(64) static constexpr TileConfig config = tile_config();
    configure_tiles(config);
  }
  ~TileScope() { release_tiles(); }
};

// out[m * NV * W + lane], += if `onto`, for G groups of w, `group` elements apart, over `lines` of x and w. A line of w has rows
// `row` elements apart, and is followed by the next after `line`.
template <int G, int NV>
NCOPS_INLINE void tile_products(const float* x, const float* w, int64_t group, int64_t row, int64_t line, int64_t lines, bool onto,
                                const bool* left_out, float* out) {
  constexpr int W = kWidth<float>, L = NV * W, next = kMR * L;
  const auto sums = [&](auto each) {  // each(tile, where)
    each(std::integral_constant<int, 0>(), out);
    if constexpr (NV == 2) each(std::integral_constant<int, 1>(), out + W);
    if constexpr (G == 2) each(std::integral_constant<int, 2>(), out + next);
    if constexpr (G == 2 && NV == 2) each(std::integral_constant<int, 3>(), out + next + W);
  };
  if (onto) sums([](auto tile, const float* p) { load_tile<tile.value>(p, L); });
  else sums([](auto tile, const float*) { clear_tile<tile.value>(); });
  for (int64_t i = 0; i < lines; ++i, x += kLine<float> * L, w += line) {
    if (left_out && left_out[i]) continue;
    load_tile<6>(x, L);
    load_tile<4>(w, row);
    multiply_tiles<0, 4, 6>();
    if constexpr (NV == 2) {
      load_tile<7>(x + W, L);
      multiply_tiles<1, 4, 7>();
    }
    if constexpr (G == 2) {
      load_tile<5>(w + group, row);
      multiply_tiles<2, 5, 6>();
      if constexpr (NV == 2) multiply_tiles<3, 5, 7>();
    }
  }
  sums([](auto tile, float* p) { store_tile<tile.value>(p, L); });
}

template <int NV>
__attribute__((noinline)) void multiply_in_tiles(const float* x, const float* w, int64_t group, int64_t count, int64_t steps, bool onto,
                                                 float* out) {
  constexpr int64_t line = kLine<float>, L = NV * kWidth<float>, next = kMR * L;
  const TileScope tiles;
  const int64_t all = pieces(steps, line);
  for (int64_t first = 0; first < all || first == 0; first += kLinesAtOnce, onto = true) {
    const int64_t lines = std::min(kLinesAtOnce, all - first);
    const float *columns = x + first * line * L, *rows = w + first * kMR * line;
    float* to = out;
    int64_t left = pieces(count, kMR);
    for (; left >= 2; left -= 2, rows += 2 * group, to += 2 * next)
      tile_products<2, NV>(columns, rows, group, line, kMR * line, lines, onto, nullptr, to);
    if (left) tile_products<1, NV>(columns, rows, group, line, kMR * line, lines, onto, nullptr, to);
  }
}

template <int NV>
void weight_gradient_in_tiles(const float* dz, int64_t panel, int64_t panels, const bool* zero, const float* x, int64_t dim, float* out,
                              int64_t classes) {
  constexpr int L = NV * kWidth<float>;
  static_assert(L == 2 * kLine<float>);  // the rows of a panel are one line of pairs
  const TileScope tiles;
  alignas(64) float total[2 * kMR][L];
  for (int64_t k = 0; k < dim; k += L)
    for (int64_t m = 0; m < classes; m += 2 * kMR) {
      const float *columns = x + k * (panels * L / 2), *rows = dz + m * L;
      const int64_t count = std::min<int64_t>(2 * kMR, classes - m);
      if (count > kMR) tile_products<2, NV>(columns, rows, kMR * L, L, panel, panels, false, zero, total[0]);
      else tile_products<1, NV>(columns, rows, kMR * L, L, panel, panels, false, zero, total[0]);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t j = 0; j < std::min<int64_t>(L, dim - k); ++j) out[(m + i) * dim + k + j] += total[i][j];
    }
}

template <int NV>
inline void tile_diagonal(const float* x, const float* w, int64_t depth, float* out) {
  constexpr int W = kWidth<float>;
  using I = IntVec<float>;
  for (int v = 0; v < NV; ++v) {
    Vec<float> total{};
    for (int64_t start = 0; start < depth; start += kLine<float>) {
      Vec<float> even{}, odd{};
      for (int64_t k = start; k < start + kLine<float>; ++k) {
        const I a = (I)load(w + (k * NV + v) * W), b = (I)load(x + (k * NV + v) * W);
        even = fma((Vec<float>)(a << 16), (Vec<float>)(b << 16), even);
        odd = fma((Vec<float>)(a & ~0xffff), (Vec<float>)(b & ~0xffff), odd);
      }
      total += even + odd;
    }
    store(out + v * W, total);
  }
}

#endif  // NCOPS_BF16_TILES

}  // namespace ncops::NCOPS_ISA
