#include "losses_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_loss<double>(const LossArgs& args, bool backwards, void* stream) {
  return launch_loss_as<double, 1>(args, backwards, stream);
}

}  // namespace fusedmix::cuda
