// How unlike pixels are across the borders of blocks: a block of threads for each border of a block of each sample. Four threads have
// a patch of each of the four pictures that meet there, before and behind the border, the sample's and its partner's; then each has a
// difference of two of them. What is summed is summed as fusedmix/backends/borders.py does it.
#include "borders.h"

#include "kernels.h"

namespace fusedmix::cuda {
namespace {

constexpr int32_t kWays = 4, kPatches = 32;  // patches along a border at a time

struct BorderCostsArgs {
  BorderCosts images;
  float share[2];
};

// One kernel for all types: what a pixel is, is asked once for each patch. Rows are not unrolled, so that seven types are little code.
template <class T>
FUSEDMIX_DEVICE float patch_sum(const BorderCosts& images, int64_t at) {
  const T* row = static_cast<const T*>(images.x) + at;
  float column[kMostNear] = {};
  FUSEDMIX_NO_UNROLL
  for (int32_t y = 0; y < images.side[0].patch; ++y, row += images.step[2]) {
    FUSEDMIX_UNROLL
    for (int32_t x = 0; x < kMostNear; ++x) {
      if (x < images.side[1].patch) column[x] += static_cast<float>(to_compute(device::load(row + x * images.step[3])));
    }
  }
  float sum = column[0];
  FUSEDMIX_UNROLL
  for (int32_t x = 1; x < kMostNear; ++x) sum = x < images.side[1].patch ? sum + column[x] : sum;
  return sum;
}
FUSEDMIX_DEVICE float patch_sum(const BorderCosts& images, int64_t at) {
  switch (images.type) {
    case ElementType::kFloat32: return patch_sum<float>(images, at);
    case ElementType::kFloat16: return patch_sum<Half>(images, at);
    case ElementType::kBFloat16: return patch_sum<BFloat16>(images, at);
    case ElementType::kFloat64: return patch_sum<double>(images, at);
    case ElementType::kInt16: return patch_sum<int16_t>(images, at);
    case ElementType::kUInt16: return patch_sum<uint16_t>(images, at);
    default: return patch_sum<uint8_t>(images, at);
  }
}

FUSEDMIX_KERNEL(kThreads) border_costs_kernel(FUSEDMIX_ARGS(BorderCostsArgs, args)) {
  static_assert(kThreads == kWays * kPatches);
  FUSEDMIX_SHARED(float, sums, kThreads);
  const BorderCosts& images = args.images;
  const auto thread = static_cast<int32_t>(device::thread());
  const int32_t way = thread / kPatches, mine = thread % kPatches;

  // Of a sample the borders below come first, then those to the right.
  const int32_t below = images.borders(0) * images.side[1].blocks, all = below + images.borders(1) * images.side[0].blocks;
  const auto number = static_cast<int32_t>(device::block());
  const int32_t rest = number % all;
  const int64_t sample = number / all;
  const int axis = rest < below ? 0 : 1;
  const BlockSide &across = images.side[axis], &along = images.side[1 - axis];
  const int32_t place = axis == 0 ? rest : rest - below, border = place / along.blocks, block = place % along.blocks;
  const int32_t length = along.patches_of_block();

  // The picture that a thread has patches of: 0 and 1 before the border, 2 and 3 behind it. A number that is no sample's, which only
  // the host could refuse, stands for the sample itself.
  const int64_t partner = device::load(images.partner + sample);
  const bool lent = (way & 1) != 0 && static_cast<uint64_t>(partner) < static_cast<uint64_t>(images.batch);
  const int32_t depth = (border + 1) * (across.pixels / across.blocks) - (way < 2 ? across.patch : 0);
  const int64_t picture = (lent ? partner : sample) * images.step[0] + depth * images.step[2 + axis];
  const int32_t before = way / 2 * kPatches + mine, behind = (2 + way % 2) * kPatches + mine;

  float total = 0.0f;
  for (int32_t first = 0; first < length; first += kPatches) {
    const bool there = first + mine < length;
    const int64_t at = picture + int64_t{(block * length + first + mine) * along.patch} * images.step[3 - axis];
    float apart = 0.0f;
    for (int64_t c = 0; c < images.channels; ++c) {
      if (there) sums[thread] = patch_sum(images, at + c * images.step[1]);
      device::sync();
      if (there) {
        const float difference = sums[before] - sums[behind];
        apart += fabsf(difference) * device::load(images.scale + c);
      }
      device::sync();
    }
    if (there) sums[thread] = apart;
    device::sync();
    for (int32_t p = 0; mine == 0 && p < kPatches && first + p < length; ++p) total += sums[thread + p];
    device::sync();
  }
  if (mine == 0) device::store(images.out(axis, sample, border, block) + way * images.out_step(axis), total * args.share[axis]);
}

}  // namespace

int border_costs(const BorderCosts& images, void* stream) {
  const int64_t all = images.borders(0) * images.side[1].blocks + images.borders(1) * images.side[0].blocks;
  if (images.batch * all == 0) return 0;
  return device::launch(border_costs_kernel, launchable(images.batch * all), kThreads, stream,
                        BorderCostsArgs{images, {images.share(0), images.share(1)}});
}

}  // namespace fusedmix::cuda
