// The element types of an image: to the type that blends are computed in and back, rounding once, to nearest even.
#pragma once

#include <cstring>
#include <type_traits>

#include "platform.h"

namespace fusedmix {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

enum class ElementType : int { kFloat32, kFloat16, kBFloat16, kFloat64, kUInt8, kInt16, kUInt16 };

constexpr int element_size(ElementType type) {
  return type == ElementType::kFloat64 ? 8 : (type == ElementType::kFloat32 ? 4 : (type == ElementType::kUInt8 ? 1 : 2));
}

constexpr bool is_integer(ElementType type) { return type >= ElementType::kUInt8; }
constexpr bool is_short(ElementType type) { return type >= ElementType::kInt16; }  // an integer of 16 bits

template <class To, class From>
FUSEDMIX_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeType<T>::type;

FUSEDMIX_HD float to_compute(float x) { return x; }
FUSEDMIX_HD double to_compute(double x) { return x; }
FUSEDMIX_HD float to_compute(uint8_t x) { return static_cast<float>(x); }
FUSEDMIX_HD float to_compute(int16_t x) { return static_cast<float>(x); }
FUSEDMIX_HD float to_compute(uint16_t x) { return static_cast<float>(x); }
FUSEDMIX_HD float to_compute(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
FUSEDMIX_HD float to_compute(Half x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t rest = x.bits & 0x7FFF;
  if (rest >= 0x7C00) return bit_cast<float>(sign | 0x7F800000u | (rest << 13));  // infinity, NaN
  if (rest < 0x0400) {                                                           // subnormal: a multiple of 2^-24
    return bit_cast<float>(sign | bit_cast<uint32_t>(static_cast<float>(rest) * 0x1p-24f));
  }
  return bit_cast<float>(sign | ((rest << 13) + (112u << 23)));
#endif
}

template <class T>
FUSEDMIX_HD T from_compute(Compute<T> x);

template <>
FUSEDMIX_HD float from_compute<float>(float x) {
  return x;
}
template <>
FUSEDMIX_HD double from_compute<double>(double x) {
  return x;
}
template <>
FUSEDMIX_HD BFloat16 from_compute<BFloat16>(float x) {
#if defined(__CUDA_ARCH__)
  BFloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x0040u;
  return {static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded)};
#endif
}
template <>
FUSEDMIX_HD Half from_compute<Half>(float x) {
#if defined(__CUDA_ARCH__)
  Half y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t rest = bits & 0x7FFFFFFFu;
  if (rest > 0x7F800000u) return {static_cast<uint16_t>(sign | 0x7E00u | ((rest >> 13) & 0x3FFu))};
  if (rest >= 0x477FF000u) return {static_cast<uint16_t>(sign | 0x7C00u)};  // 65520 and more round to infinity
  if (rest < 0x38800000u) {  // below 2^-14: adding 1/2 leaves the multiples of 2^-24, rounded, in the low bits
    return {static_cast<uint16_t>(sign | (bit_cast<uint32_t>(bit_cast<float>(rest) + 0.5f) - 0x3F000000u))};
  }
  return {static_cast<uint16_t>(sign | ((rest - (112u << 23) + 0xFFFu + ((rest >> 13) & 1u)) >> 13))};
#endif
}

// Two numbers of 16 bits in a word, the first in the low half: one instruction on a GPU.
template <class T>
FUSEDMIX_HD uint32_t pair_of(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t pair;
  if constexpr (std::is_same_v<T, Half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#else
  return from_compute<T>(low).bits | static_cast<uint32_t>(from_compute<T>(high).bits) << 16;
#endif
}

}  // namespace fusedmix
