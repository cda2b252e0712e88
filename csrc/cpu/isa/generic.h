// Any machine: 16-byte vectors that the compiler turns into what the target has (SSE2, or what else there is), and no primitive of its own.
namespace ncops::NCOPS_ISA {

constexpr int kVectorBytes = 16, kRegisters = 16;
constexpr bool kFuses = false, kScales = false, kBf16Pairs = false, kBf16Tiles = false;

}  // namespace ncops::NCOPS_ISA

#include "lanes.h"

namespace ncops::NCOPS_ISA {

NCOPS_INLINE void finish_streams() {}  // stream is a plain store

}  // namespace ncops::NCOPS_ISA
