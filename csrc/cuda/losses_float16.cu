#include "losses_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_loss<Half>(const LossArgs& args, bool backwards, void* stream) {
  constexpr int kWide = 16 / sizeof(Half);
  return args.shape.wide ? launch_loss_as<Half, kWide>(args, backwards, stream) : launch_loss_as<Half, 1>(args, backwards, stream);
}

}  // namespace fusedmix::cuda
