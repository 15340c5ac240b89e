#include "mix_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_mix<float>(const Launch& launch, int width) {
  if (width == 4) return launch_set<float, 4>(launch);
  return launch_set<float, 1>(launch);
}

template <>
int launch_mix<double>(const Launch& launch, int width) {
  if (width == 2) return launch_set<double, 2>(launch);
  return launch_set<double, 1>(launch);
}

}  // namespace fusedmix::cuda
