// How unlike pixels are across the borders of blocks: fusedmix/backends/borders.py has the meaning. What the implementations share:
// which patches lie along which border, and the order in which things are summed.
#pragma once

#include "element.h"

namespace fusedmix {

constexpr int32_t kMostNear = 4;  // pixels along either side of a patch

// A side of the images.
struct BlockSide {
  int32_t blocks, pixels, patch;  // pixels: of the image, and of a patch

  FUSEDMIX_HD int32_t patches() const { return pixels / patch; }
  FUSEDMIX_HD int32_t patches_of_block() const { return patches() / blocks; }
};

// Blocks divide a side, which is one of 32 bits.
inline BlockSide block_side(int64_t pixels, int64_t blocks) {
  int32_t patch = kMostNear;
  while (pixels / blocks % patch != 0) --patch;
  return {static_cast<int32_t>(blocks), static_cast<int32_t>(pixels), patch};
}

// Everything of the borders of a batch. There is at least one channel, and blocks divide the images.
struct BorderCosts {
  ElementType type;
  const void* x;
  int64_t step[4];  // from sample to sample, channel to channel, row to row, pixel to pixel
  int64_t batch, channels;
  BlockSide side[2];       // y, x
  const int64_t* partner;  // (batch,)
  const float* scale;      // (channels,)
  float* to[2];            // (4, batch, h - 1, w), (4, batch, h, w - 1): what blocks differ by from those below, and to their right

  // An axis is that which borders lie across, 0 for those below.
  FUSEDMIX_HD int32_t borders(int axis) const { return side[axis].blocks - 1; }
  // Of a pixel among all along the border of a block.
  float share(int axis) const {
    const auto pixels = side[0].patch * side[1].patch * channels * side[1 - axis].patches_of_block();
    return static_cast<float>(1.0 / static_cast<double>(pixels));
  }
  // Where it is written how unlike a block and the next are, the block being the `along`th along the border. Four such numbers are so
  // far from each other: own and own, own and lent, lent and own, lent and lent.
  FUSEDMIX_HD float* out(int axis, int64_t sample, int32_t border, int32_t along) const {
    const int32_t row = axis == 0 ? border : along, column = axis == 0 ? along : border;
    const int32_t rows = axis == 0 ? borders(0) : side[0].blocks, columns = axis == 0 ? side[1].blocks : borders(1);
    return to[axis] + (sample * rows + row) * columns + column;
  }
  FUSEDMIX_HD int64_t out_step(int axis) const { return batch * borders(axis) * side[1 - axis].blocks; }
};

}  // namespace fusedmix
