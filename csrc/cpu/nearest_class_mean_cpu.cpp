// nearest_class_mean: the arg-max of x.m - |m|^2 / 2 over centred rows, then the winning distance from direct differences.
#include "blocks/product.h"
#include "kernels.h"

namespace ncops::NCOPS_ISA {
namespace {

template <class T, int NV>
struct NearestMean {
  static constexpr int L = NV * kWidth<T>;
  struct State {
    alignas(64) T best[L];
    alignas(64) LaneInt<T> index[L], poisoned[L];
  };
  struct Partial {
    T best;
    int64_t index;
    bool poisoned;
  };
  const NearestClassMeanArgs& args;
  const T* bias;      // (C): -|m|^2 / 2 of the centred mean, -inf where it is not valid
  Partial* partials;  // (splits, N) where the means are split, else null
  const Plan& plan;

  void begin(State& state, int64_t, int64_t, int64_t, const T*) {
    for (int i = 0; i < L; ++i) {
      state.best[i] = -std::numeric_limits<T>::infinity();
      state.index[i] = -1;
      state.poisoned[i] = 0;
    }
  }

  void tile(State& state, const T* tile, int64_t first, int64_t count) {
    const LaneInt<T> offset = LaneInt<T>(first - first / plan.w_per_split * plan.w_per_split);
    for (int lane = 0; lane < L; lane += kWidth<T>) {
      Vec<T> best = load(state.best + lane);
      IntVec<T> index = load_int<T>(state.index + lane), bad = load_int<T>(state.poisoned + lane);
      IntVec<T> j = IntVec<T>{} + offset;
      for (int64_t i = 0; i < count; ++i, j += 1) {
        if (bias[first + i] == -std::numeric_limits<T>::infinity()) continue;  // not valid: may even be NaN
        const Vec<T> product = load(tile + i * L + lane), z = product + bias[first + i];
        index = z > best ? j : index;
        best = z > best ? z : best;
        bad |= (IntVec<T>)(product - product != 0);  // NaN or infinite
      }
      store(state.best + lane, best);
      store_int<T>(state.index + lane, index);
      store_int<T>(state.poisoned + lane, bad);
    }
  }

  void end(State& state, int64_t row, int64_t count, int64_t split) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t index = state.index[i] < 0 ? -1 : split * plan.w_per_split + state.index[i];
      const Partial found{state.best[i], index, state.poisoned[i] != 0};
      if (partials) partials[split * args.x.rows + row + i] = found;
      else write(row + i, found);
    }
  }

  void write(int64_t row, const Partial& best) const {
    const bool none = best.poisoned || best.index < 0;
    args.index[row] = none ? -1 : best.index;
    static_cast<T*>(args.sqdist)[row] =
        none ? std::numeric_limits<T>::quiet_NaN() : T(square_distance(args.x, row, args.means, best.index));
  }
};

template <class T, int NV>
void run(const NearestClassMeanArgs& args) {
  const int64_t n = args.x.rows, classes = args.means.rows;
  if (n == 0) return;
  Scratch bias(classes * sizeof(T));
  for_tasks(classes, [&](int64_t c, int) {
    const bool valid = !args.valid || args.valid[c];
    bias.at<T>()[c] = valid ? T(-0.5 * squared_norm<T>(args.means, c)) : -std::numeric_limits<T>::infinity();
  });
  const Plan plan = plan_product<T>(n, classes, args.x.dim, NV * kWidth<T>);
  using Partial = typename NearestMean<T, NV>::Partial;
  const Scratch partials(plan.splits > 1 ? plan.splits * n * sizeof(Partial) : 0);
  NearestMean<T, NV> epilogue{args, bias.at<T>(), plan.splits > 1 ? partials.at<Partial>() : nullptr, plan};
  run_product<Plain<T>, NV>(args.x, args.means, plan, epilogue);
  if (plan.splits == 1) return;
  for_blocks(n, 256, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      auto best = epilogue.partials[row];
      for (int64_t split = 1; split < plan.splits; ++split) {
        const auto& later = epilogue.partials[split * n + row];
        const bool poisoned = best.poisoned || later.poisoned;
        if (later.index >= 0 && (best.index < 0 || later.best > best.best)) best = later;
        best.poisoned = poisoned;
      }
      epilogue.write(row, best);
    }
  });
}

}  // namespace

void nearest_class_mean(const NearestClassMeanArgs& args) {
  with_compute(args.x.dtype, [&](auto t) {
    using T = decltype(t);
    with_vectors<T>(args.x.rows, [&](auto nv) { run<T, nv>(args); });
  });
}

}  // namespace ncops::NCOPS_ISA
