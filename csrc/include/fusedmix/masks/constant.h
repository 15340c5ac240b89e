// Mixup and SamplePairing: λ everywhere.
#pragma once

#include "box.h"

namespace fusedmix {

struct Constant : Family {
  int32_t kind;
  int32_t unused[6];
  float value;
  int32_t rest[4];

  static constexpr bool kHasBox = true;

  FUSEDMIX_HD static int32_t may_hold(const MethodRow&) { return kConstants; }
  FUSEDMIX_HD static Made make(const MethodRow& row, float lam, const Draw&, const Extent&) {
    Constant mask{};
    mask.kind = kConstant;
    mask.value = lam;
    return {bit_cast<Record>(mask), row.method == kSamplePairing ? 1.0 : static_cast<double>(lam)};
  }
  FUSEDMIX_HD int32_t families() const { return kConstants; }
  FUSEDMIX_HD Uniform along(const int32_t*, int32_t) const { return {value}; }
  // An empty one.
  FUSEDMIX_HD Box box() const {
    Box made{};
    made.outer = value;
    return made;
  }
};
static_assert(sizeof(Constant) == sizeof(Record));

}  // namespace fusedmix
