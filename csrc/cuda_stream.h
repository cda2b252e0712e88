// What a call of a CUDA kernel needs from torch: its tensors' device made current, and that device's current stream.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "tensors.h"

namespace ncops {

using CurrentStream = AOTITorchError (*)(int32_t device_index, void** ret_stream);

// Of libtorch_cuda, null where torch has none. Asked for by name: torch loads that library for itself alone, so the
// linker finds no symbol of it here, and linking with it would bind this library to a torch with CUDA.
inline CurrentStream current_stream() {
  static const CurrentStream found = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<CurrentStream>(symbol);
  }();
  return found;
}

class CudaCall {
 public:
  explicit CudaCall(const Tensor& x) : guard_(device_of(x)) {
    STD_TORCH_CHECK(current_stream() != nullptr,
                    "ncops: got a CUDA tensor, but this torch has no CUDA (libtorch_cuda is not loaded)");
    STABLE_TORCH_ERROR_CODE_CHECK(current_stream()(x.get_device_index(), &stream_));
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
