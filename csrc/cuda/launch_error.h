// Errors of the CUDA runtime as exceptions that name what failed.
#pragma once

#include <stdexcept>
#include <string>

#include "device.cuh"

namespace ncops::cuda {

// NCOPS_LAUNCH answers with the error of its launch and clears it: whoever drops the answer never hears of it.
inline void throw_on_error(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": CUDA error: " + cudaGetErrorString(error));
}

}  // namespace ncops::cuda

// NCOPS_LAUNCH that throws; `op` is what its error names.
#define NCOPS_START(op, ...) ::ncops::cuda::throw_on_error(NCOPS_LAUNCH(__VA_ARGS__), op)
