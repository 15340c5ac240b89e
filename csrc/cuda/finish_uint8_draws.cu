#include "finish_kernel.h"

namespace fusedmix::cuda {

template <>
int finish_colours<true>(const FinishLaunch& launch) {
  return finish_layout<true>(launch);
}

}  // namespace fusedmix::cuda
