#include "mix_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_mix<Half>(const MixArgs& args, int width, bool adjoint, int64_t blocks, void* stream) {
  if (width == 8) return launch_mix_as<Half, 8>(args, adjoint, blocks, stream);
  if (width == 2) return launch_mix_as<Half, 2>(args, adjoint, blocks, stream);
  return launch_mix_as<Half, 1>(args, adjoint, blocks, stream);
}

}  // namespace fusedmix::cuda
