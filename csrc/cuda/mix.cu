// Launches that mix, stage and show masks.
#include <stdexcept>

#include "mix_kernel.h"

namespace fusedmix::cuda {
namespace {

FUSEDMIX_KERNEL(kThreads) stage_kernel(FUSEDMIX_ARGS(StageArgs, args)) { stage_block(args, device::block()); }

struct MaskArgs {
  PlanView plan;
  int64_t n, size[3];
  float* out;
};

FUSEDMIX_KERNEL(kThreads) mask_kernel(FUSEDMIX_ARGS(MaskArgs, args)) {
  const int64_t pixels = args.size[0] * args.size[1] * args.size[2];
  const int64_t at = static_cast<int64_t>(device::block()) * kThreads + device::thread();
  if (at >= args.n * pixels) return;
  const int64_t i = at / pixels, pixel = at % pixels;
  const int64_t x = pixel % args.size[2], y = pixel / args.size[2] % args.size[1], z = pixel / args.size[2] / args.size[1];
  const Pixels& stored = args.plan.pixels;
  float value = 0.0f;
  const Record mask = load_mask(args.plan, i);
  if (may_be_stored(args.plan) && is_stored(mask)) {
    const int64_t row = draw_index(stored.per, i, stored.batch) * stored.stride;
    value = stored.levels != nullptr ? weight_of_level(device::load(stored.levels + row + pixel))
                                     : static_cast<float>(device::load(stored.bits + row + pixel / 32) >> (pixel % 32) & 1u);
  } else {
    value = evaluate(mask, static_cast<int32_t>(z), static_cast<int32_t>(y), static_cast<int32_t>(x));
  }
  device::store(args.out + at, value);
}

}  // namespace

int mix(const Images* images, const LaunchPlan& plan, const Walk& walk, const void* staged, const Targets& targets, void* stream) {
  MixArgs args{};
  args.plan = plan;
  args.targets = targets;
  if (images != nullptr) {
    args.src = static_cast<const char*>(images->src);
    args.dst = static_cast<char*>(images->dst);
    args.staged = static_cast<const char*>(staged);
    args.loops = loops_of(images->layout, walk);
    const bool in_place = images->src == images->dst;
    args.walk = {images->layout.batch, walk.tiles, walk.span, walk.heads, in_place};
    args.mix_blocks = walk.tiles * walk.units;
    args.limit = plan.view.pairing == kFlip ? (images->layout.batch + 1) / 2 : images->layout.batch;
  }
  const int64_t blocks = launchable(args.mix_blocks + target_blocks(targets));
  if (blocks == 0) return 0;
  if (images == nullptr) return launch_mix<float>(args, 1, false, blocks, stream);
  switch (images->type) {
    case ElementType::kFloat32: return launch_mix<float>(args, walk.width, images->adjoint, blocks, stream);
    case ElementType::kFloat16: return launch_mix<Half>(args, walk.width, images->adjoint, blocks, stream);
    case ElementType::kBFloat16: return launch_mix<BFloat16>(args, walk.width, images->adjoint, blocks, stream);
    case ElementType::kFloat64: return launch_mix<double>(args, walk.width, images->adjoint, blocks, stream);
    default: return launch_mix<uint8_t>(args, walk.width, images->adjoint, blocks, stream);
  }
}

int stage(const Images& images, const Walk& walk, void* staged, void* stream) {
  const StageArgs args = stage_args(images, walk, staged);
  const int64_t blocks = launchable(stage_blocks(args));
  return blocks == 0 ? 0 : device::launch(stage_kernel, blocks, kThreads, stream, args);
}

int masks(const PlanView& plan, int64_t n, const int64_t* size, float* out, void* stream) {
  const MaskArgs args{plan, n, {size[0], size[1], size[2]}, out};
  const int64_t blocks = launchable((n * size[0] * size[1] * size[2] + kThreads - 1) / kThreads);
  return blocks == 0 ? 0 : device::launch(mask_kernel, blocks, kThreads, stream, args);
}

}  // namespace fusedmix::cuda
