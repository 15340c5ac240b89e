// What is drawn for a sample, from a seed: the mirror of fusedmix/draws.py (device). masks.h makes a mask of it. Everything in
// float64, λ rounded once to float32.
#pragma once

#include "philox.h"
#include "record.h"

namespace fusedmix {

// The spatial sides of the images.
struct Extent {
  int32_t ndim;
  int64_t size[3];  // (z, y, x)

  FUSEDMIX_HD double pixels() const { return static_cast<double>(size[0] * size[1] * size[2]); }
};

// Whether the partners follow from the batch size alone.
FUSEDMIX_HD bool is_formula(int32_t pairing) { return pairing == kRoll || pairing == kFlip; }

// The partner by formula.
FUSEDMIX_HD int64_t formula_partner(int32_t pairing, int64_t i, int64_t batch) {
  return pairing == kRoll ? (i == 0 ? batch - 1 : i - 1) : batch - 1 - i;
}

// Which draw a sample takes its numbers from.
FUSEDMIX_HD int64_t draw_index(int32_t per, int64_t i, int64_t batch) {
  if (per == kPerSample) return i;
  return per == kPerPair && i > batch - 1 - i ? batch - 1 - i : (per == kPerPair ? i : 0);
}

// How many masks are stored for a batch.
FUSEDMIX_HD int64_t mask_rows(int64_t per, int64_t batch) {
  if (batch == 0) return 0;
  return per == kPerBatch ? 1 : (per == kPerPair ? (batch + 1) / 2 : batch);
}

// What is drawn once for a draw: which method, whether it is applied, λ before any clamp, the centre (z, y, x), whether a
// number of pixels or cells is rounded up; of boxes, 32 bits an axis for the place of one that lies wholly inside, and for sides
// that do not follow from λ, 32 bits for the width/height, and HMix's ratio; and where a family finds what else it draws: a
// seed, and the index of the draw.
struct Draw {
  int32_t choice;
  bool applied;
  float lam;
  int64_t centre[3];
  bool coin;
  uint32_t place[3], sides[3], aspect;
  float ratio;
  uint64_t noise, index;
};

// Philox at a logical index. `rows(i)` is row i of the spec. What is certain costs nothing and changes nothing else:
// every number has a counter of its own. Without `wants_lam` λ is given by the caller, and 1 here.
template <class Rows>
FUSEDMIX_HD Draw draw(uint64_t seed, int64_t index, const Rows& rows, int32_t methods, double p, bool wants_lam,
                      const Extent& extent) {
  const auto at = static_cast<uint64_t>(index);
  Draw drawn{};
  drawn.applied = true;
  drawn.lam = 1.0f;
  drawn.noise = seed;
  drawn.index = at;
  if (methods > 1 || p < 1.0) {
    const Words w = words(seed, at, kStreamChoice);
    const double u = uniform(w.a, w.b);
    double edge = 0.0;
    // The last edge is left out: weights whose sum rounds below 1 must leave no gap above the last method.
    for (int32_t i = 0; i + 1 < methods; ++i) {
      edge += rows(i).weight;
      if (edge <= u) drawn.choice = i + 1;
    }
    drawn.applied = uniform(w.c, w.d) < p;
  }
  const MethodRow row = rows(drawn.choice);
  if (row.p < 1.0) {
    const Words w = words(seed, at, kStreamApply);
    drawn.applied = drawn.applied && uniform(w.a, w.b) < row.p;
  }
  if (row.lam == row.lam) {
    drawn.lam = static_cast<float>(row.lam);
  } else if (wants_lam && row.alpha > 0.0) {
    double lam = symmetric_beta(seed, at, row.alpha);
    if (row.reformulate != 0.0) {  // Beta(α+1, α): kept with probability λ
      const Words w = words(seed, at, kStreamSwap);
      if (!(uniform(w.a, w.b) < lam)) lam = 1.0 - lam;
    }
    drawn.lam = static_cast<float>(lam);
  }
  const Words w = words(seed, at, kStreamCentre);
  const uint32_t of_axis[3] = {w.c, w.b, w.a};
  for (int axis = 0; axis < 3; ++axis) {
    if (axis < 3 - extent.ndim) continue;
    drawn.place[axis] = of_axis[axis];
    drawn.centre[axis] = below(of_axis[axis], extent.size[axis]);
  }
  drawn.coin = w.d >= 0x80000000u;
  if (row.side_high > 0.0) {
    const Words sides = words(seed, at, kStreamSides);
    drawn.sides[0] = sides.c;
    drawn.sides[1] = sides.b;
    drawn.sides[2] = sides.a;
  }
  if (row.aspect_high > 0.0) drawn.aspect = words(seed, at, kStreamAspect).a;
  if (row.ratio_alpha > 0.0) drawn.ratio = static_cast<float>(symmetric_beta(seed, at, row.ratio_alpha, kStreamRatio));
  return drawn;
}

// The row of a method as it is used. Where λ is given the sides of boxes follow from it, also where they would be drawn; such
// boxes are inside.
FUSEDMIX_HD MethodRow used_row(MethodRow row, bool given) {
  if (given && row.side_high > 0.0) {
    row.inside = 1.0;
    row.side_high = 0.0;
  }
  return row;
}

// λ as it is used: clamped to the method's lam_range if it was drawn (not a fixed λ, not the λ = 1 of alpha <= 0), or
// given by the caller; 1 where nothing is mixed.
FUSEDMIX_HD float used_lam(const MethodRow& row, const Draw& drawn, const float* given) {
  if (!drawn.applied) return 1.0f;
  if (given != nullptr) return *given;
  if (row.lam == row.lam || !(row.alpha > 0.0)) return drawn.lam;
  const double lam = fmin(fmax(static_cast<double>(drawn.lam), row.lam_min), row.lam_max);
  return static_cast<float>(lam);
}

// Uniform in (0, 1): number k of those that a family draws for itself, Drawn.NOISE. The mirror of fusedmix/masks/family.py.
FUSEDMIX_HD double own_uniform(const Draw& drawn, uint32_t k) {
  const Words w = words(drawn.noise, drawn.index, kStreamOwn, k / 2);
  return k % 2 == 0 ? uniform(w.a, w.b) : uniform(w.c, w.d);
}

// What a family makes of a draw: the mask of a sample, and its label weight, unless that is made of sums over pixels.
struct Made {
  Record record;
  double weight;
};

// Sums over the pixels of a mask.
struct Sums {
  double part[3];
};

// A family is a record with names for its words, and says
//   static int32_t may_hold(row)                which masks may come of its methods: Families
//   static Made make(row, lam, drawn, extent)   what follows from a draw
//   int32_t families() const                    which sets hold the mask, but for being 1 everywhere
//   auto along(at, axis) const                  a row along an axis, the other coordinates being `at`: the weight at a coordinate c,
//                                               row(c), and what it does to those from c to d, row.reach(c, d). What is common to
//                                               a row is computed once. Along no axis, -1, there is the coordinate 0 alone
// and, of what follows, what it does otherwise.
struct Family {
  // How the CPU may go through its rows (csrc/cpu/mix.cpp). Of the others it asks along() for every pixel.
  static constexpr bool kHasBox = false;      // box(): one number in a box, and one outside of it
  static constexpr bool kHasFactors = false;  // a product of one for each axis, or 1 minus that
  static constexpr bool kHasPixels = false;   // they are stored: pixels.h
  // Whether the label weight is made of sums over pixels: what lane `lane` of `lanes` adds, and what follows.
  static constexpr bool kHasSums = false;
  FUSEDMIX_HD Sums sums(const Extent&, int, int) const { return {}; }
  FUSEDMIX_HD double weight(const Sums&, const Extent&) const { return NAN; }
};

// sums() of a family whose weight is a sum over all pixels, f(z, y, x) in float64: part 0. Lanes share every row.
template <class F>
FUSEDMIX_HD Sums sum_of_pixels(const Extent& extent, int lane, int lanes, const F& f) {
  Sums found{};
  for (int64_t z = 0; z < extent.size[0]; ++z) {
    for (int64_t y = 0; y < extent.size[1]; ++y) {
      double of_row = 0.0;
      for (int64_t x = lane; x < extent.size[2]; x += lanes) of_row += f(z, y, x);
      found.part[0] += of_row;
    }
  }
  return found;
}

// Two coordinates' difference. Without a sign: of a centre that no sampler makes it may not fit.
FUSEDMIX_HD int32_t apart(int32_t c, int32_t centre) {
  return static_cast<int32_t>(static_cast<uint32_t>(c) - static_cast<uint32_t>(centre));
}

}  // namespace fusedmix
