#include "mix_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_mix<Half>(const Launch& launch, int width) {
  if (width == 8) return launch_set<Half, 8>(launch);
  if (width == 2) return launch_set<Half, 2>(launch);
  return launch_set<Half, 1>(launch);
}

}  // namespace fusedmix::cuda
