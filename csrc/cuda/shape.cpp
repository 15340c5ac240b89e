// How a launch goes through a batch. Host code.
#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "kernels.h"

namespace fusedmix::cuda {
namespace {

// The width of a column, in bytes of every sample. Tried on an H100 with 256x3x224x224 and 512x3x32x32: 256 are best for images
// of some size (128 and 512 take 3 to 10 % more), if that leaves the multiprocessors two rounds of blocks; of small ones so many
// that each has a block, down to 32.
constexpr int kColumnBytes = 256, kLeastColumnBytes = 32;
constexpr int64_t kTwoRounds = 6;  // of three blocks
constexpr int64_t kTileSamples = 32;  // that a thread of kTile may have: it remembers them in 32 bits
constexpr int64_t kSkippingBlocks = 3;  // of 1024x3x224x224, CutMix takes 1.5 times as long with one

// Whether masks change every vector, or most.
bool is_dense(int32_t families) {
  return !within(families, kCutSet) && (within(families, kBoxSet) || within(families, kGaussianSet));
}

// The most bytes of all samples that should stay in the L2 cache: of a tile that is read twice, and of a slice that is written and
// read.
constexpr int64_t kTileBytes = int64_t{6} << 20, kSliceBytes = int64_t{16} << 20;

// Whether there is a kernel that moves 16 bytes.
bool moves_16_bytes(const Images& images, int32_t families) {
  if (images.others > 0) return mixes_16_bytes_with(images.type, families);
  return images.type != ElementType::kUInt8 || is_in_a_set(families);
}

// The widest access that every row of every sample allows: rows are whole vectors, and all of them aligned. `wide`: there is a
// kernel that moves 16 bytes.
int32_t widest(const Images& images, int64_t size, bool wide) {
  const Row row = innermost_row(images.layout);
  if (row.src_step != 1 || row.dst_step != 1) return 1;
  for (const int64_t bytes : {int64_t{16}, int64_t{4}}) {
    if (bytes <= size) break;
    const int64_t width = bytes / size;
    if (bytes == 16 ? !wide : is_short(images.type)) continue;
    const auto fits = [&](int64_t elements) { return elements % width == 0; };
    bool aligned = fits(row.length) && fits(images.layout.src_batch) && fits(images.layout.dst_batch) && fits(images.other_batch);
    for (int d = 0; d < row.outer_rank; ++d) {
      aligned = aligned && fits(images.layout.dims[d].src) && fits(images.layout.dims[d].dst);
    }
    const auto address =
        reinterpret_cast<uintptr_t>(images.src) | reinterpret_cast<uintptr_t>(images.dst) | reinterpret_cast<uintptr_t>(images.other);
    if (aligned && address % bytes == 0) return static_cast<int32_t>(width);
  }
  return 1;
}

// The widest column of at most so many vectors that leaves each multiprocessor a block, or of `least`; wider where a block has
// more threads for one than there are samples.
int32_t log_column(int64_t columns, int64_t most, int64_t least, int64_t batch, int64_t threads, int64_t fit, int64_t multiprocessors) {
  int32_t log = 0;
  while ((int64_t{2} << log) <= most && ((int64_t{2} << log) <= least || (columns >> (log + 1)) >= multiprocessors)) ++log;
  while ((threads >> log) > batch && (int64_t{2} << log) <= std::min<int64_t>(fit, threads)) ++log;
  return log;
}

// The width of a tile of kEach: no wider than the samples are; where partners lie apart, so narrow that a tile of all samples stays
// in the cache.
int32_t log_tile(int64_t columns, int64_t batch_bytes) {
  int32_t log = kEachLog;
  while (log > 2 && ((int64_t{1} << (log - 1)) >= columns || (batch_bytes << log) > kTileBytes)) --log;
  return log;
}

// Whether a batch that is to be finished is made of vectors of so many pixels. `last`: channels lie together.
bool is_of_vectors(const Finishing& f, int64_t row, int64_t width, bool last) {
  const auto fits = [&](int64_t n, int64_t step) { return n <= 1 || step % width == 0; };
  const int64_t rows = f.height * f.width / row;
  return row % width == 0 && fits(f.batch, f.step[0]) && (last || fits(f.channels, f.step[1])) && fits(rows, f.step[2]) &&
         reinterpret_cast<uintptr_t>(f.src) % (width * element_size(f.type)) == 0;
}

// A shape that is yet without a way.
Shape vectors_of(const Images& images, bool wide) {
  const Layout& layout = images.layout;
  const Row row = innermost_row(layout);
  if (std::max(layout.batch, images.others) > INT32_MAX) throw std::invalid_argument("more than 2^31 samples");
  if (row.axis >= 0 && row.length > INT32_MAX) throw std::invalid_argument("a row of more than 2^31 elements");
  Shape shape{};
  shape.width = widest(images, element_size(images.type), wide);
  shape.columns = layout.elements / shape.width;
  if (shape.columns > INT32_MAX) throw std::invalid_argument("a sample of more than 2^31 vectors");
  return shape;
}

// The tiles of a launch whose threads have vectors of their own.
void set_tiles(Shape& shape, const Images& images, bool by_tile) {
  const int64_t bytes = shape.width * element_size(images.type);
  shape.way = Way::kEach;
  shape.by_tile = by_tile;
  shape.log_column = log_tile(shape.columns, by_tile ? images.layout.batch * bytes : 0);
}

}  // namespace

int64_t launchable(int64_t blocks) {
  if (blocks > INT32_MAX) throw std::invalid_argument("more blocks than one launch can have");
  return blocks;
}

void no_kernel() { throw std::logic_error("no kernel mixes 16 bytes by all families of masks"); }

Shape gather_shape(const Images& images, bool by_tile) {
  Shape shape = vectors_of(images, !is_short(images.type));
  if (images.layout.batch * images.layout.elements > 0) set_tiles(shape, images, by_tile);
  return shape;
}

Shape shape_of(const Images& images, int32_t pairing, int32_t families, const device::Limits& chip) {
  const int64_t size = element_size(images.type), batch = images.layout.batch;
  Shape shape = vectors_of(images, moves_16_bytes(images, families));
  const bool in_place = images.src == images.dst, has_other = images.others > 0;
  if (batch * images.layout.elements == 0 || (in_place && batch == 1 && !has_other)) return shape;
  if (pairing == kFlip && !images.adjoint && !has_other && !is_short(images.type)) {
    shape.way = Way::kPairs;
    return shape;
  }
  if (!in_place || has_other) {
    set_tiles(shape, images, pairing != kRoll || has_other);
    return shape;
  }
  const int64_t bytes = shape.width * size;
  const bool two_rounds = shape.columns * bytes / kColumnBytes >= kTwoRounds * chip.multiprocessors;
  const int64_t most = (two_rounds ? kColumnBytes : kColumnBytes / 2) / bytes, least = std::max<int64_t>(1, kLeastColumnBytes / bytes);
  const int64_t fit = std::min(chip.shared_bytes / (batch * bytes), kTileThreads * kTileSamples / batch);
  const bool fits = fit >= std::min(least, shape.columns) && !is_short(images.type);
  // kRoll needs blocks for every multiprocessor: of small images kTile has more threads for each.
  if (pairing == kRoll && !is_short(images.type) && (!fits || shape.columns >= chip.multiprocessors * most)) {
    shape.way = Way::kRoll;
    shape.log_column = log_column(shape.columns, most, least, batch, kRollThreads, kRollThreads, chip.multiprocessors);
    return shape;
  }
  if (fits) {
    shape.way = Way::kTile;
    // Where masks leave vectors out, and with them a block's threads idle, several blocks hide each other's waits.
    const int64_t wide = is_dense(families) ? fit : std::max(least, fit / kSkippingBlocks);
    shape.log_column = log_column(shape.columns, std::min({most, fit, wide}), least, batch, kTileThreads, fit, chip.multiprocessors);
    shape.shared_bytes = (batch * bytes) << shape.log_column;
    return shape;
  }
  shape.way = Way::kSlices;
  shape.by_tile = true;
  shape.slice = std::clamp<int64_t>(kSliceBytes / (batch * bytes), 1, shape.columns);
  shape.log_column = log_tile(shape.slice, batch * bytes);
  return shape;
}

FinishShape shape_of(const Finishing& f, bool mixes, int32_t pairing, int32_t families) {
  const int64_t pixels = f.height * f.width;
  if (f.batch > INT32_MAX) throw std::invalid_argument("more than 2^31 samples");
  if (f.channels > INT32_MAX || pixels > INT32_MAX) throw std::invalid_argument("more than 2^31 pixels or channels");
  FinishShape shape{};
  if (f.batch * f.channels * pixels == 0) return shape;
  const bool colours = f.type == ElementType::kUInt8 && f.channels == 3;
  shape.src_last = colours && f.step[1] == 1 && f.step[3] == 3;
  const bool alike = f.draws == nullptr && (!mixes || within(families, kConstantSet));
  const bool behind = f.height == 1 || f.step[2] == f.width * f.step[3];
  shape.row = alike && behind ? pixels : f.width;
  shape.width = 1;
  const bool planes = f.step[3] == 1 && (f.channels == 1 || !f.channels_last);
  const auto wide = static_cast<int64_t>(16 / element_size(f.type));
  if (colours && (shape.src_last || f.step[3] == 1) && is_of_vectors(f, shape.row, wide, shape.src_last)) {
    shape.width = static_cast<int32_t>(wide);
    shape.colours = true;
  } else if (planes) {
    for (const int64_t width : {wide, int64_t{4}}) {
      if (shape.width == 1 && is_of_vectors(f, shape.row, width, false)) shape.width = static_cast<int32_t>(width);
      if (f.type != ElementType::kUInt8) break;
    }
  }
  const bool one_channel = shape.width > 1 && !shape.colours;
  shape.columns = pixels / shape.width * (one_channel ? f.channels : 1);
  if (shape.columns > INT32_MAX) throw std::invalid_argument("a sample of more than 2^31 vectors");
  shape.by_tile = mixes && pairing != kRoll;
  const int64_t bytes = shape.width * element_size(f.type) * (one_channel ? 1 : f.channels);
  shape.log_column = log_tile(shape.columns, shape.by_tile ? f.batch * bytes : 0);
  return shape;
}

}  // namespace fusedmix::cuda
