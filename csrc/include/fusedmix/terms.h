// Sums of samples. The meaning is fusedmix/backends/gathers.py, blend.
#pragma once

#include "element.h"

namespace fusedmix {

constexpr int32_t kMostTerms = 8;

// What each sample of a batch becomes: the sum of `count` samples, each times a weight.
struct Terms {
  const int64_t* partner;  // (batch, count)
  const float* weight;     // (batch, count)
  int32_t count;
};

// Such a sum, term by term: the first is a product. A term of weight 0 is left out, whatever it is.
template <class C>
struct TermSum {
  C sum = C{0};
  bool begun = false;
  FUSEDMIX_HD void add(float weight, C x) {
    const C w = static_cast<C>(weight), next = begun ? fma(w, x, sum) : w * x;
    sum = weight == 0.0f ? sum : next;
    begun = begun | (weight != 0.0f);
  }
};

}  // namespace fusedmix
