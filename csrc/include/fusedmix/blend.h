// One pixel: w·a + (1-w)·b. The meaning is fusedmix/backends/reference.py, blend and mix_adjoint.
#pragma once

#include "element.h"

namespace fusedmix {

// From 2^23 to 2^24 floats are whole numbers: a sum that lies there has been rounded to the nearest, ties to even, and the low
// bits of it are those of the number that was added. kRaised is in the middle.
constexpr float kRaised = 12582912.0f;  // 1.5·2^23

// The least and the greatest number of an integer type.
struct Bounds {
  float least, most;
};
template <class T>
FUSEDMIX_HD Bounds bounds_of() {
  constexpr bool kSigned = std::is_signed_v<T>;
  constexpr int kMost = (1 << (8 * sizeof(T) - kSigned)) - 1;
  return {kSigned ? -1.0f - kMost : 0.0f, kMost};
}

// Half l of a word, raised to 2^23: exact, and no conversion.
FUSEDMIX_HD float raised_half(uint32_t word, int l) {
#if defined(__CUDA_ARCH__)
  return bit_cast<float>(__byte_perm(word, 0x4B000000u, l == 0 ? 0x7410 : 0x7432));
#else
  return bit_cast<float>(0x4B000000u | (word >> 16 * l & 0xFFFFu));
#endif
}
// The same of byte l.
FUSEDMIX_HD float raised(uint32_t word, int l) {
#if defined(__CUDA_ARCH__)
  return bit_cast<float>(__byte_perm(word, 0x4B000000u, 0x7440 + l));
#else
  return bit_cast<float>(0x4B000000u | (word >> 8 * l & 0xFFu));
#endif
}
// The low bytes of four words.
FUSEDMIX_HD uint32_t low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
#else
  return (a & 0xFFu) | (b & 0xFFu) << 8 | (c & 0xFFu) << 16 | d << 24;
#endif
}

// All bits of each element of kBytes bytes in a word, the n-th where bit n is set. Of two bytes a word, of one.
template <int kBytes>
FUSEDMIX_HD uint32_t spread(uint32_t bits) {
#if defined(__CUDA_ARCH__)  // a byte's highest bit, eight times: __byte_perm() cannot
  uint32_t word;
  if constexpr (kBytes == 2) {
    asm("prmt.b32 %0, %1, %2, 0xDD88;" : "=r"(word) : "r"(bits << 7), "r"(bits << 14));
  } else {
    asm("prmt.b32 %0, %1, %1, 0xBA98;" : "=r"(word) : "r"((bits & 0xFu) * 0x10204080u));
  }
  return word;
#else
  uint32_t word = 0;
  for (int n = 0; n < 4 / kBytes; ++n) word |= (bits >> n & 1u) != 0 ? ((1u << 8 * kBytes) - 1u) << 8 * kBytes * n : 0u;
  return word;
#endif
}

FUSEDMIX_HD float clamped(float x, Bounds bounds) {
  const float least = x > bounds.least ? x : bounds.least;
  return least < bounds.most ? least : bounds.most;
}
// kRaised and the nearest integer to w·d + b, ties to even, within bounds, for integers d and b + kRaised of at most 17 bits: as if
// the sum were exact.
FUSEDMIX_HD float raised_integer(float w, float d, float raised_b, Bounds bounds) {
  return clamped(fma(w, d, raised_b), {kRaised + bounds.least, kRaised + bounds.most});
}
FUSEDMIX_HD float round_to_integer(float w, float d, float b, Bounds bounds) {
  return raised_integer(w, d, b + kRaised, bounds) - kRaised;
}
// The nearest integer, ties to even, within bounds.
FUSEDMIX_HD int32_t nearest_integer(float x, Bounds bounds) {
  return static_cast<int32_t>((clamped(x, bounds) + kRaised) - kRaised);
}

// One rounding to the type of an image, of a number that paste or blend has made: integers to the nearest, ties to even.
template <class T>
FUSEDMIX_HD T rounded(Compute<T> x) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(nearest_integer(x, bounds_of<T>()));
  } else {
    return from_compute<T>(x);
  }
}

// w·(a-b) + b rounded once: exactly a where w = 1 or a = b and exactly b where w = 0, whatever infinities and NaN stand
// in the other one, so that a box is a copy.
template <class T>
FUSEDMIX_HD T blend(float w, T a, T b) {
  const Compute<T> x = to_compute(a), y = to_compute(b);
  T mixed;
  if constexpr (std::is_integral_v<T>) {
    mixed = static_cast<T>(round_to_integer(w, x - y, y, bounds_of<T>()));
  } else {
    mixed = from_compute<T>(fma(static_cast<Compute<T>>(w), x - y, y));
  }
  return w == 0.0f ? b : (w == 1.0f || x == y ? a : mixed);
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
