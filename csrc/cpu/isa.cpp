#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace ncops {

static Isa best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return Isa::avx2;
#endif
  return Isa::generic;
}

Isa isa() {
  static const Isa found = best();
  const char* wanted = std::getenv("NCOPS_CPU_ISA");
  if (wanted == nullptr || *wanted == 0) return found;
  Isa forced;
  if (std::strcmp(wanted, "generic") == 0) forced = Isa::generic;
  else if (std::strcmp(wanted, "avx2") == 0) forced = Isa::avx2;
  else if (std::strcmp(wanted, "avx512") == 0) forced = Isa::avx512;
  else throw std::runtime_error(std::string("NCOPS_CPU_ISA: expected generic, avx2 or avx512, got ") + wanted);
  if (forced > found) throw std::runtime_error(std::string("NCOPS_CPU_ISA=") + wanted + ": this machine cannot run it");
  return forced;
}

const char* isa_name() {
  switch (isa()) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "generic";
  }
}

}  // namespace ncops
