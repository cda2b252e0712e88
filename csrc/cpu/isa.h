// Every kernel file in this folder is compiled once per instruction set: the build wraps it in a file that defines
// NCOPS_ISA as avx512, avx2 or generic. This header turns that name into a target and the vector width that follows.
// Standard headers come before the pragma, so that no inline function of theirs is compiled for a newer machine and then
// shared by the linker with an older one. For the same reason kernels use no std:: containers: see scratch.h.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef NCOPS_ISA
#error "NCOPS_ISA is not defined: this file is compiled through the wrappers that setup.py writes"
#endif

#define NCOPS_IS_avx512 1
#define NCOPS_IS_avx2 2
#define NCOPS_IS_generic 3
#define NCOPS_CONCAT_(a, b) a##b
#define NCOPS_CONCAT(a, b) NCOPS_CONCAT_(a, b)
#define NCOPS_ISA_ID NCOPS_CONCAT(NCOPS_IS_, NCOPS_ISA)

#if NCOPS_ISA_ID == 1
// avx512bf16 is used through one intrinsic only, behind bf16_products(); the compiler emits none of it by itself.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi2,prefer-vector-width=512")
#define NCOPS_VECTOR_BYTES 64
#define NCOPS_MR 14  // 14 x 2 accumulators and 2 operands fill 30 of 32 registers
#elif NCOPS_ISA_ID == 2
#pragma GCC target("avx2,fma,f16c,bmi2")
#define NCOPS_VECTOR_BYTES 32
#define NCOPS_MR 6  // 6 x 2 accumulators, 2 operands and a broadcast fill 15 of 16 registers
#else
#define NCOPS_VECTOR_BYTES 16
#define NCOPS_MR 6
#endif

#define NCOPS_INLINE inline __attribute__((always_inline))
