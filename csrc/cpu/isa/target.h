// Every kernel in csrc/cpu is compiled once per instruction set: the build includes those of a family, linear_*_cpu.cpp say, in
// a file that defines NCOPS_ISA as avx512, avx2, neon or generic. This folder alone knows what that means; kernels ask for the
// capabilities declared here.
//
// A new set is one file here, named as the set, a test of the machine in dispatch.cpp and its name in setup.py's EVERY_ISA.
// The file, in this order:
//   - includes its intrinsics, then opens its `#pragma GCC target`; what follows is compiled for it;
//   - says in namespace ncops::NCOPS_ISA how wide its vectors are and what it has:
//       kVectorBytes, kRegisters   of one vector register, and how many of them
//       kFuses                     fma rounds once
//       kScales                    one instruction for p * 2^n: round_to_integer and scale_where, used by exp_nonpositive, and
//                                  above_floor and scale, used by exp_near
//       kBf16Pairs, kBf16Tiles     multiply_add_pairs, and the tiles of amx.h, where bf16_products() finds them at run time
//   - includes lanes.h, defines finish_streams, and overloads for its vectors what it does better than the plain templates of
//     vec.h and convert.h, which serve any machine: broadcast, in_register, fma, multiply_add_pairs, max_of, any_lane,
//     lane_bits, count_above, stream, to_ints, to_halves, and widen and narrow for F16.
//
// Standard headers, and ours that are not in the set's namespace, come before the pragma, so that no inline function of
// theirs is compiled for a newer machine and then shared by the linker with an older one. For the same reason kernels use no
// std:: containers: see blocks/scratch.h.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

#include "../blocks/scratch.h"
#include "../rows.h"
#include "dispatch.h"

#ifndef NCOPS_ISA
#error "NCOPS_ISA is not defined: this file is compiled through the wrappers that setup.py writes"
#endif

#define NCOPS_INLINE inline __attribute__((always_inline))
#define NCOPS_QUOTE_(name) #name
#define NCOPS_QUOTE(name) NCOPS_QUOTE_(name)
#include NCOPS_QUOTE(NCOPS_ISA.h)
