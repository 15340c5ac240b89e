// GMix (Park 2022): exp(-rate·d²), d the distance to the centre in pixels, or its complement.
#pragma once

#include "../sampling.h"

namespace fusedmix {

struct Gaussian : Family {
  int32_t kind;
  int32_t centre[3];
  int32_t unused[3];
  float rate;
  int32_t rest[4];

  static constexpr bool kHasFactors = true;
  static constexpr bool kHasSums = true;

  FUSEDMIX_HD static int32_t may_hold(const MethodRow&) { return kGaussians | kConstants; }
  // The Gaussian integrates to s of the volume in any number of dims. Where s is 0 the mask is the limit, λ everywhere.
  FUSEDMIX_HD static Made make(const MethodRow& row, float lam32, const Draw& drawn, const Extent& extent) {
    const double lam = lam32;
    const bool released = row.method == kGMixReleased;
    const double s = released ? fmin(lam, 1.0 - lam) : 2.0 * (1.0 - lam);
    const double volume = s * extent.pixels();
    const double squared_width = extent.ndim == 2 ? volume : (extent.ndim == 1 ? volume * volume : pow(volume, 2.0 / 3.0));
    Gaussian mask{};
    mask.kind = kConstant;
    for (int axis = 0; axis < 3; ++axis) mask.centre[axis] = static_cast<int32_t>(drawn.centre[axis]);
    mask.rate = lam32;
    if (s > 0.0) {
      mask.kind = !released || lam >= 0.5 ? kGaussianComplement : kGaussian;
      mask.rate = static_cast<float>(fmin(3.141592653589793 / squared_width, 3.4028234663852886e38));
    }
    return {bit_cast<Record>(mask), lam};
  }
  FUSEDMIX_HD int32_t families() const { return kGaussians; }
  FUSEDMIX_HD bool is_inside(const int64_t* size) const {
    return centre[0] >= 0 && centre[0] < size[0] && centre[1] >= 0 && centre[1] < size[1] && centre[2] >= 0 && centre[2] < size[2];
  }
  FUSEDMIX_HD bool is_complement() const { return kind == kGaussianComplement; }

  // The weight is the mean of the mask, which is separable: Σ exp(-rate·d²) along every axis.
  FUSEDMIX_HD int64_t rows(const Extent&) const { return 3; }
  FUSEDMIX_HD int part_of(int64_t axis) const { return static_cast<int>(axis); }
  FUSEDMIX_HD double row_sum(const Extent& extent, int64_t axis, int lane, int lanes) const {
    return sum_along(rate, centre, extent, static_cast<int32_t>(axis), lane, lanes, [](double d) { return d; });
  }
  FUSEDMIX_HD double weight(const Sums& sums, const Extent& extent) const {
    return is_complement() ? 1.0 - mean(sums, extent) : mean(sums, extent);
  }
  // The sum of a Gaussian along an axis. Its value is e(d) at a distance d from the centre.
  template <class E>
  FUSEDMIX_HD static double sum_along(double rate, const int32_t* centre, const Extent& extent, int32_t axis, int lane, int lanes,
                                      const E& e) {
    const int64_t middle = along_axis(centre, axis), size = along_axis(extent.size, axis);
    double sum = 0.0;
    FUSEDMIX_NO_UNROLL
    for (int64_t c = lane; c < size; c += lanes) {
      const double d = e(static_cast<double>(c - middle));
      sum += exp(-rate * (d * d));
    }
    return sum;
  }
  FUSEDMIX_HD static double mean(const Sums& sums, const Extent& extent) {
    double product = 1.0;
    FUSEDMIX_NO_UNROLL
    for (int axis = 0; axis < 3; ++axis) {
      product = product * along_axis(sums.part, axis) / static_cast<double>(along_axis(extent.size, axis));
    }
    return product;
  }

  // One exponential of the whole distance: the product of three would be further off. Squared distances as float: exact up to
  // 4096 pixels, and so the same along every axis, or none.
  struct Row {
    float sign, add;  // of the exponential: 1 and 0, of the complement -1 and 1
    float rate, d2;   // d² of the other axes
    int32_t centre;
    FUSEDMIX_HD float from_first(int32_t first) const { return static_cast<float>(apart(first, centre)); }
    FUSEDMIX_HD float at(float d) const { return fma(sign, near_exp(rate, d2 + d * d), add); }
    FUSEDMIX_HD float operator()(int32_t c) const { return at(from_first(c)); }
    FUSEDMIX_HD Reach reach(int32_t, int32_t) const { return kBlend; }
  };
  FUSEDMIX_HD Row along(const int32_t* at, int32_t row_axis) const {
    float d2 = 0.0f;
    for (int axis = 0; axis < 3; ++axis) {
      const float d = static_cast<float>(apart(at[axis], centre[axis]));
      d2 += axis == row_axis ? 0.0f : d * d;
    }
    const bool complement = is_complement();
    return {complement ? -1.0f : 1.0f, complement ? 1.0f : 0.0f, rate, d2, row_axis < 0 ? 0 : along_axis(centre, row_axis)};
  }
};
static_assert(sizeof(Gaussian) == sizeof(Record));

}  // namespace fusedmix
