#include "finish_kernel.h"

namespace fusedmix::cuda {

template <>
int finish_colours<false>(const FinishLaunch& launch) {
  return finish_layout<false>(launch);
}

}  // namespace fusedmix::cuda
