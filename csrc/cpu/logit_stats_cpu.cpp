// logit_stats: stored logits, read once. Blocks of rows are transposed in the first-level cache into tiles [class][row].
#include "logit_columns.h"
#include "pack.h"
#include "scratch.h"

namespace ncops::NCOPS_ISA {
namespace {

template <class T>
void run(const LogitStatsArgs& args) {
  constexpr int L = kWidth<T>;
  const int64_t n = args.logits.rows, v = args.logits.dim, panels = (n + L - 1) / L;
  for_tasks(panels, [&](int64_t task, int) {
    constexpr int64_t columns = 4 * kLoadBlock;
    alignas(64) T tile[columns * L];
    const int64_t row0 = task * L, count = std::min<int64_t>(L, n - row0);
    T targets[L];
    for (int lane = 0; lane < L; ++lane) {
      targets[lane] = std::numeric_limits<T>::infinity();
      if (!args.target || lane >= count) continue;
      const int64_t t = args.target[row0 + lane];
      if (t < 0 || t >= v || t == args.ignore_index) continue;
      T logit = 0;
      load_raw<T>(args.logits, row0 + lane, t, 1, &logit);
      targets[lane] = fma(splat<T>(logit), splat<T>(T(args.scale)), Vec<T>{})[0];
    }
    LogitState<T, L> state;
    state.begin(targets);
    for (int64_t first = 0; first < v; first += columns) {
      const int64_t width = std::min<int64_t>(columns, v - first);
      for (int64_t k = 0; k < width; k += kLoadBlock)
        pack_columns<Plain<T>, L>(args.logits, row0, count, first + k, std::min(kLoadBlock, width - k), tile + k * L);
      state.add(tile, first, width, T(args.scale), nullptr);
    }
    for (int64_t lane = 0; lane < count; ++lane)
      write_row<T>(args.out, row0 + lane, state.row(lane), args.target, args.ignore_index, targets[lane]);
  });
}

}  // namespace

void logit_stats(const LogitStatsArgs& args) {
  if (args.logits.dtype == DType::f64) run<double>(args);
  else run<float>(args);
}

}  // namespace ncops::NCOPS_ISA
