// One misuse per kernel. The comment "line: <name>" marks the line that the error must name.
#pragma once

#include "cuda/device.cuh"
#include "cuda/ptx.cuh"

namespace selftest {

enum class Misuse : int {
  barrier_in_branch,
  different_barriers,
  exited_lane,
  caller_not_in_mask,
  source_not_in_mask,
  different_collectives,
  shuffle_width,
  copy_under_way_at_exit,
  copy_misaligned,
  copy_to_global,
  ldmatrix_misaligned,
  ldmatrix_from_global,
};

__global__ void misuse_kernel(Misuse misuse, float* memory) {
  NCOPS_SHARED(float, tile, [256]);
  const unsigned lane = threadIdx.x % 32;
  const unsigned all = 0xffffffffu;
  uint32_t r[4];
  switch (misuse) {
    case Misuse::barrier_in_branch:
      if (threadIdx.x < 40) __syncthreads();  // line: barrier_in_branch
      if (threadIdx.x >= 40) __syncwarp();
      break;
    case Misuse::different_barriers:
      if (threadIdx.x < 32) {
        __syncthreads();
      } else {
        __syncthreads();  // line: different_barriers
      }
      break;
    case Misuse::exited_lane:
      if (lane == 3) return;
      tile[lane] = __shfl_sync(all, 1.0f, 0);  // line: exited_lane
      break;
    case Misuse::caller_not_in_mask:
      tile[lane] = __shfl_sync(0x0000ffffu, 1.0f, 0);  // line: caller_not_in_mask
      break;
    case Misuse::source_not_in_mask:
      if (lane < 16) tile[lane] = __shfl_sync(0x0000ffffu, 1.0f, 20);  // line: source_not_in_mask
      break;
    case Misuse::different_collectives:
      if (lane < 16) {
        tile[lane] = __shfl_sync(all, 1.0f, 0);
      } else {
        __syncwarp();  // line: different_collectives
      }
      break;
    case Misuse::shuffle_width:
      tile[lane] = __shfl_sync(all, 1.0f, 0, 12);  // line: shuffle_width
      break;
    case Misuse::copy_under_way_at_exit:
      ncops::cp_async16(&tile[4 * lane], memory + 4 * lane, true);  // line: copy_under_way_at_exit
      ncops::cp_async_commit();
      break;
    case Misuse::copy_misaligned:
      ncops::cp_async16(&tile[4 * lane], memory + 4 * lane + 1, true);  // line: copy_misaligned
      break;
    case Misuse::copy_to_global:
      ncops::cp_async16(memory, memory + 4, true);  // line: copy_to_global
      break;
    case Misuse::ldmatrix_misaligned:
      ncops::ldmatrix_x4(r, &tile[lane + 1]);  // line: ldmatrix_misaligned
      break;
    case Misuse::ldmatrix_from_global:
      ncops::ldmatrix_x4(r, memory);  // line: ldmatrix_from_global
      break;
  }
}

inline cudaError_t misuse(Misuse which, float* memory) {
  return NCOPS_LAUNCH(misuse_kernel, dim3(2), dim3(64), 0, nullptr, which, memory);
}

// Launches that a GPU refuses.
__global__ void nothing_kernel(int) {}

inline cudaError_t launch_nothing(unsigned blocks, unsigned threads, size_t shared_bytes) {
  return NCOPS_LAUNCH(nothing_kernel, dim3(blocks), dim3(threads), shared_bytes, nullptr, 0);  // line: launch
}

}  // namespace selftest
