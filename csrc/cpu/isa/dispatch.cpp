#include "dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>

namespace ncops {

// Whether this machine runs each set of dispatch.h.
#if defined(__x86_64__)
static bool runs_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
static bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static bool has_bf16() { return runs_avx512() && __builtin_cpu_supports("avx512bf16"); }
#else
static bool has_bf16() { return false; }
#endif
[[maybe_unused]] static bool runs_generic() { return true; }

struct Set {
  Isa isa;
  const char* name;
  bool (*runs)();
};
#define NCOPS_ISA_ROW(set, name, Args) {Isa::set, #set, runs_##set},
static constexpr Set kSets[] = {NCOPS_EACH_ISA(NCOPS_ISA_ROW, , )};
static constexpr char kWithPairs[] = "avx512_bf16";  // avx512, and bf16_products() too

static const char* wanted() {
  const char* name = std::getenv("NCOPS_CPU_ISA");
  return name == nullptr ? "" : name;
}

static const Set& chosen() {
  static const Set& best = *std::find_if(std::begin(kSets), std::end(kSets), [](const Set& set) { return set.runs(); });
  const std::string name = wanted();
  if (name.empty()) return best;
  for (const Set& set : kSets) {
    const bool pairs = name == kWithPairs && std::strcmp(set.name, "avx512") == 0;
    if (name != set.name && !pairs) continue;
    if (set.runs() && (!pairs || has_bf16())) return set;
    throw std::runtime_error("NCOPS_CPU_ISA=" + name + ": this machine cannot run it");
  }
  throw std::runtime_error("NCOPS_CPU_ISA: expected generic, avx2, avx512 or avx512_bf16, got " + name);
}

Isa isa() { return chosen().isa; }

bool bf16_products() {
  static const bool found = has_bf16();
  return found && (*wanted() == 0 || std::strcmp(wanted(), kWithPairs) == 0);
}

const char* isa_name() { return bf16_products() ? kWithPairs : chosen().name; }

}  // namespace ncops
