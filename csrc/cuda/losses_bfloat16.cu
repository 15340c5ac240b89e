#include "losses_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_loss<BFloat16>(const LossArgs& args, bool backwards, void* stream) {
  constexpr int kWide = 16 / sizeof(BFloat16);
  return args.shape.wide ? launch_loss_as<BFloat16, kWide>(args, backwards, stream) : launch_loss_as<BFloat16, 1>(args, backwards, stream);
}

}  // namespace fusedmix::cuda
