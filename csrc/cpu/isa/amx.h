// Products of tiles (AMX): 16 lanes by as many rows, summed over 16 pairs of bfloat16 at a time. Only behind
// bf16_products() == Bf16Products::tiles, which has asked the system for them. Tiles are registers that the compiler does not
// know: every operation is a barrier to it.
#pragma once

namespace ncops::NCOPS_ISA {

constexpr bool kBf16Tiles = true;

struct TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// To be given back at the end of a task: who else computes with tiles on this thread looks whether its configuration is there.
NCOPS_INLINE void configure_tiles(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config) : "memory"); }
NCOPS_INLINE void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

template <int Tile>
NCOPS_INLINE void clear_tile() { asm volatile("tilezero %%tmm%c0" ::"i"(Tile) : "memory"); }
// Rows are `stride` floats apart.
template <int Tile>
NCOPS_INLINE void load_tile(const float* p, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(Tile), "r"(p), "r"(stride * int64_t(sizeof(float))) : "memory");
}
template <int Tile>
NCOPS_INLINE void store_tile(float* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(Tile), "r"(p), "r"(stride * int64_t(sizeof(float))) : "memory");
}
// sums[m][lane] += sum over pairs of w[m][pair] x[pair][lane]; the even members of the pairs are summed by themselves, and the odd.
template <int Sums, int W, int X>
NCOPS_INLINE void multiply_tiles() { asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(W), "i"(X) : "memory"); }

}  // namespace ncops::NCOPS_ISA
