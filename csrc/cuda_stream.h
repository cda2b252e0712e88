// What a call of a CUDA kernel needs from torch: its tensors' device made current, and that device's current stream.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/kernels.h"
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

// Gives args the stream of x, and device memory that lives as long as the call: from torch's caching allocator, so that a CUDA
// graph may hold it.
class CudaCall {
 public:
  CudaCall(cuda::OnDevice& args, const Tensor& x, size_t workspace = 0) : guard_(device_of(x)) {
    STD_TORCH_CHECK(current_stream() != nullptr,
                    "ncops: got a CUDA tensor, but this torch has no CUDA (libtorch_cuda is not loaded)");
    STABLE_TORCH_ERROR_CODE_CHECK(current_stream()(x.get_device_index(), &args.stream));
    if (workspace == 0) return;
    memory_ = fresh(x, {int64_t(workspace)}, ScalarType::Byte);
    args.workspace = memory_->mutable_data_ptr();
  }

 private:
  static torch::stable::accelerator::DeviceIndex device_of(const Tensor& x) {
    STD_TORCH_CHECK(x.is_cuda(), "x: expected a CUDA tensor");
    return x.get_device_index();
  }

  torch::stable::accelerator::DeviceGuard guard_;
  OptionalTensor memory_;
};

}  // namespace ncops
