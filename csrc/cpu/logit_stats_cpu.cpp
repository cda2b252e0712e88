// logit_stats: stored logits, read once.
#include "logit_columns.h"
#include "pack.h"
#include "scratch.h"

namespace ncops::NCOPS_ISA {
namespace {

template <class T>
T target_logit(const LogitStatsArgs& args, int64_t row) {
  if (!args.target || !is_class(args.target[row], args.logits.dim, args.ignore_index)) return std::numeric_limits<T>::infinity();
  T logit;
  load_raw<T>(args.logits, row, args.target[row], 1, &logit);
  return fma(splat<T>(logit), splat<T>(T(args.scale)), Vec<T>{})[0];
}

// Lanes are rows: blocks of rows are transposed into tiles [class][row].
template <class T>
void by_columns(const LogitStatsArgs& args) {
  constexpr int L = kWidth<T>;
  constexpr int64_t columns = 4 * kLoadBlock;
  const int64_t n = args.logits.rows, v = args.logits.dim, panels = (n + L - 1) / L;
  for_tasks(panels, [&](int64_t task, int) {
    alignas(64) T tile[columns * L];
    const int64_t row0 = task * L, count = std::min<int64_t>(L, n - row0);
    T targets[L] = {};
    for (int64_t lane = 0; lane < count; ++lane) targets[lane] = target_logit<T>(args, row0 + lane);
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

// Lanes are every W-th class of one row, read as it lies: no transpose, but W shares to merge per row, so for long rows.
constexpr int64_t kLongRow = 8192;

template <class T>
bool reads_in_place(const LogitStatsArgs& args) {
  return args.logits.dim >= kLongRow && args.scale == 1 && Plain<T>::in_place(args.logits, 0, 0, 0) != nullptr;
}

template <class T, int L>
RowStats share(const LogitState<T, L>& state, int lane) {
  RowStats r = state.row(lane);
  r.argmax = r.argmax * L + lane;
  r.second_index = r.second_index * L + lane;
  return r;
}

template <class T>
void by_rows(const LogitStatsArgs& args) {
  constexpr int L = kWidth<T>;
  constexpr int64_t rows = 256;  // of the tile [rows][L]: 16 KB, read twice from the first-level cache
  const int64_t v = args.logits.dim, whole = v / L;
  for_tasks(args.logits.rows, [&](int64_t row, int) {
    // With scale 1 and no bias the state only reads.
    T* z = const_cast<T*>(Plain<T>::in_place(args.logits, row, 0, v));
    const T target = target_logit<T>(args, row);
    T targets[L];
    for (int i = 0; i < L; ++i) targets[i] = target;
    LogitState<T, L> state;
    state.begin(targets);
    for (int64_t j = 0; j < whole; j += rows) state.add(z + j * L, j, std::min(rows, whole - j), T(1), nullptr);
    RowStats total = share(state, 0);
    for (int lane = 1; lane < L; ++lane) total.merge(share(state, lane));
    if (const int64_t rest = v - whole * L; rest > 0) {  // as one lane of a tile
      alignas(64) T tile[L * L] = {};
      for (int64_t i = 0; i < rest; ++i) tile[i * L] = z[whole * L + i];
      state.begin(targets);
      state.add(tile, whole * L, rest, T(1), nullptr);
      total.merge(state.row(0));
    }
    write_row<T>(args.out, row, total, args.target, args.ignore_index, target);
  });
}

template <class T>
void run(const LogitStatsArgs& args) {
  if (args.logits.rows == 0) return;
  if (reads_in_place<T>(args)) by_rows<T>(args);
  else by_columns<T>(args);
}

}  // namespace

void logit_stats(const LogitStatsArgs& args) {
  if (args.logits.dtype == DType::f64) run<double>(args);
  else run<float>(args);
}

}  // namespace ncops::NCOPS_ISA
