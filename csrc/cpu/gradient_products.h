// The products that a tile of gradients by the logits, dz[class][row], feeds: those of the rows, of w and of the bias.
//
// In pairs of bfloat16 two classes, or two rows, are one step. What is rounded to them is the tile, as torch rounds the
// gradient of bfloat16 logits; sums stay in float.
#pragma once

#include "blocks/product.h"
#include "blocks/steps.h"

namespace ncops::NCOPS_ISA {

// out[features][L] += w^T dz for a panel's class_steps of dz[classes][L] and its tile of w, packed by pack_turned; features up to a
// whole group.
template <class Mode, class T = typename Mode::T>
void add_input_gradient(const T* w, int64_t dim, int64_t classes, const T* dz, T* out) {
  constexpr int L = 2 * kWidth<T>;
  const int64_t steps = pieces(classes, kPerStep<Mode>), group = round_up(steps, kLine<T>) * kMR;
  if constexpr (kInTiles<Mode>) return multiply_in_tiles<2>(dz, w, group, dim, steps, true, out);
  for (int64_t f = 0; f < pieces(dim, kMR); ++f) multiply_group<Mode, 2, true>(dz, w + f * group, steps, out + f * kMR * L);
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

// out(classes, dim) += dz^T x over panels of rows in steps of rows, `panel` elements of dz apart; x packed by pack_row_steps.
template <class Mode, class T = typename Mode::T>
void add_weight_gradient(const T* dz, int64_t panel, int64_t panels, const bool* zero, const T* x, int64_t dim, T* out,
                         int64_t classes) {
  constexpr int L = 2 * kWidth<T>;
  if constexpr (kInTiles<Mode>) return weight_gradient_in_tiles<2>(dz, panel, panels, zero, x, dim, out, classes);
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
void multiply_by(T* dz, const T* slopes, int64_t n) {
  for (int64_t i = 0; i < n; i += kWidth<T>) store(dz + i, load(dz + i) * load(slopes + i));
}

// Gradients by the logits, dz[classes][L], summed into that of the bias (V), unless null, and turned into those by the products.
template <class T>
void complete_gradients(T* dz, int64_t classes, T scale, T* bias) {
  constexpr int L = 2 * kWidth<T>;
  if (bias)
    for (int64_t c = 0; c < classes; ++c) bias[c] += reduce_add<T>(load(dz + c * L) + load(dz + c * L + L / 2));
  if (scale != 1)
    for (int64_t i = 0; i < classes * L; ++i) dz[i] *= scale;
}

// A sum that groups of rows add to: each to a share of its own where there are several, merged in order.
template <class T>
struct GroupSums {
  T* result;  // null: not wanted
  int64_t size, groups;
  Scratch shares;

  GroupSums(void* out, int64_t size, int64_t number)
      : result(static_cast<T*>(out)), size(size), groups(out && number > 1 ? number : 0), shares(groups * size * sizeof(T)) {
  }
  void clear() {
    for_blocks(std::max<int64_t>(1, groups) * size, 1 << 18, [&](int64_t begin, int64_t end, int) {
      if (T* all = share(0)) std::memset(all + begin, 0, (end - begin) * sizeof(T));
    });
  }
  T* share(int64_t group) const { return groups ? shares.at<T>() + group * size : result; }
  void merge() {
    for_blocks(groups ? size : 0, 4096, [&](int64_t begin, int64_t end, int) {
      std::memcpy(result + begin, share(0) + begin, (end - begin) * sizeof(T));
      for (int64_t group = 1; group < groups; ++group)
        for (int64_t i = begin; i < end; ++i) result[i] += share(group)[i];
    });
  }
};

}  // namespace ncops::NCOPS_ISA
