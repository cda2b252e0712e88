// The products that a tile of gradients by the logits, dz[class][row], feeds: those of the rows, of w and of the bias.
//
// In pairs of bfloat16 two classes, or two rows, are one step. What is rounded to them is the tile, as torch rounds the
// gradient of bfloat16 logits; sums stay in float.
#pragma once

#include "blocks/product.h"

namespace ncops::NCOPS_ISA {

constexpr int kStep = kRegisters / 4;  // columns of g_x per register tile

template <class Mode>
constexpr bool kInPairs = std::is_same_v<Mode, Bf16Pairs>;
template <class Mode>
constexpr int kPerStep = kInPairs<Mode> ? 2 : 1;  // classes, or rows

// Two rows of a bfloat16 matrix from column k, element by element in pairs; a row that is not real is zero.
NCOPS_INLINE Vec<float> row_pairs(const Rows& src, int64_t row, bool first_real, bool second_real, int64_t k) {
  constexpr int W = kWidth<float>;
  IntVec<float> half[2] = {};
  const bool real[2] = {first_real, second_real};
  const int64_t n = std::min<int64_t>(W, src.dim - k);
  for (int i = 0; i < 2; ++i) {
    if (!real[i] || n <= 0) continue;
    const Bf16* p = static_cast<const Bf16*>(src.data) + src.stored(row + i) * src.row_stride + k * src.col_stride;
    Bf16 copy[W] = {};
    if (src.col_stride != 1 || n < W) {
      for (int64_t j = 0; j < n; ++j) copy[j] = p[j * src.col_stride];
      p = copy;
    }
    half[i] = to_ints(load_bits<Halves>(p));
  }
  return (Vec<float>)(half[0] | half[1] << 16);
}

// w as pack_rows<Plain> packs it, with a step in the place of a class: groups of kMR classes, each [dim / line][steps][line].
template <class Mode, class T = typename Mode::T>
inline void pack_class_steps(const Rows& src, int64_t row, int64_t count, T* out) {
  if constexpr (kInPairs<Mode>) {
    constexpr int line = kLine<T>;
    static_assert(kMR % 2 == 0);
    for (int64_t first = 0; first < count; first += kMR)
      for (int64_t k = 0; k < src.dim; k += line)
        for (int64_t m = first; m < first + kMR; m += 2, out += line)
          for (int64_t i = 0; i < line; i += kWidth<T>) store(out + i, row_pairs(src, row + m, m < count, m + 1 < count, k + i));
  } else {
    pack_rows<Mode>(src, row, count, out);
  }
}
template <class Mode>
constexpr int64_t step_group(int64_t dim) {
  return group_size<Plain<typename Mode::T>>(dim) / kPerStep<Mode>;
}

// A panel of rows as pack_columns_first packs it among `all` rows, with a step in the place of a row.
template <class Mode, class Counts, class T = typename Mode::T>
inline void pack_row_steps(const Rows& x, int64_t row, Counts counts, T* out, int64_t all) {
  constexpr int L = 2 * kWidth<T>;
  if constexpr (kInPairs<Mode>) {
    for (int64_t r = 0; r < L; r += 2, out += L) {
      const bool first = counts(row + r), second = counts(row + r + 1);
      for (int64_t k = 0; k < x.dim; k += kWidth<T>)
        store(out + k / L * (all / 2) * L + k % L, row_pairs(x, row + r, first, second, k));
      for (int64_t k = round_up(x.dim, kWidth<T>); k < int64_t(round_up(x.dim, L)); k += kWidth<T>)
        store(out + k / L * (all / 2) * L + k % L, Vec<T>{});
    }
  } else {
    pack_columns_first<T>(x, row, L, counts, out, all);
  }
}

// dz[classes][L] in steps of classes, for `add_input_gradient`; where those are pairs, into `out`.
template <class Mode, class T = typename Mode::T>
inline const T* class_steps(const T* dz, int64_t classes, T* out) {
  if constexpr (!kInPairs<Mode>) return dz;
  else {
    constexpr int L = 2 * kWidth<T>;
    for (int64_t c = 0; c < classes; c += 2)
      for (int lane = 0; lane < L; lane += kWidth<T>) {
        const IntVec<T> low = narrow_bits<IntVec<T>>(load(dz + c * L + lane), Bf16{});
        const IntVec<T> high = narrow_bits<IntVec<T>>(load(dz + (c + 1) * L + lane), Bf16{});
        store(out + c / 2 * L + lane, (Vec<T>)(low | high << 16));
      }
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

// out[j][lane] += sum over steps s of w(s, column + j) * dz[s][lane], for kStep columns.
template <class Mode, class T = typename Mode::T>
__attribute__((noinline)) void input_columns(const T* w, int64_t group, int64_t classes, const T* dz, T* out) {
  constexpr int L = 2 * kWidth<T>, steps = kMR / kPerStep<Mode>;
  Sums<Mode, kStep, 2> sums;
  for (int64_t c = 0; c < classes; c += kMR, w += group, dz += steps * L) sums.template add<1, kLine<T>>(dz, w, steps);
  sums.write(out, L, true);
}

// out[m][lane] += sum over steps of dz(m, step) * x[step][lane], for kMR classes and 2 * W columns; dz holds panels of L rows,
// `panel` elements apart; panels that are `zero` are left out, and the chains stay as they are. Only `classes` rows of out are
// read and written.
template <class Mode, class T = typename Mode::T>
__attribute__((noinline)) void weight_columns(const T* dz, int64_t panel, int64_t panels, const bool* zero, const T* x, T* out,
                                              int64_t stride, int64_t classes, int64_t columns) {
  constexpr int L = 2 * kWidth<T>;
  constexpr int64_t chain = kChain / L;  // panels
  int64_t steps = L / kPerStep<Mode>;
  asm("" : "+r"(steps));  // not a constant: unrolled, AVX2 runs out of registers for doubles
  alignas(64) T total[kMR][L] = {};
  for (int64_t m = 0; m < classes; ++m)
    for (int64_t k = 0; k < columns; k += kLine<T>) __builtin_prefetch(out + m * stride + k, 1);
  for (int64_t start = 0; start < panels; start += chain) {
    Sums<Mode, kMR, 2> sums;
    for (int64_t p = start; p < std::min(panels, start + chain); ++p, dz += panel, x += steps * L)
      if (!zero[p]) sums.template add<L, 1>(x, dz, steps);
    sums.write(total[0], L, true);
  }
  for (int64_t m = 0; m < classes; ++m)
    for (int64_t k = 0; k < columns; ++k) out[m * stride + k] += total[m][k];
}

// out[dim][L] += w^T dz for a panel's class_steps of dz[classes][L] and its tile of w, packed by pack_class_steps; `out` is padded
// to a line of columns.
template <class Mode, class T = typename Mode::T>
void add_input_gradient(const T* w, int64_t dim, int64_t classes, const T* dz, T* out) {
  constexpr int L = 2 * kWidth<T>, line = kLine<T>;
  for (int64_t k = 0; k < dim; k += kStep)
    input_columns<Mode>(w + k / line * (kMR / kPerStep<Mode>) * line + k % line, step_group<Mode>(dim), classes, dz, out + k * L);
}

// out(classes, dim) += dz^T x over panels of rows in steps of rows, `panel` elements of dz apart; x packed by pack_row_steps.
template <class Mode, class T = typename Mode::T>
void add_weight_gradient(const T* dz, int64_t panel, int64_t panels, const bool* zero, const T* x, int64_t dim, T* out,
                         int64_t classes) {
  constexpr int L = 2 * kWidth<T>;
  for (int64_t k = 0; k < dim; k += L)
    for (int64_t m = 0; m < classes; m += kMR)
      weight_columns<Mode>(dz + m * L, panel, panels, zero, x + k * (panels * L / kPerStep<Mode>), out + m * dim + k, dim,
                           std::min<int64_t>(kMR, classes - m), std::min<int64_t>(L, dim - k));
}

// Whether a tile has a gradient at all. One that has none is left out of the products: see linear_stats_backward_cpu.cpp.
template <class T>
bool any_gradient(const T* dz, int64_t classes) {
  IntVec<T> set{};
  for (int64_t i = 0; i < classes * 2 * kWidth<T>; i += kWidth<T>) set |= (IntVec<T>)(load(dz + i) != 0);
  return any<T>(set);
}

template <class T>
void add_bias_gradient(const T* dz, T* out, int64_t classes) {
  constexpr int L = 2 * kWidth<T>;
  for (int64_t c = 0; c < classes; ++c) out[c] += reduce_add<T>(load(dz + c * L) + load(dz + c * L + L / 2));
}

// A sum that groups of rows add to: each to a share of its own where there are several, merged in order.
template <class T>
struct GroupSums {
  T* result;  // null: not wanted
  int64_t size, groups;
  Scratch shares;

  GroupSums(void* out, int64_t size, int64_t number)
      : result(static_cast<T*>(out)), size(size), groups(out && number > 1 ? number : 0), shares(groups * size * sizeof(T)) {
    if (result) std::memset(result, 0, size * sizeof(T));
    std::memset(shares.at<T>(), 0, groups * size * sizeof(T));
  }
  T* share(int64_t group) const { return groups ? shares.at<T>() + group * size : result; }
  void merge() {
    for_blocks(groups ? size : 0, 4096, [&](int64_t begin, int64_t end, int) {
      for (int64_t group = 0; group < groups; ++group)
        for (int64_t i = begin; i < end; ++i) result[i] += share(group)[i];
    });
  }
};

}  // namespace ncops::NCOPS_ISA
