#include "mix_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_mix<float>(const MixArgs& args, int width, bool adjoint, int64_t blocks, void* stream) {
  if (width == 4) return launch_mix_as<float, 4>(args, adjoint, blocks, stream);
  return launch_mix_as<float, 1>(args, adjoint, blocks, stream);
}

}  // namespace fusedmix::cuda
