// Which set of loops this CPU runs: decided once, at run time, because one build may serve unlike machines.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace fusedmix::cpu {

extern const Kernels kernels_generic;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
#endif

static const Kernels& choose() {
#if defined(__x86_64__)
  const char* asked = std::getenv("FUSEDMIX_ISA");
  const bool able = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (able && (asked == nullptr || std::strcmp(asked, kernels_generic.name) != 0)) return kernels_avx2;
#endif
  return kernels_generic;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace fusedmix::cpu
