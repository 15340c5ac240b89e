// The masks that follow from no formula. FMix's: a bit for each pixel, or a level of 1/65535 where they are soft. Those of large
// grids: a bit for each cell. The definitions are fusedmix/fourier.py's and fusedmix/grids.py's.
#pragma once

#include "record.h"

namespace fusedmix {

constexpr int32_t kFullLevel = 65535;  // a weight of 1

// Pixel q of a mask, or cell q of a grid, in row-major order, is bit q % 32 of word q / 32. Beside levels the cells of a grid are
// the bits of as many levels as they need.
struct Pixels {
  const uint32_t* bits;    // or null
  const uint16_t* levels;  // or null
  int64_t stride;          // words or levels from mask to mask
  int64_t side[3];         // (z, y, x), in pixels
  int32_t per;             // Per: which mask is whose
  int64_t batch;
};

// From pixel to pixel along an axis.
FUSEDMIX_HD int64_t pixel_step(const Pixels& pixels, int axis) {
  return axis == 2 ? 1 : (axis == 1 ? pixels.side[2] : pixels.side[1] * pixels.side[2]);
}

// level / 65535, rounded once: the quotient, and what the product with it leaves (tested with every level). A division is a call
// on a GPU.
FUSEDMIX_HD float weight_of_level(uint16_t level) {
  constexpr float kEach = 1.0f / static_cast<float>(kFullLevel);
  const auto x = static_cast<float>(level);
  const float near = x * kEach;
  return fma(fma(-near, static_cast<float>(kFullLevel), x), kEach, near);
}

// The level of the pixel whose rank is r, of a mask whose `number` largest pixels are 1, with an edge of `soft` ranks on
// either side: linear in the rank, rounded to the nearest. No tie can occur, 2·soft-1 being odd.
FUSEDMIX_HD uint16_t level_at(int64_t rank, int64_t number, int64_t soft) {
  if (rank < number - soft) return static_cast<uint16_t>(kFullLevel);
  if (rank >= number + soft) return 0;
  const int64_t steps = 2 * soft - 1;
  return static_cast<uint16_t>((2 * kFullLevel * (steps - (rank - (number - soft))) + steps) / (2 * steps));
}

}  // namespace fusedmix
