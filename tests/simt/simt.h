// Runs CUDA C++ kernels on the CPU, one fiber per CUDA thread. What csrc/cuda/device.cuh includes in place of the CUDA
// headers; what is modelled and what is not: docs/cuda-without-a-gpu.md.
#pragma once

#if defined(__CUDACC__)
#error "the host harness is for g++; nvcc has the real thing"
#endif

#include "simt/types.h"

#include "simt/async_copy.h"
#include "simt/atomics.h"
#include "simt/barrier.h"
#include "simt/defects.h"
#include "simt/half.h"
#include "simt/intrinsics.h"
#include "simt/launch.h"
#include "simt/mma.h"
#include "simt/shared.h"
#include "simt/warp.h"
