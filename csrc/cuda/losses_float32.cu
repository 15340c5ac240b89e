#include "losses_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_loss<float>(const LossArgs& args, bool backwards, void* stream) {
  constexpr int kWide = 16 / sizeof(float);
  return args.shape.wide ? launch_loss_as<float, kWide>(args, backwards, stream) : launch_loss_as<float, 1>(args, backwards, stream);
}

}  // namespace fusedmix::cuda
