// linear_loss: columns of the logits and the gradient of a loss of them, in three products instead of the four of linear_stats
// and its backward. A block of rows keeps its tiles of logits until the columns are known, then turns them into gradients
// where they lie and feeds the other two products from them. What a block keeps is bounded, so N x V never exists.
//
// With many classes, tasks own ranges of them and meet twice in every block; with few, tasks own groups of rows, each with a
// block of its own, and their shares of g_weight are merged in order.
#include "gradient_products.h"
#include "linear_logits.h"
#include "logit_gradient.h"
#include "blocks/store.h"

namespace ncops::NCOPS_ISA {
namespace {

template <class Mode>
class Loss {
  using T = typename Mode::T;

 public:
  explicit Loss(const LinearLossArgs& args)
      : args_(args), dim_(args.x.dim), depth_(Mode::depth(args.x.dim)), classes_(args.w.rows), bias_(args.bias, args.w.rows), cap_(args.softcap),
        columns_(round_up(dim_, L)), features_(round_up(dim_, kMR)), tiles_(pieces(classes_, kTileRows)) {
    const int64_t n = args.x.rows;
    const int64_t splits = std::max<int64_t>(1, std::min<int64_t>(kTasks, classes_ / 256));
    const int64_t affordable = kShareBytes / std::max<int64_t>(1, classes_ * dim_ * int64_t(sizeof(T)));
    groups_ = std::max<int64_t>(1, std::min({int64_t(kTasks), affordable, pieces(n, 128)}));
    if (splits >= groups_) groups_ = 1;
    tiles_per_split_ = groups_ > 1 ? tiles_ : pieces(tiles_, splits);
    splits_ = pieces(tiles_, tiles_per_split_);
    const int64_t row_bytes = (tiles_ * kTileRows + splits_ * features_) * int64_t(sizeof(T));
    const int64_t kept = (groups_ > 1 ? kGroupBytes : kBlockBytes) / row_bytes;
    rows_per_group_ = round_up(pieces(n, groups_), L);
    rows_per_block_ = std::min(rows_per_group_, std::max<int64_t>(L, std::min(kMostRows, kept) / L * L));
    panels_ = rows_per_block_ / L;
  }

  void run() {
    const int64_t n = args_.x.rows;
    GroupSums<T> weight(args_.g_weight, classes_ * dim_, groups_), bias(args_.g_bias, classes_, groups_);
    if (args_.g_x && n == 0) clear_other_rows<T>(args_.x, args_.total, args_.g_x);
    bias.clear();
    if (groups_ > 1 || n == 0) weight.clear();  // else by whoever adds to it first
    if (n == 0) return;
    const Scratch targets(args_.target ? n * sizeof(T) : 0), grads(size_t(kFloatColumns) * n * sizeof(T));
    const Scratch partials(splits_ * n * sizeof(LogitShare));
    LinearStatsArgs columns;
    static_cast<LogitOptions&>(columns) = args_;
    columns.x = args_.x, columns.w = args_.w, columns.out = args_.out;
    LogitBackward gradient;
    static_cast<LogitOptions&>(gradient) = args_;
    gradient.rows = n, gradient.grad = grads.at<T>(), gradient.floats = args_.out.floats, gradient.indices = args_.out.indices;
    Epilogue epilogue{columns, bias_.data, partials.at<LogitShare>(), args_.target ? targets.at<T>() : nullptr};
    Layout block, worker;
    const size_t logits_at = block.add<T>(panels_ * tiles_ * kTile), panels_at = block.add<T>(panels_ * L * depth_);
    const size_t columns_at = block.add<T>(args_.g_weight ? rows_per_block_ / kPerStep<Mode> * columns_ : 0);
    const size_t inputs_at = block.add<T>(args_.g_x ? splits_ * rows_per_block_ * features_ : 0);
    const size_t gradients_at = block.add<Panel>(panels_);
    const size_t w_at = worker.add<T>(std::max(kTileRows / kMR * group_size<Mode>(dim_), turned_size<Mode>(kTileRows, dim_)));
    const size_t copy_at = worker.add<T>(cap_ ? kTile : 0);
    const size_t steps_at = worker.add<T>(kInPairs<Mode> ? kTile / 2 : 0);
    const size_t states_at = worker.add<State>(panels_);
    const int64_t at_once = std::min<int64_t>(groups_, workers());
    const Scratch blocks(block.bytes * at_once), packed(worker.bytes * workers());
    const auto work = [&](int64_t group, int64_t at, const auto& each) {
      const auto shared = [&](size_t offset) { return blocks.at<T>(at * block.bytes + offset); };
      Block b{shared(logits_at), shared(panels_at), shared(columns_at), shared(inputs_at),
              reinterpret_cast<Panel*>(shared(gradients_at))};
      const int64_t end = std::min(n, (group + 1) * rows_per_group_);
      for (b.row = group * rows_per_group_; b.row < end; b.row = b.end) {
        b.end = std::min(end, b.row + rows_per_block_);
        const auto own = [&](int worker_number, size_t offset) { return packed.at<T>(worker_number * worker.bytes + offset); };
        each(b.panels_count(), [&](int64_t p, int) { pack_panel<Mode, L>(args_.x, b.first(p), b.count(p), b.panel(p, depth_)); });
        each(splits_, [&](int64_t split, int w) {
          multiply(b, split, epilogue, own(w, w_at), own(w, copy_at), reinterpret_cast<State*>(own(w, states_at)));
        });
        each(b.panels_count(), [&](int64_t p, int) { finish(b, p, epilogue, gradient, grads.at<T>()); });
        each(splits_, [&](int64_t split, int w) {
          multiply_back(b, split, weight.share(group), bias.share(group), own(w, w_at), own(w, copy_at), own(w, steps_at));
        });
        if (args_.g_x) each(b.panels_count(), [&](int64_t p, int) { write_inputs(b, p); });
      }
    };
    if (groups_ == 1)
      work(0, 0, [](int64_t tasks, const auto& f) { for_tasks(tasks, [&](int64_t task, int w) { f(task, w); }); });
    else
      for_tasks(groups_, [&](int64_t group, int w) {
        work(group, w, [&](int64_t tasks, const auto& f) {
          for (int64_t task = 0; task < tasks; ++task) f(task, w);
        });
      });
    weight.merge();
    bias.merge();
    if (args_.g_x) clear_other_rows<T>(args_.x, args_.total, args_.g_x);
  }

 private:
  static constexpr int L = 2 * kWidth<T>;
  static constexpr int64_t kTile = kTileRows * L, kTasks = 16, kMostRows = 512;
  static constexpr int64_t kShareBytes = int64_t(64) << 20, kBlockBytes = int64_t(88) << 20, kGroupBytes = int64_t(1) << 20;
  using Epilogue = LinearStats<Mode, 2>;
  using State = typename Epilogue::State;
  using Panel = PanelGradient<T, L>;

  // Rows [row, end), panel by panel: logits, then their gradients, [tile of w][panel][class][lane]; x packed for the products
  // either way; shares of g_x [split][panel][column][lane].
  struct Block {
    T *logits, *panels, *columns, *inputs;
    Panel* gradients;
    int64_t row = 0, end = 0;

    int64_t panels_count() const { return pieces(end - row, L); }
    int64_t first(int64_t p) const { return row + p * L; }
    int64_t count(int64_t p) const { return std::min<int64_t>(L, end - first(p)); }
    T* panel(int64_t p, int64_t depth) const { return panels + p * L * depth; }
    T* tile(int64_t t, int64_t p) const { return logits + (t * panels_count() + p) * kTile; }
  };

  const LinearLossArgs& args_;
  int64_t dim_, depth_, classes_;
  Bias<T> bias_;
  Softcap<T> cap_;
  int64_t columns_, features_, tiles_, groups_, tiles_per_split_, splits_, rows_per_group_, rows_per_block_, panels_;

  template <class F>
  void for_tiles(int64_t split, F f) const {
    for (int64_t t = split * tiles_per_split_; t < std::min(tiles_, (split + 1) * tiles_per_split_); ++t)
      f(t, t * kTileRows, std::min(kTileRows, classes_ - t * kTileRows));
  }

  // Logits of a split's classes, and their share of the rows' statistics.
  void multiply(const Block& b, int64_t split, Epilogue& epilogue, T* w, T* copy, State* states) const {
    const int64_t number = b.panels_count(), group = group_size<Mode>(dim_);
    const int64_t steps = plan_product<T>(args_.x.rows, classes_, depth_, L).steps;
    for (int64_t p = 0; p < number; ++p) epilogue.begin(states[p], b.first(p), b.count(p), split, b.panel(p, depth_));
    for_tiles(split, [&](int64_t t, int64_t first, int64_t count) {
      pack_rows<Mode>(args_.w, first, count, w);
      for (int64_t k = 0; k == 0 || k < depth_; k += steps) {
        const int64_t n = std::min(steps, depth_ - k);
        for (int64_t p = 0; p < number; ++p) {
          const T* panel = b.panel(p, depth_) + k * L;
          for (int64_t g = 0; g * kMR < count; ++g) {
            const T* rows = w + g * group + k * kMR;
            T* out = b.tile(t, p) + g * kMR * L;
            if (k == 0) multiply_group<Mode, 2>(panel, rows, n, out);
            else multiply_group<Mode, 2, true>(panel, rows, n, out);
          }
          if (k + steps < depth_) continue;
          // The slopes of capped logits come from the products, which then stay.
          T* logits = cap_ ? copy : b.tile(t, p);
          if (cap_) std::memcpy(copy, b.tile(t, p), count * L * sizeof(T));
          epilogue.tile(states[p], logits, first, count);
        }
      }
    });
    for (int64_t p = 0; p < number; ++p) epilogue.end(states[p], b.first(p), b.count(p), split);
  }

  // A panel's columns, and what turns its logits into gradients.
  void finish(const Block& b, int64_t p, Epilogue& epilogue, const LogitBackward& gradient, T* grads) const {
    const int64_t n = args_.x.rows;
    for (int64_t row = b.first(p); row < b.first(p) + b.count(p); ++row) {
      LogitShare total = epilogue.partials[row];
      for (int64_t split = 1; split < splits_; ++split) total.merge(epilogue.partials[split * n + row]);
      epilogue.write(row, total);
      const double* term = args_.coefficients + row * kLossTerms;
      const auto set = [&](FloatColumn c, double value) { grads[c * n + row] = T(value); };
      const double lse = double(static_cast<const T*>(args_.out.floats)[kLse * n + row]);
      for (int c = 0; c < kFloatColumns; ++c) set(FloatColumn(c), 0);
      set(kNll, term[kOfNll]);
      set(kLse, term[kOfLse] + (term[kOfLseSquared] == 0 ? 0 : 2 * term[kOfLseSquared] * lse));
      set(kEntropy, term[kOfEntropy]);
      set(kMean, term[kOfMean]);
    }
    b.gradients[p].begin(gradient, classes_, b.first(p), b.count(p));
    if (!args_.g_weight) return;
    // Rows without gradient are zero, lest their NaN reach the weight.
    const auto counts = [&](int64_t row) { return row < b.end && b.gradients[p].rows[row - b.first(p)].active; };
    pack_row_steps<Mode>(args_.x, b.first(p), counts, b.columns + p * L * L / kPerStep<Mode>, b.panels_count() * L);
  }

  // Turns logits into gradients by them, and adds these to a share of g_x, to g_weight (V, D) and to g_bias (V).
  void multiply_back(const Block& b, int64_t split, T* g_weight, T* g_bias, T* w, T* slopes, T* steps) const {
    const int64_t number = b.panels_count(), panel = L * features_;
    T* inputs = args_.g_x ? b.inputs + split * number * panel : nullptr;
    if (inputs) std::memset(inputs, 0, number * panel * sizeof(T));
    bool zero[kMostRows / L];
    for_tiles(split, [&](int64_t t, int64_t first, int64_t count) {
      if (g_weight && b.row == 0 && groups_ == 1) std::memset(g_weight + first * dim_, 0, count * dim_ * sizeof(T));
      const int64_t whole = round_up(count, kMR);
      bool packed = false, some = false;
      for (int64_t p = 0; p < number; ++p) {
        T* dz = b.tile(t, p);
        zero[p] = !b.gradients[p].touches(first, count);
        if (zero[p]) continue;
        if (cap_) cap_.logits_and_slopes(dz, slopes, count * L, L, T(args_.scale), bias_.data ? bias_.data + first : nullptr);
        b.gradients[p].apply(dz, first, count, 1, nullptr);
        if (cap_) multiply_by<T>(dz, slopes, count * L);
        zero[p] = !any_gradient<T>(dz, count);
        if (zero[p]) continue;
        some = true;
        std::memset(dz + count * L, 0, (whole - count) * L * sizeof(T));
        if (g_bias) add_bias_gradient<T>(dz, g_bias + first, count);
        if (args_.scale != 1)
          for (int64_t i = 0; i < count * L; ++i) dz[i] *= T(args_.scale);
        if (inputs && !packed) pack_turned<Mode>(args_.w, first, count, w);
        packed = true;
        if (inputs) add_input_gradient<Mode>(w, dim_, count, class_steps<Mode>(dz, count, steps), inputs + p * panel);
        if (g_weight) turn_into_row_steps<Mode>(dz, whole);
      }
      if (g_weight && some)
        add_weight_gradient<Mode>(b.tile(t, 0), kTile, number, zero, b.columns, dim_, g_weight + first * dim_, count);
    });
  }

  void write_inputs(const Block& b, int64_t p) const {
    T* sum = b.inputs + p * L * features_;
    for (int64_t split = 1; split < splits_; ++split) {
      const T* share = b.inputs + (split * b.panels_count() + p) * L * features_;
      for (int64_t i = 0; i < dim_ * L; i += kWidth<T>) store(sum + i, load(sum + i) + load(share + i));
    }
    store_lanes<T, L>(sum, dim_, args_.x, b.first(p), b.count(p), 0, args_.g_x);
  }
};

}  // namespace

void linear_loss(const LinearLossArgs& args) {
  if constexpr (kBf16Pairs)
    if (args.x.dtype == DType::bf16 && bf16_products()) return Loss<Bf16Pairs>(args).run();
  if (args.x.dtype == DType::f64) Loss<Plain<double>>(args).run();
  else Loss<Plain<float>>(args).run();
}

}  // namespace ncops::NCOPS_ISA
