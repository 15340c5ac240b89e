// Division by a number that the host knows, as a product: a GPU has no instruction for it (Granlund, Montgomery 1994).
#pragma once

#include <cstdint>

#include "platform.h"

namespace fusedmix {

struct Divisor {
  uint32_t number, factor, shift;
};

// The divisor for a number of 1 to 2^31. Host code.
inline Divisor divisor(int64_t number) {
  uint32_t shift = 0;
  while ((int64_t{1} << shift) < number) ++shift;
  const auto d = static_cast<uint64_t>(number);
  const uint64_t factor = (((uint64_t{1} << shift) - d) << 32) / d + 1;
  return {static_cast<uint32_t>(d), static_cast<uint32_t>(factor), shift};
}

// n / d, for n below 2^31.
FUSEDMIX_HD uint32_t divide(uint32_t n, const Divisor& d) {
#if defined(__CUDA_ARCH__)
  return (__umulhi(n, d.factor) + n) >> d.shift;
#else
  return (static_cast<uint32_t>(static_cast<uint64_t>(n) * d.factor >> 32) + n) >> d.shift;
#endif
}

// n / d, where that is below 2^20 and d from 1 to 2^25. On a GPU from the quotient of floats, which is off by one at most: half the
// instructions of a division.
FUSEDMIX_HD uint32_t small_quotient(uint32_t n, uint32_t d) {
#if defined(__CUDA_ARCH__)
  float each;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(each) : "f"(static_cast<float>(d)));
  const auto near = static_cast<uint32_t>(static_cast<float>(n) * each);
  const auto rest = static_cast<int32_t>(n - near * d);
  return rest < 0 ? near - 1 : (rest >= static_cast<int32_t>(d) ? near + 1 : near);
#else
  return n / d;
#endif
}

}  // namespace fusedmix
