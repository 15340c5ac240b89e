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
    const bool disc = row.method == kSmoothMixDisc, line = extent.ndim == 1, plane = extent.ndim == 2;
    const double pi = 3.141592653589793, volume = (1.0 - static_cast<double>(lam)) * extent.pixels();
    int64_t longest = 1;
    for (const int64_t side : extent.size) longest = side > longest ? side : longest;
    double s = fmax(row.edge * static_cast<double>(longest) * 2.5066282746310002, 1e-30), r = 0.0;
    const double alone = line ? s : (plane ? s * s : s * s * s);
    if (alone < volume) {
      const double more = (volume - alone) / alone, cubic = line || plane ? 0.0 : (disc ? 4.0 * pi / 3.0 : 8.0);
      const double square = line ? 0.0 : (plane ? (disc ? pi : 4.0) : (disc ? 2.0 * pi : 12.0));
      const double linear = line ? 2.0 : (plane ? (disc ? pi : 4.0) : (disc ? 4.0 : 6.0));
      double t = root(volume, extent.ndim) / s;
      for (int step = 0; step < 12; ++step) {
        t -= (((cubic * t + square) * t + linear) * t - more) / ((3.0 * cubic * t + 2.0 * square) * t + linear);
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

  // e² at differences to the centre.
  template <class T>
  FUSEDMIX_HD static T squared(bool disc, T r, T z, T y, T x) {
    const T d2 = z * z + y * y + x * x;
    if (!disc) {
      const T ez = fmax(fabs(z) - r, T{0}), ey = fmax(fabs(y) - r, T{0}), ex = fmax(fabs(x) - r, T{0});
      return ez * ez + ey * ey + ex * ex;
    }
    // (d² - r²)/(d + r), rounded once above: of d - r little would be left near the edge.
    const T e = fmax(fma(-r, r, d2), T{0}) / fmax(static_cast<T>(sqrt(d2)) + r, T{1e-30f});
    return e * e;
  }
  // The weight is the mean of the mask: a square is separable, of a disc all pixels are summed.
  FUSEDMIX_HD Sums sums(const Extent& extent, int lane, int lanes) const {
    if (kind == kSmoothSquare) return Gaussian::sums_along(rate, radius, centre, extent, lane, lanes);
    Sums found{};
    for (int64_t row = 0; row < extent.size[0] * extent.size[1]; ++row) {
      const auto z = static_cast<double>(row / extent.size[1] - centre[0]);
      const auto y = static_cast<double>(row % extent.size[1] - centre[1]);
      double of_row = 0.0;
      for (int64_t c = lane; c < extent.size[2]; c += lanes) {
        of_row += exp(-static_cast<double>(rate) * squared<double>(true, radius, z, y, static_cast<double>(c - centre[2])));
      }
      found.part[0] += of_row;
    }
    return found;
  }
  FUSEDMIX_HD double weight(const Sums& sums, const Extent& extent) const {
    return 1.0 - (kind == kSmoothDisc ? sums.part[0] / extent.pixels() : Gaussian::mean(sums, extent));
  }

  struct Row {
    bool disc;
    float rate, radius, z, y, x;  // of the axes, but for that of the row
    int32_t axis, centre;
    FUSEDMIX_HD float squared(int32_t c) const {
      const float d = Gaussian::apart(c, centre);
      return Smooth::squared(disc, radius, axis == 0 ? d : z, axis == 1 ? d : y, axis == 2 ? d : x);
    }
    FUSEDMIX_HD float operator()(int32_t c) const { return 1.0f - expf(-rate * squared(c)); }
    // A row passes through a disc or a square once.
    FUSEDMIX_HD Reach reach(int32_t from, int32_t to) const { return squared(from) + squared(to) == 0.0f ? kTake : kBlend; }
  };
  FUSEDMIX_HD Row along(const int32_t* at, int32_t axis) const {
    const auto apart = [&](int other) { return Gaussian::apart(at[other], centre[other]); };
    return {kind == kSmoothDisc, rate, radius, apart(0), apart(1), apart(2), axis, along_axis(centre, axis)};
  }
};
static_assert(sizeof(Smooth) == sizeof(Record));

}  // namespace fusedmix
