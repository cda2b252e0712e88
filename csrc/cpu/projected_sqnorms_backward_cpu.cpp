// projected_sqnorms_backward: with z = basis r recomputed tile by tile and dz = factor z, g_x = dz basis and g_basis = dz^T r.
//
// N x r never exists. Shares of g_basis are kept per task, of which there are at most 8 (fewer for a large basis), and merged
// in order.
#include "blocks/two_products.h"
#include "kernels.h"

namespace ncops::NCOPS_ISA {
namespace {

template <class T>
struct ScaleRows {
  static constexpr int W = kWidth<T>, L = 2 * W;
  struct State {
    int64_t row, count;
    alignas(64) T factor[L];
  };
  const ProjectedSqnormsBackwardArgs& args;

  int64_t extra() const { return 0; }

  void begin(State& state, int64_t row, int64_t count, T*) {
    state.row = row;
    state.count = count;
    const T* factor = static_cast<const T*>(args.factor);
    for (int64_t i = 0; i < L; ++i) {
      const int64_t r = row + i;
      state.factor[i] = i >= count ? T(0) : factor ? factor[args.x.stored(r)] : T(1);
    }
  }

  void tile(State& state, T* tile, int64_t, int64_t count) {
    for (int lane = 0; lane < L; lane += W) {
      const Vec<T> factor = load(state.factor + lane);
      for (int64_t j = 0; j < count; ++j) store(tile + j * L + lane, load(tile + j * L + lane) * factor);
    }
  }

  void end(State& state, const T*, T* out) {
    store_lanes<T, L>(out, args.x.dim, args.x, state.row, state.count, 0, args.g_x);
  }
};

template <class T>
void run(const ProjectedSqnormsBackwardArgs& args) {
  constexpr int L = 2 * kWidth<T>;
  const Rows &x = args.x, &basis = args.basis;
  const int64_t dim = x.dim, columns = pieces(dim, L), groups = pieces(basis.rows, kMR);
  const int64_t sum_size = columns * groups * kMR * L;
  T* g_basis = static_cast<T*>(args.g_basis);
  // At most 8 shares of g_basis, and 128 MB of them.
  const int64_t affordable = (int64_t(128) << 20) / std::max<int64_t>(1, sum_size * int64_t(sizeof(T)));
  const int64_t most = g_basis ? std::max<int64_t>(1, std::min<int64_t>(8, affordable)) : std::numeric_limits<int64_t>::max();
  const TwoProductsPlan plan = plan_two_products<T>(x.rows, dim, most);
  Scratch sums(g_basis ? plan.tasks * sum_size * sizeof(T) : 0);
  ScaleRows<T> epilogue{args};
  if (args.g_x && basis.rows == 0) std::memset(args.g_x, 0, args.total * dim * element_bytes(x.dtype));
  else run_two_products<T>(x, basis, plan, epilogue, args.g_x != nullptr, g_basis ? sums.at<T>() : nullptr);
  if (args.g_x) clear_other_rows<T>(x, args.total, args.g_x);
  if (g_basis)
    for_tasks(groups, [&](int64_t g, int) {
      for (int64_t j = g * kMR; j < std::min(basis.rows, (g + 1) * kMR); ++j)
        for (int64_t k = 0; k < dim; ++k) {
          double total = 0;
          for (int64_t task = 0; task < plan.tasks; ++task)
            total += double(sums.at<T>()[task * sum_size + ((k / L * groups + g) * kMR + j % kMR) * L + k % L]);
          g_basis[j * dim + k] = T(total);
        }
    });
}

}  // namespace

void projected_sqnorms_backward(const ProjectedSqnormsBackwardArgs& args) {
  with_compute(args.x.dtype, [&](auto t) { run<decltype(t)>(args); });
}

}  // namespace ncops::NCOPS_ISA
