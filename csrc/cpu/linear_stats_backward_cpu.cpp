// linear_stats_backward: recomputes tiles of logits, turns them into gradients, and feeds two more products from them.
//
// With many classes, tasks own ranges of them: each adds to its own rows of g_weight, chunk after chunk of rows, in order, and
// their shares of g_x are kept apart, for at most 64 MB of rows at a time, and merged in order. With few classes, tasks own
// groups of rows instead, and their shares of g_weight are merged in order. N x V never exists. (The driver of two_products.h
// knows only the latter: its tasks would each keep a share of all of g_weight.)
//
// A tile whose gradients are all zero is left out of both products, which keeps every bit: it would add w * 0 to sums that
// start at +0 (and the NaN of 0 * inf, which is 0 here as everywhere in this op). Whole panels vanish where targets are ignored,
// nearly all tiles where only the maximum, second or target's logit has a gradient (a margin loss: no logit is even formed
// again), and those more than 87 below their rows' maximum. Tiny is not zero: one step of Adam turns a rare class's 1e-12
// into as large an update as any, so nothing is left out for being small.
#include "blocks/product.h"
#include "logit_gradient.h"

namespace ncops::NCOPS_ISA {
namespace {

constexpr int kStep = kRegisters / 4;  // columns of g_x per register tile

// out[j][lane] += sum over classes c of w(c, column + j) * dz[c][lane], for kStep columns; w as packed by pack_rows.
template <class T>
__attribute__((noinline)) void add_input_gradient(const T* w, int64_t group, int64_t classes, const T* dz, T* out) {
  constexpr int L = 2 * kWidth<T>;
  Sums<Plain<T>, kStep, 2> sums;
  for (int64_t c = 0; c < classes; c += kMR, w += group, dz += kMR * L) sums.template add<1, kLine<T>>(dz, w, kMR);
  sums.write(out, L, true);
}

// out[m][lane] += sum over rows of dz(m, row) * x[row][lane], for kMR classes and 2 * W columns; dz holds panels of L rows,
// `panel` elements apart, x is packed [row][2 * W]; panels that are `zero` are left out, and the chains stay as they are. Only
// `classes` rows of out are read and written.
template <class T>
__attribute__((noinline)) void add_weight_gradient(const T* dz, int64_t panel, int64_t panels, const bool* zero, const T* x,
                                                   T* out, int64_t stride, int64_t classes, int64_t columns) {
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

template <class T>
class Backward {
 public:
  explicit Backward(const LinearStatsBackwardArgs& args)
      : args_(args), dim_(args.x.dim), padded_(round_up(std::max<int64_t>(1, args.x.dim), std::max<int>(kLine<T>, L))),
        group_(group_size<Plain<T>>(args.x.dim)), bias_(args.bias.data ? args.w.rows * sizeof(T) : 0), cap_(args.softcap) {
    if (args.bias.data) load_raw<T>(args.bias, 0, 0, args.w.rows, bias_.template at<T>());
    const int64_t splits = std::max<int64_t>(1, std::min<int64_t>(kTasks, args.w.rows / 256));
    const int64_t affordable = kShareBytes / std::max<int64_t>(1, args.w.rows * dim_ * int64_t(sizeof(T)));
    groups_ = std::max<int64_t>(1, std::min({int64_t(kTasks), affordable, pieces(args.x.rows, 128)}));
    if (splits >= groups_) groups_ = 1;
    w_per_split_ = groups_ > 1 ? args.w.rows : int64_t(round_up(pieces(args.w.rows, splits), kTileRows));
    splits_ = pieces(args.w.rows, w_per_split_);
    const int64_t share = args.g_x ? kShareBytes / (splits_ * padded_ * int64_t(sizeof(T))) : args.x.rows;
    const int64_t unit = L * groups_;
    rows_per_pass_ = std::min<int64_t>(std::max<int64_t>(unit, share / unit * unit), round_up(args.x.rows, unit));
    rows_per_group_ = rows_per_pass_ / groups_;
    rows_per_chunk_ = std::min<int64_t>(rows_per_group_, kChunk);
  }

  void run() {
    GroupSums<T> weight(args_.g_weight, args_.w.rows * dim_, groups_), bias(args_.g_bias, args_.w.rows, groups_);
    if (args_.x.rows == 0) return;
    Scratch shares(args_.g_x ? splits_ * rows_per_pass_ * padded_ * sizeof(T) : 0);
    const int64_t tasks = splits_ * groups_;
    Layout layout;
    const size_t panels_at = layout.add<T>(rows_per_chunk_ * padded_), columns_at = layout.add<T>(rows_per_chunk_ * padded_);
    const size_t w_at = layout.add<T>(kTileRows / kMR * group_), dz_at = layout.add<T>(rows_per_chunk_ * kTileRows);
    const size_t gradients_at = layout.add<Panel>(rows_per_chunk_ / L);
    Scratch scratch(layout.bytes * std::min<int64_t>(tasks, workers()));
    for (int64_t row = 0; row < args_.x.rows; row += rows_per_pass_) {
      const int64_t end = std::min(args_.x.rows, row + rows_per_pass_);
      for_tasks(tasks, [&](int64_t task, int worker) {
        const auto at = [&](size_t offset) { return scratch.at<T>(worker * layout.bytes + offset); };
        const int64_t split = task % splits_, group = task / splits_;
        const int64_t first = row + group * rows_per_group_, last = std::min(end, first + rows_per_group_);
        T* share = args_.g_x ? shares.at<T>() + (split * rows_per_pass_ + first - row) * padded_ : nullptr;
        if (share) std::memset(share, 0, rows_per_group_ * padded_ * sizeof(T));
        const Memory memory{at(panels_at), at(columns_at), at(w_at), at(dz_at), reinterpret_cast<Panel*>(at(gradients_at))};
        for (int64_t r = first; r < last; r += rows_per_chunk_)
          chunk(r, std::min(last, r + rows_per_chunk_), split, share ? share + (r - first) * padded_ : nullptr,
                weight.share(group), bias.share(group), memory);
      });
      if (args_.g_x) merge(row, end, shares.at<T>());
    }
    weight.merge();
    bias.merge();
  }

 private:
  static constexpr int L = 2 * kWidth<T>;
  static constexpr int64_t kTasks = 16, kChunk = 512, kShareBytes = int64_t(64) << 20;
  using Panel = PanelGradient<T, L>;
  struct Memory {
    T *panels, *columns, *w, *dz;  // of a chunk: x packed for either product, a tile of w, gradients by its logits
    Panel* gradients;
  };
  const LinearStatsBackwardArgs& args_;
  int64_t dim_, padded_, group_, w_per_split_, splits_, groups_, rows_per_pass_, rows_per_group_, rows_per_chunk_;
  Scratch bias_;
  Softcap<T> cap_;

  // Rows [begin, end) against the classes of a split. `share` is this split's part of g_x, panel by panel, [column][lane];
  // g_weight (V, D) and g_bias (V) are added to. Null: not wanted.
  void chunk(int64_t begin, int64_t end, int64_t split, T* share, T* g_weight, T* g_bias, const Memory& memory) {
    const auto [panels, columns, w, dz, gradients] = memory;
    const int64_t number = pieces(end - begin, L), tile = kTileRows * L;
    for (int64_t p = 0; p < number; ++p) {
      const int64_t row = begin + p * L, count = std::min<int64_t>(L, end - row);
      pack_panel<Plain<T>, L>(args_.x, row, count, panels + p * L * dim_);
      gradients[p].begin(args_, args_.w.rows, row, count);
    }
    // Rows without gradient are zero, lest their NaN reach the weight.
    const auto counts = [&](int64_t row) { return row < end && RowGradient<T>(args_, row, args_.w.rows).active; };
    if (g_weight) pack_columns_first<T>(args_.x, begin, number * L, counts, columns);
    bool zero[kChunk / L];
    const int64_t last = std::min(args_.w.rows, (split + 1) * w_per_split_);
    for (int64_t first = split * w_per_split_; first < last; first += kTileRows) {
      const int64_t classes = std::min(kTileRows, last - first), whole = round_up(classes, kMR);
      bool packed = false, some = false;
      for (int64_t p = 0; p < number; ++p) {
        T* out = dz + p * tile;
        zero[p] = !gradients[p].touches(first, classes);
        if (zero[p]) continue;
        if (!packed) pack_rows<Plain<T>>(args_.w, first, classes, w);
        packed = true;
        zero[p] = !logit_gradients(gradients[p], panels + p * L * dim_, w, first, classes, out);
        if (zero[p]) continue;
        some = true;
        std::memset(out + classes * L, 0, (whole - classes) * L * sizeof(T));
        if (g_bias) add_bias_gradient(out, g_bias + first, classes);
        scale(out, classes);
        if (share)
          for (int64_t k = 0; k < dim_; k += kStep)
            add_input_gradient<T>(w + k / kLine<T> * kMR * kLine<T> + k % kLine<T>, group_, classes, out,
                                  share + (p * padded_ + k) * L);
      }
      if (g_weight && some) weight_gradient(dz, tile, number, zero, columns, g_weight + first * dim_, classes);
    }
  }

  // One panel's gradients by the logits of classes first, first + 1, ...; false, and `out` unfinished, if all are zero.
  bool logit_gradients(const Panel& gradients, const T* panel, const T* w, int64_t first, int64_t classes, T* out) const {
    const T* bias = args_.bias.data ? bias_.template at<T>() + first : nullptr;
    if (gradients.soft || cap_)
      for (int64_t g = 0; g * kMR < classes; ++g)
        multiply_group<Plain<T>, 2>(panel, w + g * group_, dim_, out + g * kMR * L);
    alignas(64) T slopes[kTileRows * L];
    if (cap_) cap_logits(out, slopes, classes, bias);
    if (gradients.soft) gradients.apply(out, first, classes, cap_ ? T(1) : T(args_.scale), cap_ ? nullptr : bias);
    else gradients.apply_hard(out, first, classes);
    if (cap_)
      for (int64_t i = 0; i < classes * L; i += kWidth<T>) store(out + i, load(out + i) * load(slopes + i));
    IntVec<T> set{};
    for (int64_t i = 0; i < classes * L; i += kWidth<T>) set |= (IntVec<T>)(load(out + i) != 0);
    return any<T>(set);
  }

  // Capped logits in place of products, and what the gradients by them are multiplied with.
  void cap_logits(T* tile, T* slopes, int64_t classes, const T* bias) const {
    const Vec<T> scale = splat<T>(T(args_.scale));
    for (int64_t i = 0; i < classes * L; i += kWidth<T>) {
      const Vec<T> z = fma(load(tile + i), scale, splat<T>(bias ? bias[i / L] : T(0)));
      store(slopes + i, cap_.slope(z));
      store(tile + i, cap_(z));
    }
  }

  void weight_gradient(const T* dz, int64_t tile, int64_t panels, const bool* zero, const T* columns, T* out, int64_t classes) {
    for (int64_t k = 0; k < dim_; k += L)
      for (int64_t m = 0; m < classes; m += kMR)
        add_weight_gradient<T>(dz + m * L, tile, panels, zero, columns + k * panels * L, out + m * dim_ + k, dim_,
                               std::min<int64_t>(kMR, classes - m), std::min<int64_t>(L, dim_ - k));
  }

  void add_bias_gradient(const T* dz, T* out, int64_t classes) {
    for (int64_t c = 0; c < classes; ++c) out[c] += reduce_add<T>(load(dz + c * L) + load(dz + c * L + L / 2));
  }

  void scale(T* dz, int64_t classes) const {
    if (args_.scale == 1) return;
    for (int64_t i = 0; i < classes * L; ++i) dz[i] *= T(args_.scale);
  }

  void merge(int64_t begin, int64_t end, const T* shares) {
    T* g_x = static_cast<T*>(args_.g_x);
    for_blocks(end - begin, L, [&](int64_t first, int64_t last, int) {
      for (int64_t k = 0; k < dim_; ++k) {
        alignas(64) T total[L] = {};
        for (int64_t split = 0; split < splits_; ++split) {
          const T* share = shares + split * rows_per_pass_ * padded_ + first * padded_ + k * L;
          for (int lane = 0; lane < L; ++lane) total[lane] += share[lane];
        }
        for (int64_t lane = 0; lane < last - first; ++lane) g_x[(begin + first + lane) * dim_ + k] = total[lane];
      }
    });
  }
};

}  // namespace

void linear_stats_backward(const LinearStatsBackwardArgs& args) {
  with_compute(args.x.dtype, [&](auto t) { Backward<decltype(t)>(args).run(); });
}

}  // namespace ncops::NCOPS_ISA
