#include "losses_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_loss<float>(const LossArgs& args, bool wide, bool backwards, int64_t blocks, void* stream) {
  constexpr int kWide = 16 / sizeof(float);
  return wide ? launch_loss_as<float, kWide>(args, backwards, blocks, stream) : launch_loss_as<float, 1>(args, backwards, blocks, stream);
}

}  // namespace fusedmix::cuda
