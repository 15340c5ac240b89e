// Launches that mix with another batch.
#include "with_kernel.h"

namespace fusedmix::cuda {

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
