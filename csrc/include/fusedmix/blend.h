// One pixel: w·a + (1-w)·b. The meaning is fusedmix/backends/reference.py, blend and mix_adjoint.
#pragma once

#include "element.h"

namespace fusedmix {

// The nearest integer to w·d + b, ties to even, in [0, 255], for integers b and d: as if the sum were exact.
FUSEDMIX_HD float round_to_byte(float w, float d, float b) {
  const float sum = fma(w, d, b);
  float rounded = rintf(sum);
  // Rounding the sum to float32 may have moved it onto a tie. Then the sign of what was lost says which way to go:
  // without this, about one pixel in 10^5 is off by one.
  const float residual = fma(w, d, b - sum);
  const float error = sum - rounded;
  rounded = error == 0.5f && residual > 0.0f ? rounded + 1.0f : rounded;
  rounded = error == -0.5f && residual < 0.0f ? rounded - 1.0f : rounded;
  rounded = rounded > 0.0f ? rounded : 0.0f;
  return rounded < 255.0f ? rounded : 255.0f;
}

// w·(a-b) + b rounded once: exactly a where w = 1 or a = b and exactly b where w = 0, whatever infinities and NaN stand
// in the other one, so that a box is a copy.
template <class T>
FUSEDMIX_HD T blend(float w, T a, T b) {
  const Compute<T> x = to_compute(a), y = to_compute(b);
  const T mixed = from_compute<T>(fma(static_cast<Compute<T>>(w), x - y, y));
  return w == 0.0f ? b : (w == 1.0f || x == y ? a : mixed);
}
template <>
FUSEDMIX_HD uint8_t blend<uint8_t>(float w, uint8_t a, uint8_t b) {
  const uint8_t mixed = static_cast<uint8_t>(round_to_byte(w, static_cast<float>(a) - static_cast<float>(b), b));
  return w == 0.0f ? b : (w == 1.0f || a == b ? a : mixed);
}

// The adjoint: own·g + (1-lent_weight)·h, a gradient that flows back into its own sample and one lent to its partner. A
// weight of 0 takes nothing, not even an infinity. In float64 whatever the type, so that the sum of the two products is
// rounded once: gradients are accumulated.
template <class T>
FUSEDMIX_HD T blend_adjoint(float own, T g, float lent_weight, T h) {
  const double lent = 1.0 - static_cast<double>(lent_weight);
  const double kept = own == 0.0f ? 0.0 : static_cast<double>(own) * static_cast<double>(to_compute(g));
  const double given = lent == 0.0 ? 0.0 : lent * static_cast<double>(to_compute(h));
  return from_compute<T>(static_cast<Compute<T>>(kept + given));
}

}  // namespace fusedmix
