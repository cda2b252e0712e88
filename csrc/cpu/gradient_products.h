// The products that a tile of gradients by the logits, dz[class][row], feeds: those of the rows, of w and of the bias.
#pragma once

#include "blocks/product.h"

namespace ncops::NCOPS_ISA {

constexpr int kStep = kRegisters / 4;  // columns of g_x per register tile

// out[j][lane] += sum over classes c of w(c, column + j) * dz[c][lane], for kStep columns; w as packed by pack_rows.
template <class T>
__attribute__((noinline)) void input_columns(const T* w, int64_t group, int64_t classes, const T* dz, T* out) {
  constexpr int L = 2 * kWidth<T>;
  Sums<Plain<T>, kStep, 2> sums;
  for (int64_t c = 0; c < classes; c += kMR, w += group, dz += kMR * L) sums.template add<1, kLine<T>>(dz, w, kMR);
  sums.write(out, L, true);
}

// out[m][lane] += sum over rows of dz(m, row) * x[row][lane], for kMR classes and 2 * W columns; dz holds panels of L rows,
// `panel` elements apart, x is packed [row][2 * W]; panels that are `zero` are left out, and the chains stay as they are. Only
// `classes` rows of out are read and written.
template <class T>
__attribute__((noinline)) void weight_columns(const T* dz, int64_t panel, int64_t panels, const bool* zero, const T* x, T* out,
                                              int64_t stride, int64_t classes, int64_t columns) {
  constexpr int L = 2 * kWidth<T>;
  constexpr int64_t chain = kChain / L;  // panels
  int64_t rows = L;
  asm("" : "+r"(rows));  // not a constant: unrolled, AVX2 runs out of registers for doubles
  alignas(64) T total[kMR][L] = {};
  for (int64_t start = 0; start < panels; start += chain) {
    Sums<Plain<T>, kMR, 2> sums;
    for (int64_t p = start; p < std::min(panels, start + chain); ++p, dz += panel, x += L * L)
      if (!zero[p]) sums.template add<L, 1>(x, dz, rows);
    sums.write(total[0], L, true);
  }
  for (int64_t m = 0; m < classes; ++m)
    for (int64_t k = 0; k < columns; ++k) out[m * stride + k] += total[m][k];
}

// out[dim][L] += w^T dz for a panel's dz[classes][L] and its tile of w, packed by pack_rows; `out` is padded to a line of columns.
template <class T>
void add_input_gradient(const T* w, int64_t dim, int64_t classes, const T* dz, T* out) {
  constexpr int L = 2 * kWidth<T>, line = kLine<T>;
  for (int64_t k = 0; k < dim; k += kStep)
    input_columns<T>(w + k / line * kMR * line + k % line, group_size<Plain<T>>(dim), classes, dz, out + k * L);
}

// out(classes, dim) += dz^T x over panels of rows, `panel` elements of dz apart; x as packed by pack_columns_first.
template <class T>
void add_weight_gradient(const T* dz, int64_t panel, int64_t panels, const bool* zero, const T* x, int64_t dim, T* out,
                         int64_t classes) {
  constexpr int L = 2 * kWidth<T>;
  for (int64_t k = 0; k < dim; k += L)
    for (int64_t m = 0; m < classes; m += kMR)
      weight_columns<T>(dz + m * L, panel, panels, zero, x + k * panels * L, out + m * dim + k, dim,
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
