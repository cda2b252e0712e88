#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace ncops {

static Isa best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool fused = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (fused && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (fused) return Isa::avx2;
#endif
  return Isa::generic;
}

static bool has_bf16() {
#if defined(__x86_64__)
  return best() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

static const char* wanted() {
  const char* name = std::getenv("NCOPS_CPU_ISA");
  return name == nullptr ? "" : name;
}

Isa isa() {
  static const Isa found = best();
  const char* name = wanted();
  if (*name == 0) return found;
  Isa forced;
  if (std::strcmp(name, "generic") == 0) forced = Isa::generic;
  else if (std::strcmp(name, "avx2") == 0) forced = Isa::avx2;
  else if (std::strcmp(name, "avx512") == 0 || std::strcmp(name, "avx512_bf16") == 0) forced = Isa::avx512;
  else throw std::runtime_error(std::string("NCOPS_CPU_ISA: expected generic, avx2, avx512 or avx512_bf16, got ") + name);
  const bool lacking = std::strcmp(name, "avx512_bf16") == 0 && !has_bf16();
  if (forced > found || lacking) throw std::runtime_error(std::string("NCOPS_CPU_ISA=") + name + ": this machine cannot run it");
  return forced;
}

bool bf16_products() {
  static const bool found = has_bf16();
  return found && (*wanted() == 0 || std::strcmp(wanted(), "avx512_bf16") == 0);
}

const char* isa_name() {
  switch (isa()) {
    case Isa::avx512: return bf16_products() ? "avx512_bf16" : "avx512";
    case Isa::avx2: return "avx2";
    default: return "generic";
  }
}

}  // namespace ncops
