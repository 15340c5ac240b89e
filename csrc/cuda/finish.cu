// Launches that finish a batch, and draw its flips and holes.
#include "finish_kernel.h"

namespace fusedmix::cuda {
namespace {

// A thread has a pixel: of any layout, and any number of channels.
FUSEDMIX_WIDE_KERNEL(kEachThreads, 3) finish_pixels_kernel(FUSEDMIX_ARGS(FinishingArgs, args)) {
  const Spot place = spot_of(args.tiling);
  if (!place.is_there) return;
  const auto y = static_cast<int32_t>(divide(place.column, args.groups));
  const auto x = static_cast<int32_t>(place.column - y * args.groups.number);
  uint32_t partner = place.sample;
  float w = 1.0f;
  if (args.mixes) {
    const PlanView plan = view_of(args.plan);
    partner = partner_of(plan, place.sample, args.tiling.batch);
    w = weight_at(plan, place.sample, {0, y, x});
  }
  const Side own = side_of<true>(args, place.sample), lent = side_of<true>(args, partner);
  char* const to = args.dst + place.sample * args.to.sample + y * args.to.row + x * args.to.pixel;
  const auto number = [&](const char* from) {
    switch (args.type) {
      case ElementType::kUInt8: return load_number<uint8_t>(from);
      case ElementType::kFloat16: return load_number<Half>(from);
      case ElementType::kBFloat16: return load_number<BFloat16>(from);
      default: return load_number<float>(from);
    }
  };
  FUSEDMIX_NO_UNROLL
  for (int32_t c = 0; c < args.channels; ++c) {
    const float finished = finished_at(args, own, lent, w, c, y, x, number);
    char* const at = to + c * args.to.channel;
    switch (args.made) {
      case ElementType::kFloat16: store_number<Half>(at, finished); break;
      case ElementType::kBFloat16: store_number<BFloat16>(at, finished); break;
      default: store_number<float>(at, finished);
    }
  }
}

struct FlipsArgs {
  FinishDraws draws;
};

FUSEDMIX_KERNEL(kThreads) flips_kernel(FUSEDMIX_ARGS(FlipsArgs, args)) {
  const FinishDraws& draws = args.draws;
  const int64_t i = static_cast<int64_t>(device::block()) * kThreads + device::thread();
  if (i >= draws.batch) return;
  int32_t* const record = draws.records + i * finish_words(static_cast<int32_t>(draws.draw.most));
  flip_and_holes(draws.draw, seed_of(draws.seed), static_cast<uint64_t>(i), draws.height, draws.width,
                 [&](int32_t k, int32_t word) { device::store(record + k, word); });
}

Steps in_bytes(int64_t sample, int64_t channel, int64_t row, int64_t pixel, ElementType type) {
  const int64_t size = element_size(type);
  return {sample * size, channel * size, row * size, pixel * size};
}

}  // namespace

int finish(const Finishing& f, const LaunchPlan& plan, bool mixes, const FinishShape& shape, void* stream) {
  if (shape.columns == 0) return 0;
  const int64_t c = f.channels, h = f.height, w = f.width;
  FinishingArgs args{};
  args.src = static_cast<const char*>(f.src);
  args.dst = static_cast<char*>(f.dst);
  args.from = in_bytes(f.step[0], f.step[1], f.step[2], f.step[3], f.type);
  args.to = f.channels_last ? in_bytes(c * h * w, 1, c * w, c, f.made) : in_bytes(c * h * w, h * w, w, 1, f.made);
  args.type = f.type;
  args.made = f.made;
  args.tiling = tiling_of(f.batch, shape.columns, shape.log_column, shape.by_tile);
  args.channels = static_cast<int32_t>(c);
  args.width = static_cast<int32_t>(shape.row);
  args.groups = divisor(shape.row / shape.width);
  args.rows = divisor(h * w / shape.row);
  args.affine = f.affine;
  args.draw_words = f.draws == nullptr ? 0 : static_cast<int32_t>(f.draw_words);
  args.fill = f.fill;
  args.mixes = mixes;
  args.plan = plan;
  const FinishLaunch l{args, args.tiling.blocks, f.draws != nullptr, shape.src_last, f.channels_last, stream};
  if (shape.width == 1) return device::launch(finish_pixels_kernel, l.blocks, kEachThreads, stream, args);
  if (shape.colours) return l.draws ? finish_colours<true>(l) : finish_colours<false>(l);
  switch (f.type) {
    case ElementType::kUInt8: return shape.width == 16 ? finish_planes<uint8_t, 16>(l) : finish_planes<uint8_t, 4>(l);
    case ElementType::kFloat16: return finish_planes<Half, 8>(l);
    case ElementType::kBFloat16: return finish_planes<BFloat16, 8>(l);
    default: return finish_planes<float, 4>(l);
  }
}

int draw_finish(const FinishDraws& draws, void* stream) {
  if (draws.batch == 0) return 0;
  return device::launch(flips_kernel, launchable(divide_up(draws.batch, kThreads)), kThreads, stream, FlipsArgs{draws});
}

}  // namespace fusedmix::cuda
