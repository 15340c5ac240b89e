#include "mix_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_mix<double>(const MixArgs& args, int width, bool adjoint, int64_t blocks, void* stream) {
  if (width == 2) return launch_mix_as<double, 2>(args, adjoint, blocks, stream);
  return launch_mix_as<double, 1>(args, adjoint, blocks, stream);
}

}  // namespace fusedmix::cuda
