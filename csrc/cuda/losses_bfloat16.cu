#include "losses_kernel.h"

namespace fusedmix::cuda {

template <>
int launch_loss<BFloat16>(const LossArgs& args, bool wide, bool backwards, int64_t blocks, void* stream) {
  constexpr int kWide = 16 / sizeof(BFloat16);
  return wide ? launch_loss_as<BFloat16, kWide>(args, backwards, blocks, stream) : launch_loss_as<BFloat16, 1>(args, backwards, blocks, stream);
}

}  // namespace fusedmix::cuda
