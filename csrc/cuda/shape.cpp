// How a launch goes through a batch. Host code.
#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "kernels.h"

namespace fusedmix::cuda {
namespace {

// Of a column, in bytes of every sample. Measured on an H100 (benchmarks/results, and docs/performance.md): 256 are best for
// images of some size; of small ones half or a quarter, so that there are blocks for every multiprocessor; below 32 a column is
// slower than slices.
constexpr int kColumnBytes = 256, kSmallColumnBytes = 64, kLeastColumnBytes = 32;
// Threads of kTile, and the samples that each may have there: it remembers them in 32 bits.
constexpr int64_t kTileThreads = 512, kTileSamples = 32;
constexpr int64_t kRollThreads = 256;
constexpr int64_t kSliceBytes = int64_t{16} << 20;  // stay in the L2 cache

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

// The widest column of at most so many vectors that leaves each multiprocessor a block, or of `least`.
int32_t log_column(int64_t columns, int64_t most, int64_t least, int64_t multiprocessors) {
  int32_t log = 0;
  while ((int64_t{2} << log) <= most && ((int64_t{2} << log) <= least || (columns >> (log + 1)) >= multiprocessors)) ++log;
  return log;
}

}  // namespace

Shape shape_of(const Images& images, int32_t pairing, const device::Limits& chip) {
  const Layout& layout = images.layout;
  const int64_t size = element_size(images.type), batch = layout.batch;
  const Row row = innermost_row(layout);
  if (batch > INT32_MAX) throw std::invalid_argument("more than 2^31 samples");
  if (row.axis >= 0 && row.length > INT32_MAX) throw std::invalid_argument("a row of more than 2^31 elements");
  Shape shape{};
  shape.width = widest(images, size);
  shape.columns = layout.elements / shape.width;
  if (shape.columns > INT32_MAX) throw std::invalid_argument("a sample of more than 2^31 vectors");
  const bool in_place = images.src == images.dst;
  if (batch * layout.elements == 0 || (in_place && batch == 1)) return shape;
  if (pairing == kFlip && !images.adjoint) {
    shape.way = Way::kPairs;
    return shape;
  }
  if (!in_place) {
    shape.way = Way::kEach;
    shape.by_tile = pairing != kRoll;
    return shape;
  }
  const int64_t bytes = shape.width * size;
  const int64_t most = kColumnBytes / bytes, least = std::max<int64_t>(1, kSmallColumnBytes / bytes);
  if (pairing == kRoll) {
    shape.way = Way::kRoll;
    shape.log_column = log_column(shape.columns, most, least, chip.multiprocessors);
    // Of few samples, so many threads have one each.
    while ((kRollThreads >> shape.log_column) > batch && (int64_t{1} << shape.log_column) < kRollThreads) ++shape.log_column;
    return shape;
  }
  const int64_t fit = std::min(chip.shared_bytes / (batch * bytes), kTileThreads * kTileSamples / batch);
  if (fit * bytes >= kLeastColumnBytes || fit >= shape.columns) {
    shape.way = Way::kTile;
    shape.log_column = log_column(shape.columns, std::min(most, fit), least, chip.multiprocessors);
    while ((kTileThreads >> shape.log_column) > batch && (int64_t{1} << shape.log_column) < kTileThreads) ++shape.log_column;
    shape.shared_bytes = (batch * bytes) << shape.log_column;
    return shape;
  }
  shape.way = Way::kSlices;
  shape.by_tile = true;
  shape.slice = std::clamp<int64_t>(kSliceBytes / (batch * bytes), 1, shape.columns);
  return shape;
}

}  // namespace fusedmix::cuda
