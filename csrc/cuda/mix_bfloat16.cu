#include "mix_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_mix<BFloat16>(const MixArgs& args, int width, bool adjoint, int64_t blocks, void* stream) {
  if (width == 8) return launch_mix_as<BFloat16, 8>(args, adjoint, blocks, stream);
  if (width == 2) return launch_mix_as<BFloat16, 2>(args, adjoint, blocks, stream);
  return launch_mix_as<BFloat16, 1>(args, adjoint, blocks, stream);
}

}  // namespace fusedmix::cuda
