// One pixel: w·a + (1-w)·b. The meaning is fusedmix/backends/reference.py, blend and mix_adjoint.
#pragma once

#include "element.h"

namespace fusedmix {

// From 2^23 to 2^24 floats are whole numbers: a sum that lies there has been rounded to the nearest, ties to even, and the low
// byte of its bits is that of the number that was added. kRaised is in the middle.
constexpr float kRaised = 12582912.0f;  // 1.5·2^23

// Byte l of a word, raised to 2^23: exact, and no conversion.
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

// kRaised and the nearest integer to w·d + b, ties to even, in [0, 255], for integers d and b + kRaised: as if the sum were exact.
FUSEDMIX_HD float raised_byte(float w, float d, float raised_b) {
  const float sum = fma(w, d, raised_b), least = sum > kRaised ? sum : kRaised;
  return least < kRaised + 255.0f ? least : kRaised + 255.0f;
}
FUSEDMIX_HD float round_to_byte(float w, float d, float b) { return raised_byte(w, d, b + kRaised) - kRaised; }

// One rounding to the type of an image, of a number that paste or blend has made: bytes to the nearest, ties to even, in [0, 255].
template <class T>
FUSEDMIX_HD T rounded(Compute<T> x) {
  if constexpr (sizeof(T) == 1) {
    const float least = x > 0.0f ? x : 0.0f, within = least < 255.0f ? least : 255.0f;
    return static_cast<T>(static_cast<int32_t>((within + kRaised) - kRaised));
  } else {
    return from_compute<T>(x);
  }
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
