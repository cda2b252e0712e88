// The instruction sets of this build, best first, and the call that picks one.
#pragma once

#if __has_include("isas.h")
#include "isas.h"  // NCOPS_EACH_ISA, which setup.py writes: DO(avx512, name, Args) DO(avx2, name, Args) ...
#else  // the CUDA kernels, which call none of them
#define NCOPS_EACH_ISA(DO, name, Args) DO(generic, name, Args)
#endif

#define NCOPS_ISA_VALUE(set, name, Args) set,
#define NCOPS_ISA_DECLARE(set, name, Args) \
  namespace set { void name(const Args&); }
#define NCOPS_ISA_CALL(set, name, Args) \
  case Isa::set: return set::name(args);
// Declares a kernel in every instruction set's namespace, and a function of the same name that calls the best one.
#define NCOPS_KERNEL(name, Args)                               \
  NCOPS_EACH_ISA(NCOPS_ISA_DECLARE, name, Args)                \
  inline void name(const Args& args) {                         \
    switch (isa()) { NCOPS_EACH_ISA(NCOPS_ISA_CALL, name, Args) } \
  }

namespace ncops {

enum class Isa { NCOPS_EACH_ISA(NCOPS_ISA_VALUE, , ) };
Isa isa();               // the best this machine has, or what NCOPS_CPU_ISA forces; throws where that cannot run
const char* isa_name();
enum class Bf16Products { none, pairs, tiles };
Bf16Products bf16_products();  // how avx512 or neon multiplies bfloat16 directly; NCOPS_CPU_ISA=avx512, avx512_bf16, ... forces one

}  // namespace ncops
