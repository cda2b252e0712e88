// linear_loss: columns of the logits and the gradient of a loss of them, in three products instead of the four of linear_stats
// and its backward. A block of rows keeps its tiles of logits until the columns are known, then turns them into gradients
// where they lie and feeds the other two products from them.
#include "kept_tiles.h"
#include "linear_logits.h"
#include "logit_gradient.h"

namespace ncops::NCOPS_ISA {
namespace {

template <class Mode>
class Loss {
  using T = typename Mode::T;

 public:
  explicit Loss(const LinearLossArgs& args)
      : args_(args), dim_(args.x.dim), depth_(Mode::depth(args.x.dim)), columns_(round_up(dim_, L)), features_(round_up(dim_, kMR)),
        bias_(args.bias, args.w.rows), cap_(args.softcap), plan_(args.x.rows, args.w.rows, dim_, 1, features_) {}

  void run() {
    const int64_t n = args_.x.rows;
    GroupSums<T> weight(args_.g_weight, plan_.classes * dim_, plan_.groups), bias(args_.g_bias, plan_.classes, plan_.groups);
    if (args_.g_x && n == 0) clear_other_rows<T>(args_.x, args_.total, args_.g_x);
    bias.clear();
    if (plan_.groups > 1 || n == 0) weight.clear();  // else by whoever adds to it first
    if (n == 0) return;
    const Scratch targets(args_.target ? n * sizeof(T) : 0), grads(size_t(kFloatColumns) * n * sizeof(T));
    const Scratch partials(plan_.splits * n * sizeof(LogitShare));
    LinearStatsArgs columns;
    static_cast<LogitOptions&>(columns) = args_;
    columns.x = args_.x, columns.w = args_.w, columns.out = args_.out;
    LogitBackward gradient;
    static_cast<LogitOptions&>(gradient) = args_;
    gradient.rows = n, gradient.grad = grads.at<T>(), gradient.floats = args_.out.floats, gradient.indices = args_.out.indices;
    Epilogue epilogue{columns, bias_.data, partials.at<LogitShare>(), args_.target ? targets.at<T>() : nullptr};
    Layout block, worker;
    const size_t logits_at = block.add<T>(plan_.panels * plan_.tiles * plan_.kTile), panels_at = block.add<T>(plan_.panels * L * depth_);
    const size_t columns_at = block.add<T>(args_.g_weight ? plan_.rows_per_block / kPerStep<Mode> * columns_ : 0);
    const size_t inputs_at = block.add<T>(args_.g_x ? plan_.splits * plan_.rows_per_block * features_ : 0);
    const size_t gradients_at = block.add<Panel>(plan_.panels);
    const size_t w_at = worker.add<T>(std::max(KeptTiles<Mode>::kRows / kMR * group_size<Mode>(dim_), turned_size<Mode>(KeptTiles<Mode>::kRows, dim_)));
    const size_t copy_at = worker.add<T>(cap_ ? plan_.kTile : 0);
    const size_t steps_at = worker.add<T>(class_steps_size<Mode>(KeptTiles<Mode>::kRows));
    const size_t states_at = worker.add<State>(plan_.panels);
    const Scratch blocks(block.bytes * plan_.at_once()), packed(worker.bytes * workers());
    plan_.run([&](int64_t row, int64_t end, int64_t group, int64_t at, const auto& each) {
      const auto shared = [&](size_t offset) { return blocks.at<T>(at * block.bytes + offset); };
      const auto own = [&](int number, size_t offset) { return packed.at<T>(number * worker.bytes + offset); };
      const Block b{{row, end}, shared(logits_at), shared(panels_at), shared(columns_at), shared(inputs_at),
                    reinterpret_cast<Panel*>(shared(gradients_at))};
      each(b.number(), [&](int64_t p, int) {
        pack_panel<Mode, L>(args_.x, b.first(p), b.count(p), b.panels + p * L * depth_);
        epilogue.find_targets(b.first(p), b.count(p), b.panels + p * L * depth_);
      });
      each(plan_.splits, [&](int64_t split, int w) {
        multiply(b, split, epilogue, own(w, w_at), own(w, copy_at), reinterpret_cast<State*>(own(w, states_at)));
      });
      each(b.number(), [&](int64_t p, int) { finish(b, p, epilogue, gradient, grads.at<T>()); });
      each(plan_.splits, [&](int64_t split, int w) {
        multiply_back(b, split, weight.share(group), bias.share(group), own(w, w_at), own(w, copy_at), own(w, steps_at));
      });
      if (args_.g_x)
        each(b.number(), [&](int64_t p, int) { b.store_inputs(b.inputs, plan_.splits, features_, args_.x, p, args_.g_x); });
    });
    weight.merge();
    bias.merge();
    if (args_.g_x) clear_other_rows<T>(args_.x, args_.total, args_.g_x);
  }

 private:
  static constexpr int L = KeptTiles<Mode>::L;
  using Epilogue = LinearStats<Mode, 2>;
  using State = typename Epilogue::State;
  using Panel = PanelGradient<T, L>;

  // Tiles of logits, then of their gradients; x packed for the products either way; shares of g_x [split][panel][column][lane].
  struct Block : KeptRows<Mode> {
    T *logits, *panels, *columns, *inputs;
    Panel* gradients;
  };

  const LinearLossArgs& args_;
  int64_t dim_, depth_, columns_, features_;
  Bias<T> bias_;
  Softcap<T> cap_;
  KeptTiles<Mode> plan_;

  // Logits of a split's classes, and their share of the rows' statistics.
  void multiply(const Block& b, int64_t split, Epilogue& epilogue, T* w, T* copy, State* states) const {
    const int64_t steps = plan_product<T>(plan_.rows, plan_.classes, depth_, L).steps;
    for (int64_t p = 0; p < b.number(); ++p)
      epilogue.begin(states[p], b.first(p), b.count(p), split, b.panels + p * L * depth_);
    plan_.for_tiles(split, [&](int64_t t, int64_t first, int64_t count) {
      pack_rows<Mode>(args_.w, first, count, w);
      b.multiply(b.panels, depth_, steps, w, group_size<Mode>(dim_), t, count, b.logits, [&](int64_t p) {
        // The slopes of capped logits come from the products, which then stay.
        T* tile = b.tile(b.logits, t, p);
        if (cap_) std::memcpy(copy, tile, count * L * sizeof(T));
        epilogue.tile(states[p], cap_ ? copy : tile, first, count);
      });
    });
    for (int64_t p = 0; p < b.number(); ++p) epilogue.end(states[p], b.first(p), b.count(p), split);
  }

  // A panel's columns, and what turns its logits into gradients.
  void finish(const Block& b, int64_t p, Epilogue& epilogue, const LogitBackward& gradient, T* grads) const {
    const int64_t n = args_.x.rows;
    for (int64_t row = b.first(p); row < b.first(p) + b.count(p); ++row) {
      LogitShare total = epilogue.partials[row];
      for (int64_t split = 1; split < plan_.splits; ++split) total.merge(epilogue.partials[split * n + row]);
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
    b.gradients[p].begin(gradient, plan_.classes, b.first(p), b.count(p));
    if (!args_.g_weight) return;
    const auto counts = [&](int64_t row) { return row < b.end; };
    pack_row_steps<Mode>(args_.x, b.first(p), counts, b.columns + p * L * L / kPerStep<Mode>, b.number() * L);
  }

  // Turns logits into gradients by them, and adds these to a share of g_x, to g_weight (V, D) and to g_bias (V).
  void multiply_back(const Block& b, int64_t split, T* g_weight, T* g_bias, T* w, T* slopes, T* steps) const {
    const int64_t number = b.number(), panel = L * features_;
    T* inputs = args_.g_x ? b.inputs + split * number * panel : nullptr;
    if (inputs) std::memset(inputs, 0, number * panel * sizeof(T));
    bool zero[KeptTiles<Mode>::kMostRows / L];
    plan_.for_tiles(split, [&](int64_t t, int64_t first, int64_t count) {
      if (g_weight && b.row == 0 && plan_.groups == 1) std::memset(g_weight + first * dim_, 0, count * dim_ * sizeof(T));
      bool packed = false, some = false;
      for (int64_t p = 0; p < number; ++p) {
        T* dz = b.tile(b.logits, t, p);
        zero[p] = !b.gradients[p].touches(first, count);
        if (zero[p]) continue;
        if (cap_) cap_.logits_and_slopes(dz, slopes, count * L, L, T(args_.scale), bias_.data ? bias_.data + first : nullptr);
        b.gradients[p].apply(dz, first, count, 1, nullptr);
        if (cap_) multiply_by<T>(dz, slopes, count * L);
        zero[p] = !any_gradient<T>(dz, count);
        if (zero[p]) continue;
        some = true;
        complete_gradients<T>(dz, count, T(args_.scale), g_bias ? g_bias + first : nullptr);
        if (inputs && !packed) pack_turned<Mode>(args_.w, first, count, w);
        packed = true;
        if (inputs) add_input_gradient<Mode>(w, dim_, count, class_steps<Mode>(dz, count, steps), inputs + p * panel);
        if (g_weight) turn_into_row_steps<Mode>(dz, count);
      }
      if (g_weight && some)
        add_weight_gradient<Mode>(b.tile(b.logits, t, 0), plan_.kTile, number, zero, b.columns, dim_, g_weight + first * dim_, count);
    });
  }
};

}  // namespace

void linear_loss(const LinearLossArgs& args) {
  if (with_bf16_products(args.x.dtype, [&](auto mode) { Loss<decltype(mode)>(args).run(); })) return;
  if (args.x.dtype == DType::f64) Loss<Plain<double>>(args).run();
  else Loss<Plain<float>>(args).run();
}

}  // namespace ncops::NCOPS_ISA
