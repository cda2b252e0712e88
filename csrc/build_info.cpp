// What `ncops info` tells of this library.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/kernels.h"
#include "cuda_build.h"  // of setup.py: NCOPS_WITH_CUDA where it has CUDA kernels

#ifdef NCOPS_WITH_CUDA
#include "cuda_stream.h"
#endif

namespace ncops {

#define NCOPS_STRING_(x) #x
#define NCOPS_STRING(x) NCOPS_STRING_(x)

#ifdef NCOPS_WITH_CUDA
#define NCOPS_CUDA_INFO NCOPS_STRING(NCOPS_CUDA_BUILT)
#else
#define NCOPS_CUDA_INFO "none"
#endif

static std::string build_info() {
  return "version=" NCOPS_STRING(NCOPS_VERSION) ";compiler=" __VERSION__ ";built_with_torch=" NCOPS_STRING(
      NCOPS_BUILT_WITH_TORCH) ";stable_abi=2.10;cuda=" NCOPS_CUDA_INFO;
}

static std::string cpu_isa() { return isa_name(); }

// Whether the CUDA kernels can be launched: they are in this library, and torch's CUDA library is loaded and found.
static bool reaches_cuda() {
#ifdef NCOPS_WITH_CUDA
  return current_stream() != nullptr;
#else
  return false;
#endif
}

STABLE_TORCH_LIBRARY_FRAGMENT(ncops_C, m) {
  m.def("reaches_cuda() -> bool");
  m.def("build_info() -> str");
  m.def("cpu_isa() -> str");
}
STABLE_TORCH_LIBRARY_IMPL(ncops_C, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&build_info));
  m.impl("reaches_cuda", TORCH_BOX(&reaches_cuda));
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}

}  // namespace ncops
