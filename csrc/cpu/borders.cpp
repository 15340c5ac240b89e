// The patches along borders first, of each image once; then how unlike they are.
#include "borders.h"

#include <algorithm>

#include "../include/fusedmix/memory.h"
#include "kernels.h"

namespace fusedmix::cpu {

void border_costs(const BorderCosts& images, const Parallel& parallel) {
  constexpr int64_t kWorthAThread = 1 << 12;  // patches
  const int64_t down = border_sums(images, 0), all = down + border_sums(images, 1);
  if (all == 0) return;
  const auto sums = unwritten<float>(images.batch * all, "the patches along borders");
  const auto of_sample = [&](int64_t i) { return BorderSums{{sums.get() + i * all, sums.get() + i * all + down}}; };
  const BorderKernels& loops = kernels().borders;
  const auto find = loops.sums[static_cast<int>(images.type)];
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / all);
  parallel(images.batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) find(images, i, of_sample(i));
  });
  parallel(images.batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) loops.differences(images, i, of_sample(i), of_sample(images.partner[i]));
  });
}

}  // namespace fusedmix::cpu
