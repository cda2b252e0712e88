// Row statistics of logits on the device: from a thread's logits to shares (logit_share.h), and from those to the columns.
// linear_stats and logit_stats end here both; csrc/cpu/logit_columns.h is the same on the CPU.
//
// Shares are few (a warp's, a block's), so they are double throughout; the loops over logits are not.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "../logit_share.h"
#include "kernels.h"
#include "launch_error.h"
#include "load.cuh"
#include "ptx.cuh"

namespace ncops::cuda {

constexpr unsigned kWarpMask = 0xffffffffu;
constexpr int kNoIndex = std::numeric_limits<int>::max();
constexpr int64_t kNoClass = std::numeric_limits<int64_t>::max();

template <class T>
struct Limits {
  static constexpr T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  // e^lowest is exactly 0, so a masked class (-inf) takes part as `lowest` and 0 * -inf never appears.
  static constexpr T lowest = sizeof(T) == 8 ? T(-746) : T(-104);
};

// e^x for x in [lowest, 0]: 1e-6 relative in float, and 0 where the result would be subnormal.
__device__ __forceinline__ float exp_nonpositive(float x) { return ex2_approx(x * 1.4426950408889634f); }
__device__ __forceinline__ double exp_nonpositive(double x) { return exp(x); }

__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }  // of a number and a NaN: the number
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

__device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }  // 2 units in the last place
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }

// z -> cap * tanh(z / cap) where Capped; infinities and NaN stay, for they mask and poison.
template <class T, bool Capped>
struct Softcap {
  T cap, inverse;

  explicit Softcap(double softcap) : cap(T(softcap)), inverse(T(1 / softcap)) {}
  __device__ __forceinline__ T operator()(T z) const {
    if constexpr (Capped) return z - z == 0 ? cap * hyperbolic_tangent(z * inverse) : z;
    else return z;
  }
};

// Calls run(std::bool_constant<whether there is a softcap>).
template <class Run>
void dispatch_softcap(double softcap, Run run) {
  if (softcap > 0) run(std::true_type());
  else run(std::false_type());
}

__device__ __forceinline__ bool names_class(int64_t label, int64_t classes, int64_t ignore_index) {
  return label >= 0 && label < classes && label != ignore_index;
}

template <class T>
__device__ __forceinline__ int flags_of(T z) {
  return (z < Limits<T>::inf ? 0 : kPoisoned) | (z == -Limits<T>::inf ? kMasked : 0);
}

// The two largest logits of a set and where they are, relative to some first class. Ties go to the lower index.
template <class T>
struct TopTwo {
  T max = -Limits<T>::inf, second = -Limits<T>::inf;
  int argmax = kNoIndex, second_index = kNoIndex;

  static __device__ __forceinline__ bool before(T u, int i, T v, int j) { return u > v || (u == v && i < j); }

  // A logit at a higher index than any so far, so that equals lose. -inf enters nowhere: it needs no index.
  __device__ __forceinline__ void append(T z, int index) {
    const bool first = z > max, next = z > second;
    second_index = first ? argmax : (next ? index : second_index);
    second = first ? max : (next ? z : second);
    argmax = first ? index : argmax;
    max = first ? z : max;
  }

  __device__ __forceinline__ void merge(T m, int i, T m2, int i2) {
    if (before(m, i, max, argmax)) {
      const bool ours = before(max, argmax, m2, i2);
      second = ours ? max : m2, second_index = ours ? argmax : i2;
      max = m, argmax = i;
    } else if (before(m, i, second, second_index)) {
      second = m, second_index = i;
    }
  }

  // Over `lanes` neighbouring lanes; all of them get the result.
  __device__ __forceinline__ void merge_lanes(int lanes) {
    for (int bit = lanes / 2; bit > 0; bit /= 2) {
      const T m = __shfl_xor_sync(kWarpMask, max, bit), m2 = __shfl_xor_sync(kWarpMask, second, bit);
      const int i = __shfl_xor_sync(kWarpMask, argmax, bit), i2 = __shfl_xor_sync(kWarpMask, second_index, bit);
      merge(m, i, m2, i2);
    }
  }
};

// Moments of a share from sums of deviations about a shift.
__device__ __forceinline__ void set_moments(LogitShare& s, int64_t count, double shift, double sum, double squares) {
  s.count = count;
  s.mean = count > 0 ? shift + sum / double(count) : 0;
  s.squares = count > 0 ? fmax(0.0, squares - sum * (sum / double(count))) : 0;
}

// Joins shares[0 .. count) of a shared array into shares[0], in a fixed order; by one whole warp, count <= 32.
__device__ __forceinline__ void merge_in_warp(LogitShare* shares, int count, int lane) {
  for (int step = 1; step < count; step *= 2) {
    if (lane % (2 * step) == 0 && lane + step < count) shares[lane].merge(shares[lane + step]);
    __syncwarp();
  }
}

constexpr int kMergeRows = 4;  // warps of a block, one row each

// Rows from their shares [row][split]. A lane joins a run of splits, then the runs join: the order is the classes' own.
template <class T, class TargetLogit>
__global__ void __launch_bounds__(32 * kMergeRows)
    merge_shares_kernel(const LogitShare* shares, int64_t rows, int splits, LogitColumns out, LogitShares out_shares,
                        const int64_t* target, int64_t ignore_index, TargetLogit target_logit) {
  NCOPS_SHARED(LogitShare, runs, [kMergeRows][32]);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int64_t row = int64_t(blockIdx.x) * kMergeRows + warp;
  if (row >= rows) return;
  const int length = (splits + 31) / 32, count = (splits + length - 1) / length, first = lane * length;
  if (lane < count) {
    LogitShare run = shares[row * splits + first];
    for (int i = first + 1; i < first + length && i < splits; ++i) run.merge(shares[row * splits + i]);
    runs[warp][lane] = run;
  }
  __syncwarp();
  merge_in_warp(runs[warp], count, lane);
  if (lane == 0) write_row<T>(out, out_shares, row, runs[warp][0], target, ignore_index, target_logit(row));
}

template <class T, class Args, class TargetLogit>
void launch_merge(const char* op, const LogitShare* shares, int64_t rows, int splits, const Args& args,
                  const LogitShares& out_shares, TargetLogit target_logit) {
  NCOPS_START(op, (merge_shares_kernel<T, TargetLogit>), dim3(unsigned((rows + kMergeRows - 1) / kMergeRows)),
              dim3(32 * kMergeRows), 0, static_cast<cudaStream_t>(args.stream), shares, rows, splits, args.out, out_shares,
              args.target, args.ignore_index, target_logit);
}

}  // namespace ncops::cuda
