// A mask from its numbers. The table of kinds is fusedmix/formulas.py's.
#pragma once

#include "platform.h"

namespace fusedmix {

enum Kind : int32_t {
  kConstant = 0,
  kBox = 1,
  kGaussian = 2,
  kGaussianComplement = 3,
  kFourierReleased = 4,
  kFourier = 5,
};

// The mask of one sample. Axes are (z, y, x); a signal of fewer dims has leading sides of 1.
struct Mask {
  int32_t kind;
  int32_t first[3];  // of the box, or the centre; of a Fourier mask: how many pixels are 1, the half width of its edge
  int32_t stop[3];   // past the end of the box
  float outer;       // the constant, the value outside the box, the rate of the Gaussian, or the decay
  float inner;       // the value inside the box, or the cut-off
};

FUSEDMIX_HD bool is_gaussian(int32_t kind) { return kind == kGaussian || kind == kGaussianComplement; }
// Whether the mask follows from no formula: pixels.h.
FUSEDMIX_HD bool is_fourier(int32_t kind) { return kind == kFourierReleased || kind == kFourier; }

// Whether coordinate `c` of an axis lies in the box.
FUSEDMIX_HD bool in_box(const Mask& mask, int axis, int64_t c) { return c >= mask.first[axis] && c < mask.stop[axis]; }

// Squared distance to the centre along one axis, in pixels. As float: exact up to 4096 pixels.
FUSEDMIX_HD float distance2(const Mask& mask, int axis, int64_t c) {
  const float d = static_cast<float>(c - mask.first[axis]);
  return d * d;
}

// exp(-rate·d²) or its complement. One exponential of the whole distance: the product of three would be further off.
FUSEDMIX_HD float gaussian(int32_t kind, float rate, float d2) {
  const float g = expf(-rate * d2);
  return kind == kGaussian ? g : 1.0f - g;
}

// M at a pixel, by formula.
FUSEDMIX_HD float evaluate(const Mask& mask, int64_t z, int64_t y, int64_t x) {
  if (mask.kind == kBox) return in_box(mask, 0, z) && in_box(mask, 1, y) && in_box(mask, 2, x) ? mask.inner : mask.outer;
  if (mask.kind == kConstant) return mask.outer;
  return gaussian(mask.kind, mask.outer, distance2(mask, 0, z) + distance2(mask, 1, y) + distance2(mask, 2, x));
}

}  // namespace fusedmix
