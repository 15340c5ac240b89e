// Launches that make a sample of several others, or of one of another batch.
#include "blend_kernel.h"
#include "paste_kernel.h"
#include "with_kernel.h"

namespace fusedmix::cuda {
namespace {

struct PasteLaunch {
  const PasteArgs& args;
  void* stream;

  template <class T, int V>
  int of_width() const {
    return device::launch(paste_kernel<T, V>, args.tiling.blocks, kEachThreads, stream, args);
  }
};

struct BlendLaunch {
  const BlendArgs& args;
  void* stream;

  template <class T, int V>
  int of_width() const {
    return device::launch(blend_kernel<T, V>, args.tiling.blocks, kEachThreads, stream, args);
  }
};

}  // namespace

int paste(const Images& images, const LaunchPatches& patches, const Shape& shape, void* stream) {
  if (shape.way == Way::kNone) return 0;
  const Layout& layout = images.layout;
  PasteArgs args{};
  args.src = static_cast<const char*>(images.src);
  args.dst = static_cast<char*>(images.dst);
  args.loops = loops_of(layout, images.type, shape.width, shape.columns);
  args.tiling = tiling_of(layout.batch, shape.columns, shape.log_column, shape.by_tile);
  for (int32_t& side : args.side) side = 1;
  for (int d = 0; d < layout.rank; ++d) {
    const Dim& dim = layout.dims[d];
    if (dim.axis < 0) continue;
    args.side[dim.axis] = static_cast<int32_t>(dim.size);
    args.step[dim.axis] = dim.src * element_size(images.type);
    args.large = args.large || dim.size > INT16_MAX;
  }
  args.patches = patches;
  return of_vectors(PasteLaunch{args, stream}, images.type, shape.width);
}

int blend_terms(const Images& images, const LaunchTerms& terms, const Shape& shape, void* stream) {
  if (shape.way == Way::kNone) return 0;
  const BlendArgs args{static_cast<const char*>(images.src),
                       static_cast<char*>(images.dst),
                       loops_of(images.layout, images.type, shape.width, shape.columns),
                       tiling_of(images.layout.batch, shape.columns, shape.log_column, shape.by_tile),
                       terms};
  return of_vectors(BlendLaunch{args, stream}, images.type, shape.width);
}

int mix_with(const Images& images, const LaunchPlan& plan, const Shape& shape, void* stream) {
  if (shape.way == Way::kNone) return 0;
  const int64_t batch = images.layout.batch;
  WithArgs args{};
  args.mix.src = static_cast<const char*>(images.src);
  args.mix.dst = static_cast<char*>(images.dst);
  args.mix.loops = loops_of(images.layout, images.type, shape.width, shape.columns);
  args.mix.batch = static_cast<uint32_t>(batch);
  args.mix.plan = plan;
  args.other = static_cast<const char*>(images.other);
  args.other_batch = images.other_batch * element_size(images.type);
  args.others = static_cast<uint32_t>(images.others);
  args.tiling = tiling_of(batch, shape.columns, shape.log_column, shape.by_tile, kEachSamples);
  return of_vectors(WithLaunch{args, stream}, images.type, shape.width);
}

}  // namespace fusedmix::cuda
