// What a call of a CUDA kernel needs from torch: its tensors' device made current, and that device's current stream.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "tensors.h"

// Lives in libtorch_cuda: weak, so that a library with CUDA kernels also loads where torch has no CUDA.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace ncops {

class CudaCall {
 public:
  explicit CudaCall(const Tensor& x) : guard_(device_of(x)) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                    "ncops: got a CUDA tensor, but this torch has no CUDA (libtorch_cuda is not loaded)");
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream_));
  }
  void* stream() const { return stream_; }

 private:
  static torch::stable::accelerator::DeviceIndex device_of(const Tensor& x) {
    STD_TORCH_CHECK(x.is_cuda(), "x: expected a CUDA tensor");
    return x.get_device_index();
  }

  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

// Device memory that lives as long as the tensor; from torch's caching allocator, so that a CUDA graph may hold it.
inline Tensor workspace(const Tensor& like, size_t bytes) { return fresh(like, {int64_t(bytes)}, ScalarType::Byte); }

}  // namespace ncops
