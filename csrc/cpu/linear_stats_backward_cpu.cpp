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
#include "blocks/few_rows.h"
#include "gradient_products.h"
#include "linear_logits.h"
#include "logit_gradient.h"

namespace ncops::NCOPS_ISA {
namespace {

template <class Mode>
class Backward {
  using T = typename Mode::T;

 public:
  explicit Backward(const LinearStatsBackwardArgs& args)
      : args_(args), dim_(args.x.dim), depth_(Mode::depth(args.x.dim)), columns_(round_up(args.x.dim, L)),
        features_(round_up(std::max<int64_t>(1, args.x.dim), kMR)), group_(group_size<Mode>(args.x.dim)),
        bias_(args.bias, args.w.rows), cap_(args.softcap) {
    const int64_t splits = std::max<int64_t>(1, std::min<int64_t>(kTasks, args.w.rows / 256));
    const int64_t affordable = kShareBytes / std::max<int64_t>(1, args.w.rows * dim_ * int64_t(sizeof(T)));
    groups_ = std::max<int64_t>(1, std::min({int64_t(kTasks), affordable, pieces(args.x.rows, 128)}));
    if (splits >= groups_) groups_ = 1;
    w_per_split_ = groups_ > 1 ? args.w.rows : int64_t(round_up(pieces(args.w.rows, splits), kRows));
    splits_ = pieces(args.w.rows, w_per_split_);
    const int64_t share = args.g_x ? kShareBytes / (splits_ * features_ * int64_t(sizeof(T))) : args.x.rows;
    const int64_t unit = L * groups_;
    rows_per_pass_ = std::min<int64_t>(std::max<int64_t>(unit, share / unit * unit), round_up(args.x.rows, unit));
    rows_per_group_ = rows_per_pass_ / groups_;
    rows_per_chunk_ = std::min<int64_t>(rows_per_group_, kChunk);
  }

  void run() {
    GroupSums<T> weight(args_.g_weight, args_.w.rows * dim_, groups_), bias(args_.g_bias, args_.w.rows, groups_);
    weight.clear();
    bias.clear();
    if (args_.x.rows == 0) return;
    Scratch shares(args_.g_x ? splits_ * rows_per_pass_ * features_ * sizeof(T) : 0);
    const int64_t tasks = splits_ * groups_;
    Layout layout;
    const size_t panels_at = layout.add<T>(rows_per_chunk_ * depth_);
    const size_t columns_at = layout.add<T>(args_.g_weight ? rows_per_chunk_ / kPerStep<Mode> * columns_ : 0);
    const size_t w_at = layout.add<T>(kRows / kMR * group_);
    const size_t turned_at = layout.add<T>(args_.g_x ? turned_size<Mode>(kRows, dim_) : 0);
    const size_t dz_at = layout.add<T>(rows_per_chunk_ * kRows), steps_at = layout.add<T>(class_steps_size<Mode>(kRows));
    const size_t gradients_at = layout.add<Panel>(rows_per_chunk_ / L);
    Scratch scratch(layout.bytes * std::min<int64_t>(tasks, workers()));
    for (int64_t row = 0; row < args_.x.rows; row += rows_per_pass_) {
      const int64_t end = std::min(args_.x.rows, row + rows_per_pass_);
      for_tasks(tasks, [&](int64_t task, int worker) {
        const auto at = [&](size_t offset) { return scratch.at<T>(worker * layout.bytes + offset); };
        const int64_t split = task % splits_, group = task / splits_;
        const int64_t first = row + group * rows_per_group_, last = std::min(end, first + rows_per_group_);
        T* share = args_.g_x ? shares.at<T>() + (split * rows_per_pass_ + first - row) * features_ : nullptr;
        if (share) std::memset(share, 0, rows_per_group_ * features_ * sizeof(T));
        const Memory memory{at(panels_at), at(columns_at), at(w_at), at(turned_at), at(dz_at), at(steps_at),
                            reinterpret_cast<Panel*>(at(gradients_at))};
        for (int64_t r = first; r < last; r += rows_per_chunk_)
          chunk(r, std::min(last, r + rows_per_chunk_), split, share ? share + (r - first) * features_ : nullptr,
                weight.share(group), bias.share(group), memory);
      });
      if (args_.g_x) merge(row, end, shares.at<T>());
    }
    weight.merge();
    bias.merge();
  }

 private:
  static constexpr int L = 2 * kWidth<T>;
  static constexpr int64_t kRows = kGradientRows<Mode>, kTasks = 16, kChunk = 512, kShareBytes = int64_t(64) << 20;
  using Panel = PanelGradient<T, L>;
  struct Memory {
    T *panels, *columns, *w, *turned, *dz, *steps;  // of a chunk: x and a tile of w for either product, its logits' gradients
    Panel* gradients;
  };
  const LinearStatsBackwardArgs& args_;
  int64_t dim_, depth_, columns_, features_, group_, w_per_split_, splits_, groups_, rows_per_pass_, rows_per_group_, rows_per_chunk_;
  Bias<T> bias_;
  Softcap<T> cap_;

  // Rows [begin, end) against the classes of a split. `share` is this split's part of g_x, panel by panel, [column][lane];
  // g_weight (V, D) and g_bias (V) are added to. Null: not wanted.
  void chunk(int64_t begin, int64_t end, int64_t split, T* share, T* g_weight, T* g_bias, const Memory& memory) {
    const auto [panels, columns, w, turned, dz, steps, gradients] = memory;
    const int64_t number = pieces(end - begin, L), tile = kRows * L;
    for (int64_t p = 0; p < number; ++p) {
      const int64_t row = begin + p * L, count = std::min<int64_t>(L, end - row);
      pack_panel<Mode, L>(args_.x, row, count, panels + p * L * depth_);
      gradients[p].begin(args_, args_.w.rows, row, count);
    }
    // Rows without gradient are zero, lest their NaN reach the weight.
    const auto counts = [&](int64_t row) { return row < end && gradients[(row - begin) / L].rows[(row - begin) % L].active; };
    for (int64_t p = 0; p < number && g_weight; ++p)
      pack_row_steps<Mode>(args_.x, begin + p * L, counts, columns + p * L * L / kPerStep<Mode>, number * L);
    bool zero[kChunk / L];
    const int64_t last = std::min(args_.w.rows, (split + 1) * w_per_split_);
    for (int64_t first = split * w_per_split_; first < last; first += kRows) {
      const int64_t classes = std::min(kRows, last - first);
      bool packed = false, some = false;
      for (int64_t p = 0; p < number; ++p) {
        T* out = dz + p * tile;
        zero[p] = !gradients[p].touches(first, classes);
        if (zero[p]) continue;
        if (!packed) pack_rows<Mode>(args_.w, first, classes, w);
        packed = true;
        zero[p] = !logit_gradients(gradients[p], panels + p * L * depth_, w, first, classes, out);
        if (zero[p]) continue;
        if (share && !some) pack_turned<Mode>(args_.w, first, classes, turned);
        some = true;
        complete_gradients<T>(out, classes, T(args_.scale), g_bias ? g_bias + first : nullptr);
        if (share)
          add_input_gradient<Mode>(turned, dim_, classes, class_steps<Mode>(out, classes, steps), share + p * features_ * L);
        if (g_weight) turn_into_row_steps<Mode>(out, classes);
      }
      if (g_weight && some) add_weight_gradient<Mode>(dz, tile, number, zero, columns, dim_, g_weight + first * dim_, classes);
    }
  }

  // One panel's gradients by the logits of classes first, first + 1, ...; false, and `out` unfinished, if all are zero.
  bool logit_gradients(const Panel& gradients, const T* panel, const T* w, int64_t first, int64_t classes, T* out) const {
    const T* bias = bias_.data ? bias_.data + first : nullptr;
    if (gradients.soft || cap_)
      multiply_panel<Mode, 2>(panel, w, group_, classes, depth_, false, out, panel + L * depth_);
    alignas(64) T slopes[kRows * L];
    if (cap_) cap_.logits_and_slopes(out, slopes, classes * L, L, T(args_.scale), bias);
    if (gradients.soft) gradients.apply(out, first, classes, cap_ ? T(1) : T(args_.scale), cap_ ? nullptr : bias);
    else gradients.apply_hard(out, first, classes);
    if (cap_) multiply_by<T>(out, slopes, classes * L);
    return any_gradient<T>(out, classes);
  }

  void merge(int64_t begin, int64_t end, const T* shares) {
    T* g_x = static_cast<T*>(args_.g_x);
    for_blocks(end - begin, L, [&](int64_t first, int64_t last, int) {
      for (int64_t k = 0; k < dim_; ++k) {
        alignas(64) T total[L] = {};
        for (int64_t split = 0; split < splits_; ++split) {
          const T* share = shares + split * rows_per_pass_ * features_ + first * features_ + k * L;
          for (int lane = 0; lane < L; ++lane) total[lane] += share[lane];
        }
        for (int64_t lane = 0; lane < last - first; ++lane) g_x[(begin + first + lane) * dim_ + k] = total[lane];
      }
    });
  }
};

}  // namespace

void linear_stats_backward(const LinearStatsBackwardArgs& args) {
  // As the forward, so that logits are formed again to the bit.
  if (args.x.rows > kFewRows && with_bf16_products(args.x.dtype, [&](auto mode) { Backward<decltype(mode)>(args).run(); })) return;
  with_compute(args.x.dtype, [&](auto t) { Backward<Plain<decltype(t)>>(args).run(); });
}

}  // namespace ncops::NCOPS_ISA
