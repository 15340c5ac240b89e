// FMix (Harris 2020): which grey image is made, how many of its pixels are 1, and over how many ranks on either side the mask
// falls to 0. The pixels themselves follow from no formula, and are stored: pixels.h.
#pragma once

#include "../sampling.h"

namespace fusedmix {

struct Fourier : Family {
  int32_t kind;
  int32_t number, soft;
  int32_t unused[4];
  float decay, cutoff;
  int32_t rest[3];

  static constexpr bool kHasPixels = true;

  FUSEDMIX_HD static int32_t kind_of(double method) { return method == kFMixReleased ? kFourierReleased : kFourier; }

  FUSEDMIX_HD static int32_t may_hold(const MethodRow& row) { return row.soft > 0.0 ? kLevels : kStored; }
  FUSEDMIX_HD static Made make(const MethodRow& row, float lam32, const Draw& drawn, const Extent& extent) {
    const double lam = lam32, pixels = extent.pixels();
    const double number = drawn.coin ? ceil(lam * pixels) : floor(lam * pixels);
    const double share = fmin(row.soft, fmin(lam, 1.0 - lam));
    Fourier mask{};
    mask.kind = kind_of(row.method);
    mask.number = static_cast<int32_t>(number);
    mask.soft = static_cast<int32_t>(fmin(floor(pixels * share), fmin(number, pixels - number)));
    mask.decay = static_cast<float>(row.decay);
    mask.cutoff = static_cast<float>(row.cutoff);
    return {bit_cast<Record>(mask), row.reformulate != 0.0 ? 1.0 : number / pixels};
  }
  FUSEDMIX_HD int32_t families() const { return kStored | kLevels; }
  FUSEDMIX_HD double stored_bits() const { return 1.0; }
  // Without its pixels, which only the host could refuse, the mask is NaN.
  FUSEDMIX_HD Uniform along(const int32_t*, int32_t) const { return {NAN}; }
};
static_assert(sizeof(Fourier) == sizeof(Record));

}  // namespace fusedmix
