// logit_divergence and its gradient: rows of stored logits, transposed into tiles [class][row], once per pass.
#include "divergence_gradient.h"
#include "blocks/store.h"

namespace ncops::NCOPS_ISA {
namespace {

template <class T>
struct LogitDivergence {
  static constexpr int L = kWidth<T>;
  static constexpr int64_t kColumns = 4 * kLoadBlock;
  const LogitDivergenceArgs& args;
  PairReader<T> read{T(args.scale), false, Softcap<T>(args.softcap), args.softcap, nullptr, nullptr};

  // Calls f(tile, other tile, first class, classes) for L rows from `row`.
  template <class F>
  void for_tiles(int64_t row, int64_t count, F f) const {
    alignas(64) T tile[kColumns * L], other[kColumns * L];
    const int64_t v = args.logits.dim;
    for (int64_t first = 0; first < v; first += kColumns) {
      const int64_t width = std::min<int64_t>(kColumns, v - first);
      for (int64_t k = 0; k < width; k += kLoadBlock) {
        const int64_t n = std::min(kLoadBlock, width - k);
        pack_columns<Plain<T>, L>(args.logits, row, count, first + k, n, tile + k * L);
        pack_columns<Plain<T>, L>(args.other, row, count, first + k, n, other + k * L);
      }
      f(tile, other, first, width);
    }
  }

  void forward() const {
    for_panels([&](int64_t row, int64_t count) {
      DivergenceState<T, L> state;
      state.begin();
      for_tiles(row, count, [&](T* z, T* y, int64_t first, int64_t n) { state.add(read, z, y, first, n); });
      DivergenceRow rows[L];
      DivergenceLanes<T, L> lanes;
      double rests[2][L] = {}, sums[4][L] = {};
      for (int i = 0; i < L; ++i) {
        rows[i].share = state.row(i);
        rows[i].first();
        lanes.begin(i, rows[i]);
      }
      for_tiles(row, count, [&](T* z, T* y, int64_t first, int64_t n) { lanes.add_rests(read, z, y, first, n, rests); });
      for (int i = 0; i < L; ++i) {
        rows[i].second(rests[0][i], rests[1][i]);
        lanes.shift[i] = T(rows[i].shift);
      }
      for_tiles(row, count, [&](T* z, T* y, int64_t first, int64_t n) {
        lanes.add_ratios(read, z, y, first, n, T(args.beta), sums);
      });
      for (int64_t i = 0; i < count; ++i) {
        const double of_row[4] = {sums[0][i], sums[1][i], sums[2][i], sums[3][i]};
        write_divergence<T>(args, args.logits.rows, row + i, rows[i], of_row);
      }
    });
  }

  void backward() const {
    for_panels([&](int64_t row, int64_t count) {
      DivergenceGradient<T, L> gradient;
      gradient.begin(static_cast<const T*>(args.grad), static_cast<const T*>(args.floats), args.logits.rows, row, count);
      for_tiles(row, count, [&](T* z, T* y, int64_t first, int64_t n) {
        gradient.apply(read, z, y, first, n, T(args.beta));
        write(z, args.logits, row, count, first, n, args.g_logits);
        write(y, args.other, row, count, first, n, args.g_other);
      });
    });
  }

 private:
  template <class F>
  void for_panels(F f) const {
    const int64_t n = args.logits.rows;
    for_tasks(pieces(n, L), [&](int64_t task, int) { f(task * L, std::min<int64_t>(L, n - task * L)); });
  }
  void write(T* tile, const Rows& of, int64_t row, int64_t count, int64_t first, int64_t n, void* out) const {
    if (!out) return;
    for (int64_t i = 0; i < n * L; ++i) tile[i] *= T(args.scale);
    store_lanes<T, L>(tile, n, of, row, count, first, out);
  }
};

}  // namespace

void logit_divergence(const LogitDivergenceArgs& args) {
  with_compute(args.logits.dtype, [&](auto t) { LogitDivergence<decltype(t)>{args}.forward(); });
}

void logit_divergence_backward(const LogitDivergenceArgs& args) {
  with_compute(args.logits.dtype, [&](auto t) { LogitDivergence<decltype(t)>{args}.backward(); });
}

}  // namespace ncops::NCOPS_ISA
