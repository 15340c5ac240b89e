#include "mix_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_mix<uint8_t>(const MixArgs& args, int width, bool adjoint, int64_t blocks, void* stream) {
  if (width == 16) return launch_mix_as<uint8_t, 16>(args, adjoint, blocks, stream);
  if (width == 4) return launch_mix_as<uint8_t, 4>(args, adjoint, blocks, stream);
  return launch_mix_as<uint8_t, 1>(args, adjoint, blocks, stream);
}

}  // namespace fusedmix::cuda
