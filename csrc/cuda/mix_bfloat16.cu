#include "mix_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_mix<BFloat16>(const Launch& launch, int width) {
  if (width == 8) return launch_set<BFloat16, 8>(launch);
  if (width == 2) return launch_set<BFloat16, 2>(launch);
  return launch_set<BFloat16, 1>(launch);
}

}  // namespace fusedmix::cuda
