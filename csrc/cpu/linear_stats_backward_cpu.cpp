// linear_stats_backward: recomputes tiles of logits, turns them into gradients, and feeds two more products from them.
//
// With many classes, tasks own ranges of them: each adds to its own rows of g_weight, chunk after chunk of rows, in order, and
// their shares of g_x are kept apart, for at most 64 MB of rows at a time, and merged in order. With few classes, tasks own
// groups of rows instead, and their shares of g_weight are merged in order. N x V never exists.
//
// A tile whose gradients are all zero is left out of both products, which keeps every bit: it would add w * 0 to sums that
// start at +0 (and the NaN of 0 * inf, which is 0 here as everywhere in this op). Whole panels vanish where targets are ignored,
// nearly all tiles where only the maximum, second or target's logit has a gradient (a margin loss: no logit is even formed
// again), and those more than 87 below their rows' maximum. Tiny is not zero: one step of Adam turns a rare class's 1e-12
// into as large an update as any, so nothing is left out for being small.
#include "logit_gradient.h"
#include "blocks/product.h"

namespace ncops::NCOPS_ISA {
namespace {

constexpr int kStep = kRegisters / 4;  // columns of g_x per register tile

// out[j][lane] += sum over classes c of w(c, column + j) * dz[c][lane], for kStep columns; w as packed by pack_rows.
template <class T>
__attribute__((noinline)) void add_input_gradient(const T* w, int64_t group, int64_t classes, const T* dz, T* out) {
  constexpr int W = kWidth<T>, L = 2 * W, line = kLine<T>;
  Vec<T> acc[kStep][2];
#pragma GCC unroll 8
  for (int j = 0; j < kStep; ++j) acc[j][0] = acc[j][1] = Vec<T>{};
  for (int64_t c = 0; c < classes; c += kMR, w += group)
    for (int64_t m = 0; m < kMR; ++m, dz += L) {
      const Vec<T> d0 = load(dz), d1 = load(dz + W);
#pragma GCC unroll 8
      for (int j = 0; j < kStep; ++j) {
        const Vec<T> wv = splat<T>(w[m * line + j]);
        acc[j][0] = fma(wv, d0, acc[j][0]);
        acc[j][1] = fma(wv, d1, acc[j][1]);
      }
    }
#pragma GCC unroll 8
  for (int j = 0; j < kStep; ++j) {
    store(out + j * L, load(out + j * L) + acc[j][0]);
    store(out + j * L + W, load(out + j * L + W) + acc[j][1]);
  }
}

// out[m][lane] += sum over rows of dz(m, row) * x[row][lane], for kMR classes and 2 * W columns; dz holds panels of L rows,
// `panel` elements apart, x is packed [row][2 * W]; panels that are `zero` are left out, and the chains stay as they are. Only
// `classes` rows of out are read and written.
template <class T>
__attribute__((noinline)) void add_weight_gradient(const T* dz, int64_t panel, int64_t panels, const bool* zero, const T* x,
                                                   T* out, int64_t stride, int64_t classes, int64_t columns) {
  constexpr int W = kWidth<T>, L = 2 * W;
  constexpr int64_t chain = kChain / L;  // panels
  alignas(64) T sums[kMR][L] = {};
  for (int64_t start = 0; start < panels; start += chain) {
    Vec<T> acc[kMR][2];
#pragma GCC unroll 16
    for (int m = 0; m < kMR; ++m) acc[m][0] = acc[m][1] = Vec<T>{};
    for (int64_t p = start; p < std::min(panels, start + chain); ++p, dz += panel) {
      if (zero[p]) {
        x += L * L;
        continue;
      }
#pragma GCC unroll 1  // unrolled, AVX2 runs out of registers for doubles
      for (int64_t r = 0; r < L; ++r, x += L) {
        const Vec<T> x0 = load(x), x1 = load(x + W);
#pragma GCC unroll 16
        for (int m = 0; m < kMR; ++m) {
          const Vec<T> dv = splat<T>(dz[m * L + r]);
          acc[m][0] = fma(dv, x0, acc[m][0]);
          acc[m][1] = fma(dv, x1, acc[m][1]);
        }
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < kMR; ++m) {
      store(sums[m], load(sums[m]) + acc[m][0]);
      store(sums[m] + W, load(sums[m] + W) + acc[m][1]);
    }
  }
  for (int64_t m = 0; m < classes; ++m)
    for (int64_t k = 0; k < columns; ++k) out[m * stride + k] += sums[m][k];
}

template <class T>
class Backward {
 public:
  explicit Backward(const LinearStatsBackwardArgs& args)
      : args_(args), dim_(args.x.dim), padded_(round_up(args.x.dim, std::max<int>(kLine<T>, L))),
        group_(group_size<Plain<T>>(args.x.dim)), bias_(args.bias.data ? args.w.rows * sizeof(T) : 0) {
    if (args.bias.data) load_raw<T>(args.bias, 0, 0, args.w.rows, bias_.template at<T>());
    w_per_tile_ = plan_product<T>(args.x.rows, args.w.rows, dim_, L).w_per_tile;
    const int64_t splits = std::max<int64_t>(1, std::min<int64_t>(kTasks, args.w.rows / 256));
    const int64_t affordable = kShareBytes / std::max<int64_t>(1, args.w.rows * dim_ * int64_t(sizeof(T)));
    groups_ = std::max<int64_t>(1, std::min({int64_t(kTasks), affordable, (args.x.rows + 127) / 128}));
    if (splits >= groups_) groups_ = 1;
    w_per_split_ = groups_ > 1 ? args.w.rows : int64_t(round_up((args.w.rows + splits - 1) / splits, w_per_tile_));
    splits_ = (args.w.rows + w_per_split_ - 1) / w_per_split_;
    const int64_t share = args.g_x ? kShareBytes / (splits_ * padded_ * int64_t(sizeof(T))) : args.x.rows;
    const int64_t unit = L * groups_;
    rows_per_pass_ = std::min<int64_t>(std::max<int64_t>(unit, share / unit * unit), round_up(args.x.rows, unit));
    rows_per_group_ = rows_per_pass_ / groups_;
    rows_per_chunk_ = std::min<int64_t>(rows_per_group_, kChunk);
  }

  void run() {
    T* g_weight = static_cast<T*>(args_.g_weight);
    T* g_bias = static_cast<T*>(args_.g_bias);
    const int64_t weights = args_.w.rows * dim_, classes = args_.w.rows;
    if (g_weight) std::memset(g_weight, 0, weights * sizeof(T));
    if (g_bias) std::memset(g_bias, 0, classes * sizeof(T));
    if (args_.x.rows == 0) return;
    Scratch shares(args_.g_x ? splits_ * rows_per_pass_ * padded_ * sizeof(T) : 0);
    Scratch group_weights(g_weight && groups_ > 1 ? groups_ * weights * sizeof(T) : 0);
    Scratch group_biases(g_bias && groups_ > 1 ? groups_ * classes * sizeof(T) : 0);
    if (g_weight && groups_ > 1) std::memset(group_weights.template at<T>(), 0, groups_ * weights * sizeof(T));
    if (g_bias && groups_ > 1) std::memset(group_biases.template at<T>(), 0, groups_ * classes * sizeof(T));
    const int64_t tasks = splits_ * groups_;
    Scratch scratch(worker_bytes() * std::min<int64_t>(tasks, workers()));
    for (int64_t row = 0; row < args_.x.rows; row += rows_per_pass_) {
      const int64_t end = std::min(args_.x.rows, row + rows_per_pass_);
      for_tasks(tasks, [&](int64_t task, int worker) {
        const int64_t split = task % splits_, group = task / splits_;
        const int64_t first = row + group * rows_per_group_, last = std::min(end, first + rows_per_group_);
        T* share = args_.g_x ? shares.template at<T>() + (split * rows_per_pass_ + first - row) * padded_ : nullptr;
        if (share) std::memset(share, 0, rows_per_group_ * padded_ * sizeof(T));
        Outputs out{g_weight, g_bias};
        if (groups_ > 1) {
          out.weight = g_weight ? group_weights.template at<T>() + group * weights : nullptr;
          out.bias = g_bias ? group_biases.template at<T>() + group * classes : nullptr;
        }
        for (int64_t r = first; r < last; r += rows_per_chunk_)
          chunk(r, std::min(last, r + rows_per_chunk_), split, share ? share + (r - first) * padded_ : nullptr, out,
                scratch.at<char>(worker * worker_bytes()));
      });
      if (args_.g_x) merge(row, end, shares.template at<T>());
    }
    if (groups_ > 1 && g_weight) add_groups(group_weights.template at<T>(), weights, g_weight);
    if (groups_ > 1 && g_bias) add_groups(group_biases.template at<T>(), classes, g_bias);
  }

 private:
  static constexpr int L = 2 * kWidth<T>;
  static constexpr int64_t kTasks = 16, kChunk = 512, kShareBytes = int64_t(64) << 20;
  using Panel = PanelGradient<T, L>;
  struct Outputs {
    T *weight, *bias;  // (V, D), (V): added to; null where not wanted
  };
  const LinearStatsBackwardArgs& args_;
  int64_t dim_, padded_, group_, w_per_tile_, w_per_split_, splits_, groups_, rows_per_pass_, rows_per_group_, rows_per_chunk_;
  Scratch bias_;

  size_t x_bytes() const { return size_t(rows_per_chunk_) * padded_ * sizeof(T); }
  size_t w_bytes() const { return round_up(size_t(w_per_tile_ / kMR) * group_ * sizeof(T), 64); }
  size_t dz_bytes() const { return size_t(rows_per_chunk_) * w_per_tile_ * sizeof(T); }
  size_t panel_bytes() const { return round_up(rows_per_chunk_ / L * sizeof(Panel), 64); }
  size_t worker_bytes() const { return 2 * x_bytes() + w_bytes() + dz_bytes() + panel_bytes(); }

  // Rows [begin, end) against the classes of a split. `share` is this split's part of g_x, panel by panel, [column][lane].
  void chunk(int64_t begin, int64_t end, int64_t split, T* share, Outputs sums, char* memory) {
    T* panels = reinterpret_cast<T*>(memory);
    T* columns = reinterpret_cast<T*>(memory + x_bytes());
    T* w = reinterpret_cast<T*>(memory + 2 * x_bytes());
    T* dz = reinterpret_cast<T*>(memory + 2 * x_bytes() + w_bytes());
    Panel* gradients = reinterpret_cast<Panel*>(memory + 2 * x_bytes() + w_bytes() + dz_bytes());
    const int64_t number = (end - begin + L - 1) / L, tile = w_per_tile_ * L;
    for (int64_t p = 0; p < number; ++p) {
      const int64_t row = begin + p * L, count = std::min<int64_t>(L, end - row);
      pack_panel<Plain<T>, L>(args_.x, row, count, panels + p * L * dim_);
      gradients[p].begin(args_, args_.w.rows, row, count);
    }
    // Rows without gradient are zero, lest their NaN reach the weight.
    const auto counts = [&](int64_t row) { return row < end && RowGradient<T>(args_, row, args_.w.rows).active; };
    if (sums.weight) pack_columns_first<T>(args_.x, begin, number * L, counts, columns);
    bool zero[kChunk / L];
    const int64_t last = std::min(args_.w.rows, (split + 1) * w_per_split_);
    for (int64_t first = split * w_per_split_; first < last; first += w_per_tile_) {
      const int64_t classes = std::min(w_per_tile_, last - first), whole = round_up(classes, kMR);
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
        if (sums.bias) add_bias_gradient(out, sums.bias + first, classes);
        scale(out, classes);
        if (share)
          for (int64_t k = 0; k < dim_; k += kStep)
            add_input_gradient<T>(w + k / kLine<T> * kMR * kLine<T> + k % kLine<T>, group_, classes, out,
                                  share + (p * padded_ + k) * L);
      }
      if (sums.weight && some) weight_gradient(dz, tile, number, zero, columns, sums.weight + first * dim_, classes);
    }
  }

  // One panel's gradients by the logits of classes first, first + 1, ...; false, and `out` unfinished, if all are zero.
  bool logit_gradients(const Panel& gradients, const T* panel, const T* w, int64_t first, int64_t classes, T* out) const {
    if (gradients.soft) {
      for (int64_t g = 0; g * kMR < classes; ++g)
        multiply_group<Plain<T>, 2>(panel, w + g * group_, dim_, out + g * kMR * L);
      gradients.apply(out, first, classes, T(args_.scale), args_.bias.data ? bias_.template at<T>() + first : nullptr);
    } else {
      gradients.apply_hard(out, first, classes);
    }
    IntVec<T> set{};
    for (int64_t i = 0; i < classes * L; i += kWidth<T>) set |= (IntVec<T>)(load(out + i) != 0);
    return any<T>(set);
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

  void add_groups(const T* shares, int64_t size, T* out) {
    constexpr int64_t block = 4096;
    for_tasks((size + block - 1) / block, [&](int64_t task, int) {
      for (int64_t group = 0; group < groups_; ++group)
        for (int64_t i = task * block; i < std::min(size, (task + 1) * block); ++i) out[i] += shares[group * size + i];
    });
  }

  void merge(int64_t begin, int64_t end, const T* shares) {
    T* g_x = static_cast<T*>(args_.g_x);
    for_tasks((end - begin + L - 1) / L, [&](int64_t p, int) {
      const int64_t row = begin + p * L, rows = std::min<int64_t>(L, end - row);
      for (int64_t k = 0; k < dim_; ++k) {
        alignas(64) T total[L] = {};
        for (int64_t split = 0; split < splits_; ++split) {
          const T* share = shares + split * rows_per_pass_ * padded_ + (p * padded_ + k) * L;
          for (int lane = 0; lane < L; ++lane) total[lane] += share[lane];
        }
        for (int64_t lane = 0; lane < rows; ++lane) g_x[(row + lane) * dim_ + k] = total[lane];
      }
    });
  }
};

}  // namespace

void linear_stats_backward(const LinearStatsBackwardArgs& args) {
  if (args.x.dtype == DType::f64) Backward<double>(args).run();
  else Backward<float>(args).run();
}

}  // namespace ncops::NCOPS_ISA
