// SmoothMix (Lee 2020): the partner in a disc or a square, and around it exp(-rate·e²) of it, e the distance in pixels.
#pragma once

#include "box.h"
#include "gaussian.h"

namespace fusedmix {

struct Smooth : Family {
  int32_t kind;
  int32_t centre[3];
  int32_t unused[3];
  float rate, radius;
  int32_t rest[3];

  static constexpr bool kHasSums = true;

  FUSEDMIX_HD static int32_t may_hold(const MethodRow&) { return kSmooth | kConstants; }
  // On the infinite plane the partner has (1-λ) of the volume: fusedmix/masks/smooth.py has the equations.
  FUSEDMIX_HD static Made make(const MethodRow& row, float lam, const Draw& drawn, const Extent& extent) {
    const bool disc = row.method == kSmoothMixDisc;
    const double pi = 3.141592653589793, volume = (1.0 - static_cast<double>(lam)) * extent.pixels();
    int64_t longest = 1;
    for (const int64_t side : extent.size) longest = side > longest ? side : longest;
    double s = fmax(row.edge * static_cast<double>(longest) * 2.5066282746310002, 1e-30), r = 0.0;
    double alone = s, cubic = 0.0, square = 0.0, linear = 2.0;
    if (extent.ndim == 2) alone = s * s, square = linear = disc ? pi : 4.0;
    if (extent.ndim == 3) alone = s * s * s, cubic = disc ? 4.0 * pi / 3.0 : 8.0, square = disc ? 2.0 * pi : 12.0;
    if (extent.ndim == 3) linear = disc ? 4.0 : 6.0;
    if (alone < volume) {
      double t = root(volume, extent.ndim) / s;
      FUSEDMIX_NO_UNROLL
      for (int step = 0; step < 12; ++step) {
        const double more = ((cubic * t + square) * t + linear) * t - (volume - alone) / alone;
        t -= more / ((3.0 * cubic * t + 2.0 * square) * t + linear);
      }
      r = s * t;
    } else {
      s = root(volume, extent.ndim);
    }
    Smooth mask{};
    mask.kind = volume > 0.0 ? (disc ? kSmoothDisc : kSmoothSquare) : kConstant;
    for (int axis = 0; axis < 3; ++axis) mask.centre[axis] = static_cast<int32_t>(drawn.centre[axis]);
    mask.rate = volume > 0.0 ? static_cast<float>(fmin(pi / (s * s), 3.4028234663852886e38)) : lam;
    mask.radius = static_cast<float>(r);
    return {bit_cast<Record>(mask), static_cast<double>(lam)};
  }
  FUSEDMIX_HD int32_t families() const { return kSmooth; }

  struct Row {
    bool disc;
    float rate, radius, others;  // of the other axes: d² to a disc's centre, e² to a square
    float after;                 // e² of x, unless the row is along it: so sums have one order, whatever the row's axis
    int32_t centre;
    // e, where d along the axis is the distance from the centre.
    FUSEDMIX_HD float from_disc(float d) const {
      const float d2 = others + d * d;
      // (d² - r²)/(d + r), rounded once above: of d - r little would be left near the edge.
      return near_quotient(fmaxf(fma(-radius, radius, d2), 0.0f), fmaxf(near_root(d2) + radius, 1e-30f));
    }
    FUSEDMIX_HD float from_square(float d) const { return fmaxf(fabsf(d) - radius, 0.0f); }  // along the axis
    FUSEDMIX_HD float operator()(int32_t c) const {
      const float d = static_cast<float>(apart(c, centre)), e = disc ? from_disc(d) : from_square(d);
      return 1.0f - near_exp(rate, disc ? e * e : others + e * e + after);
    }
    FUSEDMIX_HD Reach reach(int32_t, int32_t) const { return kBlend; }
  };
  FUSEDMIX_HD Row along(const int32_t* at, int32_t axis) const {
    Row row{kind == kSmoothDisc, rate, radius, 0.0f, 0.0f, axis < 0 ? 0 : along_axis(centre, axis)};
    for (int other = 0; other < 3; ++other) {
      const float d = fabsf(static_cast<float>(apart(at[other], centre[other]))), e = row.disc ? d : fmaxf(d - radius, 0.0f);
      const float e2 = other == axis ? 0.0f : e * e;
      const bool last = other == 2 && !row.disc;
      row.others += last ? 0.0f : e2;
      row.after += last ? e2 : 0.0f;
    }
    return row;
  }

  // The weight is the mean of the mask: a square is separable.
  FUSEDMIX_HD int64_t rows(const Extent& extent) const { return kind == kSmoothSquare ? 3 : Family::rows(extent); }
  FUSEDMIX_HD int part_of(int64_t row) const { return kind == kSmoothSquare ? static_cast<int>(row) : 0; }
  FUSEDMIX_HD double row_sum(const Extent& extent, int64_t row, int lane, int lanes) const {
    const double r = radius;
    const auto outside = [r](double d) { return d > r ? d - r : 0.0; };  // fmax is a call on the CPU
    if (kind == kSmoothSquare) {
      return Gaussian::sum_along(rate, centre, extent, static_cast<int32_t>(row), lane, lanes, [=](double d) { return outside(fabs(d)); });
    }
    return sum_of_row(extent, row, lane, lanes, [&](int64_t z, int64_t y, int64_t x) {
      const double dz = static_cast<double>(z - centre[0]), dy = static_cast<double>(y - centre[1]);
      const double dx = static_cast<double>(x - centre[2]);
      const double e = outside(sqrt(dz * dz + dy * dy + dx * dx));
      return exp(-static_cast<double>(rate) * (e * e));
    });
  }
  FUSEDMIX_HD double weight(const Sums& sums, const Extent& extent) const {
    return 1.0 - (kind == kSmoothDisc ? sums.part[0] / extent.pixels() : Gaussian::mean(sums, extent));
  }
};
static_assert(sizeof(Smooth) == sizeof(Record));

}  // namespace fusedmix
