// Division by a number that the host knows, as a product: a GPU has no instruction for it (Granlund, Montgomery 1994).
#pragma once

#include <cstdint>

#include "platform.h"

namespace fusedmix {

struct Divisor {
  uint32_t number, factor, shift;
};

// Of 1 to 2^31. Host code.
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

}  // namespace fusedmix
