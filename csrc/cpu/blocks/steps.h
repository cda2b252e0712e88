// Packing for products that sum over rows, or over classes: these are the steps, two of them one in pairs of bfloat16.
#pragma once

#include "tiles.h"

namespace ncops::NCOPS_ISA {

template <class Mode>
constexpr bool kInPairs = std::is_base_of_v<Bf16Pairs, Mode>;
template <class Mode>
constexpr int kPerStep = kInPairs<Mode> ? 2 : 1;  // classes, or rows

// Two rows of a bfloat16 matrix from column k, element by element in pairs; a row that is not real is zero.
NCOPS_INLINE Vec<float> row_pairs(const Rows& src, int64_t row, bool first_real, bool second_real, int64_t k) {
  constexpr int W = kWidth<float>;
  const auto at = [&](int64_t r) { return static_cast<const Bf16*>(src.data) + src.stored(r) * src.row_stride + k * src.col_stride; };
  if (first_real && second_real && src.col_stride == 1 && k + W <= src.dim)
    return (Vec<float>)(to_ints(load_bits<Halves>(at(row))) | to_ints(load_bits<Halves>(at(row + 1))) << 16);
  Bf16 pairs[W][2] = {};
  for (int half = 0; half < 2; ++half)
    if (half == 0 ? first_real : second_real)
      for (int64_t j = 0; j < std::min<int64_t>(W, src.dim - k); ++j) pairs[j][half] = at(row + half)[j * src.col_stride];
  return load_bits<Vec<float>>(pairs);
}

// Rows [row, row + count) of `src` with their features as the rows of the broadcast operand, and themselves as its steps:
// groups of kMR features, each [steps / line][kMR][line]. Steps up to a whole line are zero; what the last group holds past the
// last feature lands in rows of the product that nobody reads.
template <class Mode, class T = typename Mode::T>
inline void pack_turned(const Rows& src, int64_t row, int64_t count, T* out) {
  constexpr int W = kWidth<T>, line = kLine<T>, per = kPerStep<Mode>;
  static_assert(line % W == 0);
  const int64_t steps = round_up(pieces(count, per), line), group = steps * kMR;
  for (int64_t step = 0; step < steps; step += W)
    for_columns(src.dim, [&](int64_t k, int64_t n) {
      alignas(64) T block[W][kLoadBlock];
      const T* rows[W];
      for (int64_t r = 0; r < W; ++r) {
        const int64_t at = (step + r) * per;
        rows[r] = block[r];
        if constexpr (kInPairs<Mode>)
          for (int64_t i = 0; i < n; i += W)
            store(block[r] + i, row_pairs(src, row + at, at < count, at + 1 < count, k + i));
        else rows[r] = steps_of<Mode, W>(src, row + at, at < count, k, n, block[r]);
      }
      for (int64_t i = 0; i < n; i += W)
        transpose<T>([&](int r) { return rows[r] + i; }, [&](int r) {
          const int64_t feature = k + i + r;
          return out + feature / kMR * group + (step / line * kMR + feature % kMR) * line + step % line;
        });
    });
}

template <class Mode>
constexpr int64_t turned_size(int64_t count, int64_t dim) {
  return round_up(pieces(count, kPerStep<Mode>), kLine<typename Mode::T>) * (round_up(dim, kLoadBlock) + kMR);
}

// A panel of rows as pack_columns_first packs it among `all` rows, with a step in the place of a row; vectors past the last
// column stay as they are, since nobody reads their sums.
template <class Mode, class Counts, class T = typename Mode::T>
inline void pack_row_steps(const Rows& x, int64_t row, Counts counts, T* out, int64_t all) {
  constexpr int L = 2 * kWidth<T>;
  if constexpr (kInPairs<Mode>) {
    for (int64_t r = 0; r < L; r += 2, out += L) {
      const bool first = counts(row + r), second = counts(row + r + 1);
      for (int64_t k = 0; k < x.dim; k += kWidth<T>)
        store(out + k / L * (all / 2) * L + k % L, row_pairs(x, row + r, first, second, k));
    }
  } else {
    pack_columns_first<T>(x, row, L, counts, out, all);
  }
}

// dz[classes][L] in steps of classes, for `add_input_gradient`; where those are pairs, into `out`, up to a whole line.
template <class Mode>
constexpr int64_t class_steps_size(int64_t classes) {
  using T = typename Mode::T;
  return kInPairs<Mode> ? round_up(pieces(classes, 2), kLine<T>) * 2 * kWidth<T> : 0;
}
template <class Mode, class T = typename Mode::T>
inline const T* class_steps(const T* dz, int64_t classes, T* out) {
  if constexpr (!kInPairs<Mode>) return dz;
  else {
    constexpr int L = 2 * kWidth<T>;
    for (int64_t c = 0; c < classes; c += 2)
      for (int lane = 0; lane < L; lane += kWidth<T>) {
        const IntVec<T> low = narrow_bits<IntVec<T>>(load(dz + c * L + lane), Bf16{});
        const bool odd = c + 1 == classes;
        const IntVec<T> high = odd ? IntVec<T>{} : narrow_bits<IntVec<T>>(load(dz + (c + 1) * L + lane), Bf16{});
        store(out + c / 2 * L + lane, (Vec<T>)((low & 0xffff) | high << 16));
      }
    const int64_t end = pieces(classes, 2) * L;
    if (kInTiles<Mode>) std::memset(out + end, 0, (class_steps_size<Mode>(classes) - end) * sizeof(T));
    return out;
  }
}
// The same in steps of rows, for `add_weight_gradient`, where it lies.
template <class Mode, class T = typename Mode::T>
inline void turn_into_row_steps(T* dz, int64_t classes) {
  if constexpr (kInPairs<Mode>) {
    constexpr int L = 2 * kWidth<T>;
    for (int64_t c = 0; c < classes; ++c)
      for (int lane = 0; lane < L; lane += kWidth<T>)
        store_as(reinterpret_cast<Bf16*>(dz + c * L) + lane, load(dz + c * L + lane));
  }
}

}  // namespace ncops::NCOPS_ISA
