// What a product is made of, and packing rows for the micro-kernel.
#pragma once

#include "load.h"
#include "scratch.h"

namespace ncops::NCOPS_ISA {

// A product is made of elements of the compute dtype T, one per step ...
template <class Compute>
struct Plain {
  using T = Compute;
  static int64_t depth(int64_t dim) { return dim; }
  static void load(const Rows& src, int64_t r, int64_t k, int64_t n, T* out) { load_row<T>(src, r, k, n, out); }
  // Where n steps of row r from step k lie in memory as they are wanted; null where they have to be loaded.
  static const T* in_place(const Rows& src, int64_t r, int64_t k, int64_t) {
    const T* row = src.center ? nullptr : NCOPS_ISA::in_place<T>(src, r);
    return row ? row + k : nullptr;
  }
  static NCOPS_INLINE Vec<T> multiply_add(Vec<T> a, Vec<T> b, Vec<T> c) { return fma(a, b, c); }
};

// ... or pairs of bfloat16 in the place of a float, two per step at twice the rate, summed in float. A row-major pair
// already is the 32-bit operand, so nothing is converted or shuffled. Only where the set has kBf16Pairs.
struct Bf16Pairs {
  using T = float;
  static int64_t depth(int64_t dim) { return (dim + 1) / 2; }
  static void load(const Rows& src, int64_t r, int64_t k, int64_t n, T* out) {
    const int64_t last = std::clamp<int64_t>(src.dim - 2 * k, 0, 2 * n);
    const Bf16* p = static_cast<const Bf16*>(src.data) + src.stored(r) * src.row_stride + 2 * k * src.col_stride;
    Bf16 pairs[2 * kLoadBlock];
    if (last < 2 * n) std::memset(pairs + last, 0, (2 * n - last) * sizeof *pairs);
    if (src.col_stride == 1) std::memcpy(pairs, p, last * sizeof *p);
    else
      for (int64_t i = 0; i < last; ++i) pairs[i] = p[i * src.col_stride];
    std::memcpy(out, pairs, n * sizeof(T));
  }
  static const T* in_place(const Rows& src, int64_t r, int64_t k, int64_t n) {
    if (src.col_stride != 1 || 2 * (k + n) > src.dim) return nullptr;
    const Bf16* p = static_cast<const Bf16*>(src.data) + src.stored(r) * src.row_stride + 2 * k;
    return reinterpret_cast<const T*>(p);  // only ever copied by memcpy, which asks for no alignment
  }
  static NCOPS_INLINE Vec<T> multiply_add(Vec<T> a, Vec<T> b, Vec<T> c) {
    return multiply_add_pairs(a, b, c);
  }
};

// n steps of row r from step k, where they lie or loaded into `block`, and zeros up to a multiple of Pad steps; only zeros
// where the row is not real.
template <class Mode, int Pad = 1, class T = typename Mode::T>
NCOPS_INLINE const T* steps_of(const Rows& src, int64_t r, bool real, int64_t k, int64_t n, T* block) {
  const T* p = real && n % Pad == 0 ? Mode::in_place(src, r, k, n) : nullptr;
  if (p) return p;
  if (!real || n % Pad != 0) std::memset(block, 0, round_up(n, Pad) * sizeof(T));
  for (int64_t i = 0; real && i < n; i += kLoadBlock) Mode::load(src, r, k + i, std::min(kLoadBlock, n - i), block + i);
  return block;
}

// Lanes of two vectors `Bit` rows apart, once that bit of the row and that of the lane have traded places.
template <int Width, int Bit>
struct Low {
  static constexpr int at(int lane) { return lane & Bit ? Width + lane - Bit : lane; }
};
template <int Width, int Bit>
struct High {
  static constexpr int at(int lane) { return lane & Bit ? Width + lane : lane + Bit; }
};
template <class T, int Bit>
NCOPS_INLINE void exchange(Vec<T>* v) {
  constexpr int W = kWidth<T>;
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i)
    if (!(i & Bit)) {
      const Vec<T> a = v[i], b = v[i + Bit];
      v[i] = shuffle<T, Low<W, Bit>>(a, b);
      v[i + Bit] = shuffle<T, High<W, Bit>>(a, b);
    }
}
// Transposes W vectors of W lanes in registers: bit by bit, the lane's index trades places with the vector's.
template <class T>
NCOPS_INLINE void transpose(Vec<T>* v) {
  if constexpr (kWidth<T> > 8) exchange<T, 8>(v);
  if constexpr (kWidth<T> > 4) exchange<T, 4>(v);
  if constexpr (kWidth<T> > 2) exchange<T, 2>(v);
  exchange<T, 1>(v);
}
// The same from memory to memory: vector r comes from from(r) and goes to to(r).
template <class T, class From, class To>
NCOPS_INLINE void transpose(From from, To to) {
  constexpr int W = kWidth<T>;
  Vec<T> v[W];
#pragma GCC unroll 16
  for (int r = 0; r < W; ++r) v[r] = load(from(r));
  transpose<T>(v);
#pragma GCC unroll 16
  for (int r = 0; r < W; ++r) store(to(r), v[r]);
}

// Steps [first, first + n) of up to L rows, transposed: out[k * L + lane]. Lanes past `count` are zero. n <= kLoadBlock.
template <class Mode, int L>
inline void pack_columns(const Rows& src, int64_t row, int64_t count, int64_t first, int64_t n, typename Mode::T* out) {
  using T = typename Mode::T;
  constexpr int W = kWidth<T>;
  alignas(64) T block[L][kLoadBlock];
  const T* lanes[L];
  for (int64_t i = 0; i < L; ++i) lanes[i] = steps_of<Mode>(src, row + i, i < count, first, n, block[i]);
  for (int lane = 0; lane < L; lane += W) {
    int64_t i = 0;
    for (; i + W <= n; i += W)
      transpose<T>([&](int r) { return lanes[lane + r] + i; }, [&](int r) { return out + (i + r) * L + lane; });
    for (; i < n; ++i)
      for (int r = 0; r < W; ++r) std::memcpy(out + i * L + lane + r, lanes[lane + r] + i, sizeof(T));
  }
}

// A panel: all steps of up to L rows.
template <class Mode, int L>
inline void pack_panel(const Rows& src, int64_t row, int64_t count, typename Mode::T* out) {
  const int64_t depth = Mode::depth(src.dim);
  for (int64_t k = 0; k < depth; k += kLoadBlock)
    pack_columns<Mode, L>(src, row, count, k, std::min(kLoadBlock, depth - k), out + k * L);
}

// Rows for the broadcast operand: groups of kMR rows, each group as 64-byte lines [depth / line][kMR][line], so that packing
// is a copy without a transpose (transposing it costs 2x the packing time). Rows past `count` are zero.
constexpr int kMR = (kRegisters - 3) / 2;  // x 2 vectors of sums, two of x and a broadcast: 31 of 32 registers, 15 of 16
template <class T>
constexpr int kLine = 64 / sizeof(T);
template <class Mode>
constexpr int64_t group_size(int64_t dim) {
  constexpr int line = kLine<typename Mode::T>;
  return pieces(Mode::depth(dim), line) * line * kMR;
}

template <class Mode>
inline void pack_rows(const Rows& src, int64_t row, int64_t count, typename Mode::T* out) {
  using T = typename Mode::T;
  constexpr int line = kLine<T>;
  for (int64_t first = 0; first < count; first += kMR, out += group_size<Mode>(src.dim))
    for (int64_t m = 0; m < kMR; ++m)
      for_columns(Mode::depth(src.dim), [&](int64_t k, int64_t n) {
        T block[kLoadBlock];
        const T* steps = steps_of<Mode, line>(src, row + first + m, first + m < count, k, n, block);
        for (int64_t i = 0; i < n; i += line) std::memcpy(out + ((k + i) / line * kMR + m) * line, steps + i, 64);
      });
}

// Rows [row, row + rows) of x packed [column block of L][row][L], the panels of a product whose lanes are columns; of `all`
// rows per column block, where they are part of more. Rows that do not count, counts(row) false, are zero.
template <class T, class Counts>
inline void pack_columns_first(const Rows& x, int64_t row, int64_t rows, Counts counts, T* out, int64_t all = 0) {
  constexpr int L = 2 * kWidth<T>;
  static_assert(kLoadBlock % L == 0);
  const int64_t padded = round_up(x.dim, L);
  for (int64_t r = 0; r < rows; ++r) {
    const bool real = counts(row + r);
    const auto at = [&](int64_t k) { return out + (k / L * std::max(rows, all) + r) * L; };
    int64_t k = 0;
    if (const T* from = real ? in_place<T>(x, row + r) : nullptr)
      for (const T* c = center_of<T>(x, x.stored(row + r)); k + L <= x.dim; k += L)
        for (int64_t i = 0; i < L; i += kWidth<T>) store(at(k) + i, c ? load(from + k + i) - load(c + k + i) : load(from + k + i));
    for (; k < padded; k += kLoadBlock) {
      alignas(64) T block[kLoadBlock] = {};
      if (real && k < x.dim) load_row<T>(x, row + r, k, std::min(kLoadBlock, x.dim - k), block);
      for (int64_t b = k; b < std::min(padded, k + kLoadBlock); b += L) std::memcpy(at(b), block + b - k, L * sizeof(T));
    }
  }
}

}  // namespace ncops::NCOPS_ISA
