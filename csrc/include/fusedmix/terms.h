// Sums of samples. The meaning is fusedmix/backends/gathers.py, blend.
#pragma once

#include <cstdint>

namespace fusedmix {

constexpr int32_t kMostTerms = 8;

// What each sample of a batch becomes: the sum of `count` samples, each times a weight, by fma in their order; the first is a product.
// A term of weight 0 is left out, whatever it is.
struct Terms {
  const int64_t* partner;  // (batch, count)
  const float* weight;     // (batch, count)
  int32_t count;
};

}  // namespace fusedmix
