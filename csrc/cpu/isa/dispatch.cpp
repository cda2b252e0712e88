#include "dispatch.h"

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>

namespace ncops {

// Whether this machine runs each set, built or not, and which set it is that multiplies bfloat16 directly.
#if defined(__x86_64__)
#define NCOPS_BF16_SET "avx512"
[[maybe_unused]] static bool runs_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
[[maybe_unused]] static bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static bool has_pairs() { return runs_avx512() && __builtin_cpu_supports("avx512bf16"); }
// Intel's take longer than as many float products do (1.4x on Sapphire Rapids), AMD's half as long.
static bool has_fast_pairs() { return has_pairs() && __builtin_cpu_is("amd"); }
#elif defined(__aarch64__)
#define NCOPS_BF16_SET "neon"
[[maybe_unused]] static bool runs_neon() { return true; }
static bool has_pairs() {
#if defined(__linux__)
  constexpr unsigned long bf16 = 1ul << 14;  // HWCAP2_BF16
  return getauxval(AT_HWCAP2) & bf16;
#elif defined(__APPLE__)
  int found = 0;
  size_t size = sizeof found;
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &found, &size, nullptr, 0) == 0 && found;
#else
  return false;
#endif
}
// Neoverse N2, V1 and V2 start as many as products of floats (by LLVM's schedules: no machine was measured); Apple's are not known.
#if defined(__APPLE__)
static bool has_fast_pairs() { return false; }
#else
static bool has_fast_pairs() { return has_pairs(); }
#endif
#else
#define NCOPS_BF16_SET "none"
static bool has_pairs() { return false; }
static bool has_fast_pairs() { return false; }
#endif
#if defined(__linux__) && defined(__x86_64__)
// A process asks the system once for the room that tiles take in a thread's state.
static bool has_tiles() {
  unsigned a, b, c, d;
  constexpr unsigned bf16 = 1u << 22, tile = 1u << 24;
  constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
  return runs_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & bf16) && (d & tile) &&
         syscall(SYS_arch_prctl, request, tile_data) == 0;
}
#else
static bool has_tiles() { return false; }
#endif
[[maybe_unused]] static bool runs_generic() { return true; }

struct Set {
  Isa isa;
  const char* name;
  bool (*runs)();
};
#define NCOPS_ISA_ROW(set, name, Args) {Isa::set, #set, runs_##set},
static constexpr Set kSets[] = {NCOPS_EACH_ISA(NCOPS_ISA_ROW, , )};
static constexpr char kWithPairs[] = NCOPS_BF16_SET "_bf16", kWithTiles[] = NCOPS_BF16_SET "_amx";  // and bf16_products() too

static bool multiplies_bf16(const Set& set) { return std::strcmp(set.name, NCOPS_BF16_SET) == 0; }

static const char* wanted() {
  const char* name = std::getenv("NCOPS_CPU_ISA");
  return name == nullptr ? "" : name;
}

static const Set& chosen() {
  static const Set& best = *std::find_if(std::begin(kSets), std::end(kSets), [](const Set& set) { return set.runs(); });
  const std::string name = wanted();
  if (name.empty()) return best;
  for (const Set& set : kSets) {
    const bool pairs = multiplies_bf16(set) && name == kWithPairs, tiles = multiplies_bf16(set) && name == kWithTiles;
    if (name != set.name && !pairs && !tiles) continue;
    if (set.runs() && (!pairs || has_pairs()) && (!tiles || has_tiles())) return set;
    throw std::runtime_error("NCOPS_CPU_ISA=" + name + ": this machine cannot run it");
  }
  throw std::runtime_error("NCOPS_CPU_ISA: expected generic, avx2, avx512, avx512_bf16, avx512_amx, neon or neon_bf16, got " + name);
}

Isa isa() { return chosen().isa; }

Bf16Products bf16_products() {
  static const Bf16Products best =
      has_tiles() ? Bf16Products::tiles : has_fast_pairs() ? Bf16Products::pairs : Bf16Products::none;
  const std::string name = wanted();
  if (name.empty()) return best;
  return name == kWithTiles ? Bf16Products::tiles : name == kWithPairs ? Bf16Products::pairs : Bf16Products::none;
}

const char* isa_name() {
  switch (multiplies_bf16(chosen()) ? bf16_products() : Bf16Products::none) {
    case Bf16Products::pairs: return kWithPairs;
    case Bf16Products::tiles: return kWithTiles;
    default: return chosen().name;
  }
}

}  // namespace ncops
