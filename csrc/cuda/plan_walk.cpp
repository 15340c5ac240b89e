// How a launch goes through a batch: the vector width, and how many blocks. Host code.
#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "kernels.h"

namespace fusedmix::cuda {
namespace {

// Blocks for each multiprocessor: four fit at a time, and two rounds even out the last one.
constexpr int64_t kBlocksEach = 8;
constexpr int64_t kScratchLeast = 1 << 20;  // bytes that staging may always use
constexpr int64_t kScratchShare = 16;       // or this part of the batch

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The widest access that every row of every sample allows: rows are whole vectors, and all of them aligned.
int32_t widest(const Images& images, int64_t size) {
  const Row row = innermost_row(images.layout);
  if (row.src_step != 1 || row.dst_step != 1) return 1;
  for (const int64_t bytes : {int64_t{16}, int64_t{4}}) {
    if (bytes <= size) break;
    const int64_t width = bytes / size;
    const auto fits = [&](int64_t elements) { return elements % width == 0; };
    bool aligned = fits(row.length) && fits(images.layout.src_batch) && fits(images.layout.dst_batch);
    for (int d = 0; d < row.outer_rank; ++d) {
      aligned = aligned && fits(images.layout.dims[d].src) && fits(images.layout.dims[d].dst);
    }
    const auto address = reinterpret_cast<uintptr_t>(images.src) | reinterpret_cast<uintptr_t>(images.dst);
    if (aligned && address % bytes == 0) return static_cast<int32_t>(width);
  }
  return 1;
}

}  // namespace

Walk plan_walk(const Images& images, int32_t pairing, int multiprocessors) {
  const Layout& layout = images.layout;
  const int64_t size = element_size(images.type);
  if (layout.batch > INT32_MAX) throw std::invalid_argument("more than 2^31 samples");
  if (innermost_row(layout).inner > INT32_MAX && innermost_row(layout).axis >= 0) throw std::invalid_argument("more than 2^31 channels");
  Walk walk{};
  walk.width = widest(images, size);
  walk.columns = layout.elements / walk.width;
  walk.tiles = divide_up(walk.columns, kThreads);
  const int64_t wanted = divide_up(kBlocksEach * multiprocessors, std::max<int64_t>(1, walk.tiles));
  const int64_t sample_bytes = layout.elements * size;
  if (pairing == kFlip) {
    const int64_t pairs = (layout.batch + 1) / 2;
    walk.span = std::max<int64_t>(1, std::min<int64_t>(kThreads, pairs / wanted));
    walk.units = divide_up(pairs, walk.span);
    return walk;
  }
  const bool in_place = images.src == images.dst;
  const int64_t scratch = std::max(kScratchLeast, layout.batch * sample_bytes / kScratchShare);
  // Out of place nothing is staged, but two units read every head. Where that is many of the samples the batch is small (spans
  // below 8: less than 128 KiB for each multiprocessor), and in the L2 cache the second time.
  const int64_t most = in_place ? scratch / std::max<int64_t>(1, sample_bytes) : layout.batch;
  const int64_t units = std::min({wanted, most, layout.batch / 2});
  if (units <= 1) {
    walk.span = layout.batch;
    walk.units = layout.batch > 0 ? 1 : 0;
    return walk;
  }
  walk.span = divide_up(layout.batch, units);
  walk.units = divide_up(layout.batch, walk.span);
  walk.heads = true;
  walk.staged_bytes = in_place ? walk.units * sample_bytes : 0;
  return walk;
}

Walk walk_each(Walk walk, int64_t batch) {
  walk.span = 1;
  walk.units = batch;
  walk.heads = true;
  walk.staged_bytes = 0;
  return walk;
}

}  // namespace fusedmix::cuda
