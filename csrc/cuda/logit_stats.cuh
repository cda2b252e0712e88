// logit_stats: the columns of stored logits in one read, 16 bytes a lane with four loads under way.
//
// A row is read by one warp, or by the eight of a block; where the rows are few, by several blocks. Lanes keep their own
// sums in the compute dtype about a maximum and a shift that the warp shares, so that at the end sums are only added. A
// warp raises its maximum when some lane reads a logit that could be among the warp's top two: with n logits read that
// happens about 2 ln n times, and every other chunk pays nothing for the maximum, the indices or the term counted apart.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "logit_state.cuh"

namespace ncops::cuda {

constexpr int kScanWarps = 8;                       // of a block
constexpr int kScanAhead = 4;                       // loads of a lane before the first is used
constexpr int64_t kOneWarp = 2048;                  // most classes that one warp reads alone
constexpr int64_t kLeastSplit = 8192;               // classes; less does not pay for a second kernel
constexpr int64_t kMostSplit = int64_t(1) << 20;    // classes: a lane then adds up at most 512 chunks
constexpr int64_t kFewRows = 512;                   // blocks that fill any device; fewer rows are split

template <class E, bool Capped>
struct LogitRows {
  RowsView<E> view;
  const int64_t* target;  // or null
  int64_t ignore_index;
  Compute<E> scale;
  Softcap<Compute<E>, Capped> softcap;

  __device__ __forceinline__ Compute<E> logit(Compute<E> stored) const { return softcap(scale * stored); }
  __device__ __forceinline__ Compute<E> at(int64_t row, int64_t column) const {
    return logit(to_compute(*view.at(row, column)));
  }
  // What the target's rivals are compared with: nothing outranks +inf.
  __device__ __forceinline__ Compute<E> operator()(int64_t row) const {
    const int64_t label = target == nullptr ? -1 : target[row];
    return target != nullptr && names_class(label, view.dim, ignore_index) ? at(row, label) : Limits<Compute<E>>::inf;
  }
};

// What a warp knows of its part of a row's share.
template <class T>
struct WarpScan {
  TopTwo<T> top;                           // of the lane
  T target;                                // of the row
  T peak = -Limits<T>::inf;                // the warp's maximum, and ...
  T floor = -Limits<T>::inf;               // ... a bound of its second: nothing below enters the top two
  T shift = 0;                             // of the moments
  T below = 0, weighted = 0, squared = 0, sum = 0, squares = 0;
  int equal = 0, rank = 0, count = 0, flags = 0;
  bool started = false;

  explicit __device__ __forceinline__ WarpScan(T target) : target(target) {}

  // N logits a lane. valid(j): whether j is one at all (else z[j] is -inf); index(j): its place in the share.
  template <int N, class Valid, class Index>
  __device__ __forceinline__ void add(const T (&z)[N], Valid valid, Index index) {
    T chunk_top = z[0];
#pragma unroll
    for (int j = 1; j < N; ++j) chunk_top = larger(chunk_top, z[j]);
    if (!started) start(z, valid);
    T chunk_sum = 0, chunk_squares = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const T d = valid(j) ? z[j] - shift : T(0);
      chunk_sum += d;
      chunk_squares = multiply_add(d, d, chunk_squares);
      rank += z[j] > target;
      count += valid(j);
    }
    sum += chunk_sum;
    squares += chunk_squares;
    if (!(chunk_sum - chunk_sum == 0)) {  // an infinity or a NaN, or an overflow
#pragma unroll
      for (int j = 0; j < N; ++j) flags |= valid(j) ? flags_of(z[j]) : 0;
    }
    const bool candidate = !(chunk_top < floor);
    if (NCOPS_DEFECT(logit_divergent_shuffle) ? candidate : __any_sync(kWarpMask, candidate)) {
      if (candidate) {
#pragma unroll
        for (int j = 0; j < N; ++j)
          if (!(z[j] < floor)) top.merge(z[j], index(j), -Limits<T>::inf, kNoIndex);
      }
      raise();
      exponentials<true>(z);
    } else {
      exponentials<false>(z);
    }
  }

  // The warp's share, all lanes' alike. first: the class of index 0.
  __device__ __forceinline__ LogitShare share(int64_t first) {
    LogitShare s;
    top.merge_lanes(32);
    s.max = double(top.max), s.second = double(top.second);
    s.argmax = top.argmax == kNoIndex ? kNoClass : first + top.argmax;
    s.second_index = top.second_index == kNoIndex ? kNoClass : first + top.second_index;
    s.sums.below = warp_sum(double(below));
    s.sums.weighted = warp_sum(double(weighted));
    s.sums.squared = warp_sum(double(squared));
    s.sums.equal = double(warp_sum(equal));
    set_moments(s, warp_sum(count), double(shift), warp_sum(double(sum)), warp_sum(double(squares)));
    s.rank = warp_sum(rank);
    s.flags = (__any_sync(kWarpMask, flags & kPoisoned) ? kPoisoned : 0) | (__any_sync(kWarpMask, flags & kMasked) ? kMasked : 0);
    return s;
  }

 private:
  static __device__ __forceinline__ T most(T v) {
    for (int bit = 16; bit > 0; bit /= 2) v = larger(v, __shfl_xor_sync(kWarpMask, v, bit));
    return v;
  }

  // Moments are formed about the mean of the warp's first chunk.
  template <int N, class Valid>
  __device__ __forceinline__ void start(const T (&z)[N], Valid valid) {
    T first_sum = 0;
    int first_count = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) first_sum += valid(j) ? z[j] : T(0), first_count += valid(j);
    const T mean = warp_sum(first_sum) / T(max(1, warp_sum(first_count)));
    shift = mean - mean == 0 ? mean : T(0);
    started = true;
  }

  // Lanes' top two have changed: a new maximum of the warp, and the sums so far referred to it.
  __device__ __forceinline__ void raise() {
    const T higher = most(top.max), rise = higher - peak;
    floor = most(top.second);
    if (!(rise > 0)) return;
    const T so_far = below + T(equal), factor = exp_nonpositive(larger(-rise, Limits<T>::lowest));
    weighted = factor == 0 ? T(0) : (weighted - so_far * rise) * factor;
    below = so_far * factor;
    squared = (squared + T(equal)) * factor * factor;
    equal = 0;
    peak = higher;
  }

  // at_peak: whether the chunk may hold terms at the maximum, which are counted apart.
  template <bool at_peak, int N>
  __device__ __forceinline__ void exponentials(const T (&z)[N]) {
    const T reference = peak == -Limits<T>::inf ? T(0) : peak;
    T e_sum = 0, product = 0, square = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const T x = larger(z[j] - reference, Limits<T>::lowest), e = exp_nonpositive(x);
      if constexpr (at_peak) {
        const T term = x < 0 ? e : T(0);
        e_sum += term;
        square = multiply_add(term, term, square);
        equal += x >= 0;
      } else {
        e_sum += e;
        square = multiply_add(e, e, square);
      }
      product = multiply_add(x, e, product);
    }
    below += e_sum;
    weighted += product;
    squared += square;
  }
};

// One lane's way through a share of `length` logits from `first` on: lane `at` of `lanes` that share it.
template <class E, bool Capped>
__device__ __forceinline__ void scan_strided(WarpScan<Compute<E>>& scan, const LogitRows<E, Capped>& logits, int64_t row,
                                             int64_t first, int length, int at, int lanes) {
  using T = Compute<E>;
  constexpr int kChunk = 2 * kScanAhead;
  for (int base = 0; base < length; base += kChunk * lanes) {
    const auto index = [&](int j) { return base + j * lanes + at; };
    const auto valid = [&](int j) { return index(j) < length; };
    T z[kChunk];
#pragma unroll
    for (int j = 0; j < kChunk; ++j) z[j] = valid(j) ? logits.at(row, first + index(j)) : -Limits<T>::inf;
    scan.add(z, valid, index);
  }
}

// Element j of 16 bytes. Two bfloat16 stay in one register until they are used: apart they made the kernel spill.
template <class E>
__device__ __forceinline__ Compute<E> element(const uint32_t (&words)[4], int j) {
  if constexpr (std::is_same_v<E, __nv_bfloat16>) {
    return __uint_as_float(j % 2 == 0 ? words[j / 2] << 16 : words[j / 2] & 0xffff0000u);
  } else {
    E value;
    std::memcpy(&value, reinterpret_cast<const char*>(words) + j * sizeof(E), sizeof(E));
    return to_compute(value);
  }
}

// The same for columns that lie side by side: whole vectors, then what lies before and behind them, one logit a lane.
template <class E, bool Capped>
__device__ __forceinline__ void scan_vectors(WarpScan<Compute<E>>& scan, const LogitRows<E, Capped>& logits, int64_t row,
                                             int64_t first, int length, int at, int lanes) {
  using T = Compute<E>;
  constexpr int V = kVector<E>, kChunk = sizeof(T) == 8 ? 4 : 16;  // logits held at once as T
  const E* const data = logits.view.at(row, first);
  const int misplaced = int(reinterpret_cast<uintptr_t>(data) / sizeof(E) % V);
  const int head = min(length, misplaced == 0 ? 0 : V - misplaced), vectors = (length - head) / V;
  const auto read = [&](int base, auto whole) {
    const auto present = [&](int u) { return decltype(whole)::value || base + u * lanes + at < vectors; };
    uint32_t raw[kScanAhead][4];
#pragma unroll
    for (int u = 0; u < kScanAhead; ++u)
      if (present(u)) load_columns(raw[u], reinterpret_cast<const uint32_t*>(data + head + (base + u * lanes + at) * V));
#pragma unroll
    for (int begin = 0; begin < kScanAhead * V; begin += kChunk) {
      const auto valid = [&](int j) { return present((begin + j) / V); };
      const auto index = [&](int j) { return head + (base + (begin + j) / V * lanes + at) * V + (begin + j) % V; };
      T z[kChunk];
#pragma unroll
      for (int j = 0; j < kChunk; ++j)
        z[j] = valid(j) ? logits.logit(element<E>(raw[(begin + j) / V], (begin + j) % V)) : -Limits<T>::inf;
      scan.add(z, valid, index);
    }
  };
  const int step = kScanAhead * lanes;
  int base = 0;
  for (; base + step <= vectors; base += step) read(base, std::true_type());
  if (base < vectors) read(base, std::false_type());
  const int tail = head + vectors * V, edges = head + (length - tail);
  if (at < 32 && edges > 0) {  // the row's first warp as a whole; 2 (V - 1) edges at most
    const auto index = [&](int) { return at < head ? at : tail + (at - head); };
    const auto valid = [&](int) { return at < edges; };
    const T z[1] = {at < edges ? logits.at(row, first + index(0)) : -Limits<T>::inf};
    scan.add(z, valid, index);
  }
}

// grid: (rows / rows of a block, splits). Warps: that read one row together. Split rows leave a share each, others columns.
template <class E, int Warps, bool SideBySide, bool Capped>
static __global__ void __launch_bounds__(32 * kScanWarps, Warps == 1 || sizeof(E) == 8 ? 2 : 3)
    logit_stats_kernel(LogitRows<E, Capped> logits, int split_length, LogitShare* shares, LogitColumns out) {
  NCOPS_SHARED(LogitShare, parts, [kScanWarps]);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, at = int(threadIdx.x) % (32 * Warps);
  const int64_t row = int64_t(blockIdx.x) * (kScanWarps / Warps) + warp / Warps;
  if (row >= logits.view.rows) return;  // only where a warp reads alone: else a block has one row, and there is one
  const int64_t first = int64_t(blockIdx.y) * split_length;
  const int length = int(min(int64_t(split_length), logits.view.dim - first));
  const auto target_logit = logits(row);
  WarpScan<Compute<E>> scan(target_logit);
  if constexpr (SideBySide) scan_vectors(scan, logits, row, first, length, at, 32 * Warps);
  else scan_strided(scan, logits, row, first, length, at, 32 * Warps);
  LogitShare share = scan.share(first);
  if constexpr (Warps > 1) {
    if (lane == 0) parts[warp] = share;
    if (!NCOPS_DEFECT(logit_missing_sync)) __syncthreads();
    if (warp != 0) return;
    merge_in_warp(parts, kScanWarps, lane);
    share = parts[0];
  }
  if (lane != 0) return;
  if (gridDim.y > 1) shares[row * gridDim.y + blockIdx.y] = share;
  else write_row(out, {}, row, share, logits.target, logits.ignore_index, target_logit);
}

// Blocks that share a row, a function of the shape alone. Never more than 2^16: a row of 2^36 logits fits no device.
inline int64_t logit_splits(int64_t rows, int64_t classes) {
  const int64_t wanted = rows >= kFewRows ? 1 : (kFewRows + rows - 1) / std::max<int64_t>(1, rows);
  const int64_t fill = std::min(wanted, classes / kLeastSplit);
  return std::max<int64_t>({1, fill, (classes + kMostSplit - 1) / kMostSplit});
}

inline size_t logit_shares_bytes(int64_t rows, int64_t classes) {
  const int64_t splits = logit_splits(rows, classes);
  return splits == 1 ? 0 : size_t(rows * splits) * sizeof(LogitShare);
}

template <class E>
void launch_logit_stats(const LogitStatsArgs& args) {
  const Rows& rows = args.logits;
  if (rows.rows == 0) return;
  using T = Compute<E>;
  auto* shares = static_cast<LogitShare*>(args.workspace);
  const auto stream = static_cast<cudaStream_t>(args.stream);
  // Splits are whole vectors long, so that all but a row's first start where the row's first vector would.
  const int64_t wanted = logit_splits(rows.rows, rows.dim), length = ((rows.dim + wanted - 1) / wanted + 15) / 16 * 16;
  const int64_t splits = (rows.dim + length - 1) / length;
  dispatch_softcap(args.softcap, [&](auto capped) {
    constexpr bool kCapped = decltype(capped)::value;
    const LogitRows<E, kCapped> logits{RowsView<E>(rows), args.target, args.ignore_index, T(args.scale),
                                       Softcap<T, kCapped>(args.softcap)};
    const auto launch = [&](auto warps, auto side_by_side) {
      constexpr int kWarps = decltype(warps)::value, kRows = kScanWarps / kWarps;
      NCOPS_START("logit_stats", (logit_stats_kernel<E, kWarps, decltype(side_by_side)::value, kCapped>),
                  dim3(unsigned((rows.rows + kRows - 1) / kRows), unsigned(splits)), dim3(32 * kScanWarps), 0, stream, logits,
                  int(length), shares, args.out);
    };
    const auto launch_for = [&](auto side_by_side) {
      if (rows.dim <= kOneWarp) launch(std::integral_constant<int, 1>(), side_by_side);
      else launch(std::integral_constant<int, kScanWarps>(), side_by_side);
    };
    if (rows.col_stride == 1) launch_for(std::true_type());
    else launch_for(std::false_type());
    if (splits > 1) launch_merge<T>("logit_stats", shares, rows.rows, int(splits), args, {}, logits);
  });
}

}  // namespace ncops::cuda
