// projected_sqnorms: centring happens while x is packed, squaring while the tile is in cache; N x r never exists.
#include "blocks/product.h"
#include "kernels.h"

namespace ncops::NCOPS_ISA {
namespace {

template <class T, int NV>
struct SquaredNorms {
  static constexpr int L = NV * kWidth<T>;
  struct State {
    double sum[L];
  };
  const ProjectedSqnormsArgs& args;
  double* partials;  // (splits, N) where the basis is split, else null

  void begin(State& state, int64_t, int64_t, int64_t, const T*) { std::memset(state.sum, 0, sizeof state.sum); }

  void tile(State& state, const T* tile, int64_t, int64_t count) {
    for (int lane = 0; lane < L; lane += kWidth<T>) {
      Vec<T> sum{};
      for (int64_t j = 0; j < count; ++j) {
        const Vec<T> z = load(tile + j * L + lane);
        sum = fma(z, z, sum);
      }
      for (int i = 0; i < kWidth<T>; ++i) state.sum[lane + i] += double(sum[i]);
    }
  }

  void end(State& state, int64_t row, int64_t count, int64_t split) {
    for (int64_t i = 0; i < count; ++i) {
      if (partials) partials[split * args.x.rows + row + i] = state.sum[i];
      else write(row + i, state.sum[i]);
    }
  }

  void write(int64_t row, double sum) {
    static_cast<T*>(args.out)[row] = args.keep && !args.keep[row] ? T(0) : T(sum);
  }
};

template <class T, int NV>
void run(const ProjectedSqnormsArgs& args) {
  const int64_t n = args.x.rows;
  if (n == 0) return;
  const Plan plan = plan_product<T>(n, args.basis.rows, args.x.dim, NV * kWidth<T>);
  Scratch partials(plan.splits > 1 ? plan.splits * n * sizeof(double) : 0);
  SquaredNorms<T, NV> epilogue{args, plan.splits > 1 ? partials.at<double>() : nullptr};
  run_product<Plain<T>, NV>(args.x, args.basis, plan, epilogue);
  if (plan.splits == 1) return;
  for (int64_t row = 0; row < n; ++row) {
    double sum = 0;
    for (int64_t split = 0; split < plan.splits; ++split) sum += epilogue.partials[split * n + row];
    epilogue.write(row, sum);
  }
}

}  // namespace

void projected_sqnorms(const ProjectedSqnormsArgs& args) {
  with_compute(args.x.dtype, [&](auto t) {
    using T = decltype(t);
    with_vectors<T>(args.x.rows, [&](auto nv) { run<T, nv>(args); });
  });
}

}  // namespace ncops::NCOPS_ISA
