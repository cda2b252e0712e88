// linear_stats, forward: tiles of scale * X Wᵀ + bias, softly capped or not, whose logits are used up in the registers that they arise in.
//
// A block takes 128 rows (64 in double) and a run of classes. Where a thread's tile ends, the lanes that share a row hold some
// of its logits each; sums over the tile meet by shuffles, and one lane joins them, in double, to the row's running state.
// Runs end as shares, which a second kernel joins in the order of the classes. The target's logit is wanted before its rivals
// appear, with the very bits that it will have among them: a first kernel computes it as the diagonal of a tile of the targets'
// weights, by the same steps.
#pragma once

#include <algorithm>
#include <type_traits>

#include "logit_state.cuh"
#include "product_tile.cuh"

namespace ncops::cuda {

constexpr int64_t kLinearBlocks = 512;  // row blocks x splits that fill any device several times

template <class E>
using ProductTile = std::conditional_t<sizeof(E) == 2, MmaTile<E>, FmaTile<E>>;

// A product of features as a logit.
template <class T, bool Capped>
struct LogitOf {
  T scale;
  Softcap<T, Capped> softcap;
  __device__ __forceinline__ T operator()(T product, T bias) const { return softcap(multiply_add(product, scale, bias)); }
};

template <class E, bool Capped>
struct LinearProblem {
  RowsView<E> x, w;
  const E* bias;          // (V), or null
  const int64_t* target;  // (N), or null
  int64_t ignore_index;
  LogitOf<Compute<E>, Capped> logit;

  __device__ __forceinline__ Compute<E> bias_of(int64_t column) const {
    return bias == nullptr ? Compute<E>(0) : to_compute(__ldg(bias + column));
  }
  // The class of a row's target, or -1.
  __device__ __forceinline__ int64_t label(int64_t row) const {
    if (target == nullptr || row >= x.rows) return -1;
    const int64_t label = target[row];
    return names_class(label, w.rows, ignore_index) ? label : -1;
  }
};

// The running state of one row, in the lane that owns it; a tile's logits reach it by `add`, called by whole warps.
// Lanes come in groups of Tile::kLanes that hold the same kThreadRows rows; lane i of a group owns row i / kShared.
template <class Tile>
struct RowState {
  using T = typename Tile::T;
  static constexpr int kRows = Tile::kThreadRows, kCols = Tile::kThreadCols, kLanes = Tile::kLanes, kShared = kLanes / kRows;

  const int owned = int(threadIdx.x) % kLanes / kShared;
  T target;
  T max = -Limits<T>::inf, second = -Limits<T>::inf, shift = 0;
  int64_t argmax = kNoClass, second_index = kNoClass, seen = 0, rank = 0;
  ExpSums sums;
  double mean = 0, squares = 0;
  int flags = 0;

  explicit __device__ __forceinline__ RowState(T target) : target(target) {}

  // count: the columns of the whole tile that are classes; those of this warp's part are `part_count` > 0.
  template <class Logit>
  __device__ __forceinline__ void add(const Tile& tile, int64_t first_class, int count, int part_count, const Logit& logit,
                                      const T (&bias)[kCols]) {
    if (seen == 0) start(tile, count, part_count, logit, bias);
    const T old_max = max;
    T below[kRows], weighted[kRows], squared[kRows], sum[kRows], square[kRows];
    int counts[kRows];  // above the target's, and 2^16 times those at the maximum: a tile has 128 columns
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      T z[kCols];
#pragma unroll
      for (int j = 0; j < kCols; ++j)
        z[j] = Tile::col(j) < count ? logit(tile.at(r, j), bias[j]) : -Limits<T>::inf;
      row_moments(r, count, z, sum[r], square[r], counts[r]);
      const T peak = row_candidates(r, first_class, count, z, sum[r]);
      exponentials(z, peak, below[r], weighted[r], squared[r], counts[r]);
    }
    if (max > old_max) sums.lower(double(max) - double(old_max));
    sums.below += double(owned_total(below));
    sums.weighted += double(owned_total(weighted));
    sums.squared += double(owned_total(squared));
    const int count_total = owned_total(counts);
    sums.equal += double(count_total >> 16);
    rank += count_total & 0xffff;
    join_moments(part_count, double(owned_total(sum)), double(owned_total(square)));
  }

  __device__ __forceinline__ LogitShare share() const {
    LogitShare s;
    s.max = double(max), s.second = double(second), s.sums = sums, s.mean = mean, s.squares = squares;
    s.argmax = argmax, s.second_index = second_index, s.count = seen, s.rank = rank, s.flags = flags;
    return s;
  }

 private:
  // Row r's value, from the lane that owns it.
  template <class N>
  static __device__ __forceinline__ N of_owner(N value, int r) {
    return __shfl_sync(kWarpMask, value, r * kShared, kLanes);
  }

  // Sums over the lanes of a group, each lane left with the row that it owns: halves of the rows go to and fro.
  template <class N>
  static __device__ __forceinline__ N owned_total(N (&v)[kRows]) {
    int bit = kLanes / 2;
#pragma unroll
    for (int half = kRows / 2; half > 0; half /= 2, bit /= 2) {
      const bool upper = (int(threadIdx.x) & bit) != 0;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const N mine = upper ? v[i + half] : v[i], theirs = upper ? v[i] : v[i + half];
        v[i] = mine + __shfl_xor_sync(kWarpMask, theirs, bit);
      }
    }
    for (; bit > 0; bit /= 2) v[0] += __shfl_xor_sync(kWarpMask, v[0], bit);
    return v[0];
  }

  // Moments are formed about a shift near the mean: that of the classes seen before, at first that of this tile.
  template <class Logit>
  __device__ __forceinline__ void start(const Tile& tile, int count, int part_count, const Logit& logit,
                                        const T (&bias)[kCols]) {
    T sum[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sum[r] = 0;
#pragma unroll
      for (int j = 0; j < kCols; ++j) sum[r] += Tile::col(j) < count ? logit(tile.at(r, j), bias[j]) : T(0);
    }
    const T first = owned_total(sum) / T(part_count);
    shift = first - first == 0 ? first : T(0);
  }

  __device__ __forceinline__ void row_moments(int r, int count, const T (&z)[kCols], T& sum, T& square,
                                              int& above) const {
    const T about = of_owner(shift, r), rival = of_owner(target, r);
    sum = square = 0;
    above = 0;
#pragma unroll
    for (int j = 0; j < kCols; ++j) {
      const T d = Tile::col(j) < count ? z[j] - about : T(0);
      sum += d;
      square = multiply_add(d, d, square);
      above += z[j] > rival;
    }
  }

  // Row r's maximum with this tile; its owner notes the top two and what is not finite. Most tiles hold no candidate: all of
  // the bookkeeping is left to those that may.
  __device__ __forceinline__ T row_candidates(int r, int64_t first_class, int count, const T (&z)[kCols],
                                              T sum) {
    const T row_max = of_owner(max, r), row_second = of_owner(second, r);
    T top = z[0];
#pragma unroll
    for (int j = 1; j < kCols; ++j) top = larger(top, z[j]);
    const bool candidate = top > row_second || top >= row_max || !(sum - sum == 0);
    if (NCOPS_DEFECT(linear_divergent_shuffle) ? !candidate : !__any_sync(kWarpMask, candidate)) return row_max;
    TopTwo<T> two;
    int found = 0;
#pragma unroll
    for (int j = 0; j < kCols; ++j) {
      two.append(z[j], Tile::col(j));
      found |= Tile::col(j) < count ? flags_of(z[j]) : 0;
    }
    two.merge_lanes(kLanes);
    for (int bit = kLanes / 2; bit > 0; bit /= 2) found |= __shfl_xor_sync(kWarpMask, found, bit);
    if (owned == r) {
      flags |= found;
      // Classes of earlier tiles are lower, so they win ties.
      if (two.max > max) {
        const bool ours = !(two.second > max);
        second_index = ours ? argmax : first_class + two.second_index;
        second = ours ? max : two.second;
        max = two.max, argmax = first_class + two.argmax;
      } else if (two.max > second) {
        second = two.max, second_index = first_class + two.argmax;
      }
    }
    return larger(row_max, two.max);
  }

  static __device__ __forceinline__ void exponentials(const T (&z)[kCols], T peak, T& below, T& weighted, T& squared,
                                                     int& counts) {
    const T reference = peak == -Limits<T>::inf ? T(0) : peak;
    below = weighted = squared = 0;
#pragma unroll
    for (int j = 0; j < kCols; ++j) {
      const T x = larger(z[j] - reference, Limits<T>::lowest), e = exp_nonpositive(x);
      const T term = x < 0 ? e : T(0);
      below += term;
      squared = multiply_add(term, term, squared);
      counts += x >= 0 ? 1 << 16 : 0;
      weighted = multiply_add(x, e, weighted);
    }
  }

  // Chan's rule; the next tile's shift is the mean so far.
  __device__ __forceinline__ void join_moments(int count, double sum, double square) {
    const double added = double(count), offset = sum / added, delta = double(shift) + offset - mean;
    const double part = added / (double(seen) + added);
    mean += delta * part;
    squares += fmax(0.0, square - sum * offset) + delta * delta * (double(seen) * part);
    seen += count;
    const T next = T(mean);
    shift = next - next == 0 ? next : shift;
  }
};

// Logits of the targets: (N), +inf where a row has none, which nothing outranks. grid: row blocks.
template <class E, bool Async, bool Capped>
static __global__ void __launch_bounds__(kTileThreads, 1)
    target_logits_kernel(LinearProblem<E, Capped> problem, Compute<E>* target_logits) {
  using Tile = ProductTile<E>;
  NCOPS_SHARED_DYNAMIC(E, shared);
  const int64_t first_row = int64_t(blockIdx.x) * Tile::kRows;
  const auto weight_row = [&](int64_t, int line) { return problem.label(first_row + line); };
  for_each_tile<Tile, Async>(shared, problem.x, first_row, problem.w, 0, 1, weight_row, [&](int64_t, const Tile& tile) {
#pragma unroll
    for (int i = 0; i < Tile::kThreadRows; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kThreadCols; ++j) {
        const int64_t row = first_row + Tile::row(i);
        if (Tile::row(i) != Tile::col(j) || row >= problem.x.rows) continue;
        const int64_t label = problem.label(row);
        target_logits[row] = label < 0 ? Limits<Compute<E>>::inf : problem.logit(tile.at(i, j), problem.bias_of(label));
      }
  });
}

// Shares [row][split] of the rows. grid: (row blocks, splits), `split_tiles` tiles each.
template <class E, bool Async, bool Capped>
static __global__ void __launch_bounds__(kTileThreads, 1)
    linear_stats_kernel(LinearProblem<E, Capped> problem, int64_t split_tiles, const Compute<E>* target_logits,
                        LogitShare* shares) {
  using Tile = ProductTile<E>;
  using T = Compute<E>;
  constexpr int kPartCols = Tile::kCols / Tile::kParts;
  NCOPS_SHARED_DYNAMIC(E, shared);
  const int64_t first_row = int64_t(blockIdx.x) * Tile::kRows, classes = problem.w.rows;
  const int64_t tiles = (classes + Tile::kCols - 1) / Tile::kCols, begin = int64_t(blockIdx.y) * split_tiles;
  const int owned_row = Tile::row(int(threadIdx.x) % Tile::kLanes / (Tile::kLanes / Tile::kThreadRows));
  const int64_t row = first_row + owned_row;
  RowState<Tile> state(target_logits != nullptr && row < problem.x.rows ? target_logits[row] : Limits<T>::inf);
  const auto weight_row = [&](int64_t n, int line) {
    const int64_t column = n * Tile::kCols + line;
    return column < classes ? column : int64_t(-1);
  };
  const auto epilogue = [&](int64_t n, const Tile& tile) {
    const int64_t first_class = n * Tile::kCols;
    const int count = int(min(int64_t(Tile::kCols), classes - first_class));
    const int part_count = min(kPartCols, count - Tile::part() * kPartCols);
    if (part_count <= 0) return;  // whole warps
    T bias[Tile::kThreadCols];
#pragma unroll
    for (int j = 0; j < Tile::kThreadCols; ++j)
      bias[j] = Tile::col(j) < count ? problem.bias_of(first_class + Tile::col(j)) : T(0);
    state.add(tile, first_class, count, part_count, problem.logit, bias);
  };
  for_each_tile<Tile, Async>(shared, problem.x, first_row, problem.w, begin, min(begin + split_tiles, tiles), weight_row,
                             epilogue);
  // One lane per row; the left warp of two has the lower classes of every tile, and joins the right one's.
  const bool speaks = int(threadIdx.x) % (Tile::kLanes / Tile::kThreadRows) == 0;
  LogitShare share = state.share();
  if constexpr (Tile::kParts > 1) {
    auto* const others = reinterpret_cast<LogitShare*>(shared);
    if (Tile::part() == 1) others[owned_row] = share;
    if (!NCOPS_DEFECT(linear_missing_part_sync)) __syncthreads();
    if (Tile::part() == 1) return;
    share.merge(others[owned_row]);
  }
  if (speaks && row < problem.x.rows) shares[row * gridDim.y + blockIdx.y] = share;
}

// How the classes are cut, a function of the shape and the dtype alone.
struct LinearPlan {
  int64_t split_tiles;
  int splits;

  // blocks: enough for any device; tests ask for fewer, to have several tiles in a split.
  LinearPlan(int64_t rows, int64_t classes, int tile, int64_t blocks = kLinearBlocks) {
    const int64_t tiles = (classes + tile - 1) / tile;
    const int64_t row_blocks = (rows + tile - 1) / tile;
    const int64_t wanted = std::max<int64_t>(1, blocks / std::max<int64_t>(1, row_blocks));
    split_tiles = (tiles + wanted - 1) / wanted;
    splits = int((tiles + split_tiles - 1) / split_tiles);
  }
};

// Device memory between the kernels.
struct LinearWorkspace {
  LogitShare* shares;
  void* target_logits;
  size_t bytes;

  LinearWorkspace(void* memory, int64_t rows, int splits) {
    const size_t share_bytes = size_t(rows) * size_t(splits) * sizeof(LogitShare);
    shares = static_cast<LogitShare*>(memory);
    target_logits = static_cast<char*>(memory) + share_bytes;
    bytes = share_bytes + size_t(rows) * sizeof(double);
  }
};

template <class T>
struct StoredLogit {
  const T* logits;  // or null
  __device__ __forceinline__ T operator()(int64_t row) const { return logits == nullptr ? Limits<T>::inf : logits[row]; }
};

// One problem and the grid that it runs on; Async: 16-byte copies fit its rows.
template <class E, bool Async, bool Capped>
struct LinearLaunch {
  using T = Compute<E>;
  using Tile = ProductTile<E>;
  const LinearStatsArgs& args;
  LinearProblem<E, Capped> problem;
  int64_t row_blocks = (args.x.rows + Tile::kRows - 1) / Tile::kRows;

  template <class Kernel, class... Arguments>
  void start(Kernel kernel, int64_t splits, Arguments... arguments) const {
    const dim3 grid{unsigned(row_blocks), unsigned(splits)};
    const auto stream = static_cast<cudaStream_t>(args.stream);
    NCOPS_START("linear_stats", kernel, grid, dim3(kTileThreads), kTileBytes<Tile>, stream, problem, arguments...);
  }

  void targets(T* logits) const { start(target_logits_kernel<E, Async, Capped>, 1, logits); }

  void columns(const LinearPlan& plan) const {
    const LinearWorkspace work(args.workspace, args.x.rows, plan.splits);
    const T* logits = static_cast<const T*>(args.target_logit);
    if (args.target != nullptr) {
      targets(static_cast<T*>(work.target_logits));
      logits = static_cast<const T*>(work.target_logits);
    }
    start(linear_stats_kernel<E, Async, Capped>, plan.splits, plan.split_tiles, logits, work.shares);
    launch_merge<T>("linear_stats", work.shares, args.x.rows, plan.splits, args, args.shares,
                    StoredLogit<T>{logits});
  }
};

// Calls run(launch) with the LinearLaunch for these rows.
template <class E, class Run>
void with_linear_launch(const LinearStatsArgs& args, Run run) {
  if (args.x.rows == 0) return;
  using T = Compute<E>;
  dispatch_softcap(args.softcap, [&](auto capped) {
    constexpr bool kCapped = decltype(capped)::value;
    const LinearProblem<E, kCapped> problem{RowsView<E>(args.x), RowsView<E>(args.w), static_cast<const E*>(args.bias.data),
                                            args.target, args.ignore_index, {T(args.scale), Softcap<T, kCapped>(args.softcap)}};
    if (vectors_fit<E>(args.x) && vectors_fit<E>(args.w)) run(LinearLaunch<E, true, kCapped>{args, problem});
    else run(LinearLaunch<E, false, kCapped>{args, problem});
  });
}

template <class E>
void launch_linear_stats(const LinearStatsArgs& args, int64_t blocks = kLinearBlocks) {
  const LinearPlan plan(args.x.rows, args.w.rows, ProductTile<E>::kRows, blocks);
  with_linear_launch<E>(args, [&](const auto& launch) { launch.columns(plan); });
}

template <class E>
void launch_target_logits(const LinearStatsArgs& args) {
  with_linear_launch<E>(args, [&](const auto& launch) { launch.targets(static_cast<Compute<E>*>(args.target_logit)); });
}

}  // namespace ncops::cuda
