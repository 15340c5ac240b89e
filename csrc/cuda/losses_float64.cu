#include "losses_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_loss<double>(const LossArgs& args, bool, bool backwards, int64_t blocks, void* stream) {
  return launch_loss_as<double, 1>(args, backwards, blocks, stream);
}

}  // namespace fusedmix::cuda
