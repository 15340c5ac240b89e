#include "mix_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_mix<uint8_t>(const Launch& launch, int width) {
  if (width == 16) return launch_set<uint8_t, 16>(launch);
  if (width == 4) return launch_set<uint8_t, 4>(launch);
  return launch_set<uint8_t, 1>(launch);
}

template <>
int launch_mix<uint16_t>(const Launch& launch, int width) {
  return width == 8 ? launch.start(each_kernel<uint16_t, 8, kAnySet, false>, kEachThreads)
                    : launch.start(each_kernel<uint16_t, 1, kAnySet, false>, kEachThreads);
}

}  // namespace fusedmix::cuda
