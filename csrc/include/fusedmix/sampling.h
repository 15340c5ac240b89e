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

// What is uniform at a logical index, and what is made of that.
struct Numbers {
  uint64_t seed, index;
  FUSEDMIX_HD Words words(Stream stream) const { return fusedmix::words(seed, index, stream); }
  FUSEDMIX_HD double beta(Stream stream, double alpha) const { return symmetric_beta(seed, index, alpha, stream); }
};

// Which method a draw is of. `numbers` has what is uniform at its index, `rows(i)` is row i of the spec.
template <class Source, class Rows>
FUSEDMIX_HD int32_t choose(const Source& numbers, const Rows& rows, int32_t methods) {
  int32_t choice = 0;
  if (methods > 1) {
    const Words w = numbers.words(kStreamChoice);
    const double u = uniform(w.a, w.b);
    double edge = 0.0;
    // The last edge is left out: weights whose sum rounds below 1 must leave no gap above the last method.
    FUSEDMIX_NO_UNROLL
    for (int32_t i = 0; i + 1 < methods; ++i) {
      edge += rows(i).weight;
      if (edge <= u) choice = i + 1;
    }
  }
  return choice;
}

// What else is drawn, `row` being the chosen one. What is certain costs nothing and changes nothing else: every number has a
// counter of its own. Without `wants_lam` λ is given by the caller, and 1 here.
template <class Source>
FUSEDMIX_HD Draw draw(const Source& numbers, int32_t choice, const MethodRow& row, double p, bool wants_lam, const Extent& extent) {
  Draw drawn{};
  drawn.choice = choice;
  drawn.applied = true;
  drawn.lam = 1.0f;
  drawn.noise = numbers.seed;
  drawn.index = numbers.index;
  if (p < 1.0) {
    const Words w = numbers.words(kStreamChoice);
    drawn.applied = uniform(w.c, w.d) < p;
  }
  if (row.p < 1.0) {
    const Words w = numbers.words(kStreamApply);
    drawn.applied = drawn.applied && uniform(w.a, w.b) < row.p;
  }
  if (row.lam == row.lam) {
    drawn.lam = static_cast<float>(row.lam);
  } else if (wants_lam && row.alpha > 0.0) {
    double lam = numbers.beta(kStreamLam, row.alpha);
    if (row.reformulate != 0.0) {  // Beta(α+1, α): kept with probability λ
      const Words w = numbers.words(kStreamSwap);
      if (!(uniform(w.a, w.b) < lam)) lam = 1.0 - lam;
    }
    drawn.lam = static_cast<float>(lam);
  }
  const Words w = numbers.words(kStreamCentre);
  const uint32_t of_axis[3] = {w.c, w.b, w.a};
  for (int axis = 0; axis < 3; ++axis) {
    if (axis < 3 - extent.ndim) continue;
    drawn.place[axis] = of_axis[axis];
    drawn.centre[axis] = below(of_axis[axis], extent.size[axis]);
  }
  drawn.coin = w.d >= 0x80000000u;
  if (row.side_high > 0.0) {
    const Words sides = numbers.words(kStreamSides);
    drawn.sides[0] = sides.c;
    drawn.sides[1] = sides.b;
    drawn.sides[2] = sides.a;
  }
  if (row.aspect_high > 0.0) drawn.aspect = numbers.words(kStreamAspect).a;
  if (row.ratio_alpha > 0.0) drawn.ratio = static_cast<float>(numbers.beta(kStreamRatio, row.ratio_alpha));
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

// λ as it is used: clamped to the method's lam_range, and folded, if it was drawn (not a fixed λ, not the λ = 1 of alpha <= 0),
// or given by the caller; 1 where nothing is mixed.
FUSEDMIX_HD float used_lam(const MethodRow& row, const Draw& drawn, const float* given) {
  if (!drawn.applied) return 1.0f;
  if (given != nullptr) return *given;
  if (row.lam == row.lam || !(row.alpha > 0.0)) return drawn.lam;
  const auto lam = static_cast<float>(fmin(fmax(static_cast<double>(drawn.lam), row.lam_min), row.lam_max));
  return row.fold != 0.0 ? fmaxf(lam, 1.0f - lam) : lam;
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
  // How the CPU may go through the rows of a mask (csrc/cpu/mix.cpp). Where none of these holds it asks along() for every pixel.
  static constexpr bool kHasBox = false;      // box(): one number in a box, and one outside of it
  static constexpr bool kHasFactors = false;  // a product of one for each axis, or 1 minus that
  static constexpr bool kHasPixels = false;   // they are stored: pixels.h
  // Whether the label weight is made of sums over pixels, which come in rows, by themselves those of the pixels: how many there are,
  // to which part one belongs, what lane `lane` of `lanes` adds of it; and what follows.
  static constexpr bool kHasSums = false;
  FUSEDMIX_HD int64_t rows(const Extent& extent) const { return extent.size[0] * extent.size[1]; }
  FUSEDMIX_HD int part_of(int64_t) const { return 0; }
  FUSEDMIX_HD double row_sum(const Extent&, int64_t, int, int) const { return 0.0; }
  FUSEDMIX_HD double weight(const Sums&, const Extent&) const { return NAN; }
  // How many bits, at least, are stored of the mask.
  FUSEDMIX_HD double stored_bits() const { return 0.0; }
};

// row_sum() of a family whose weight is a sum over all pixels, f(z, y, x) in float64.
template <class F>
FUSEDMIX_HD double sum_of_row(const Extent& extent, int64_t row, int lane, int lanes, const F& f) {
  const int64_t z = row / extent.size[1], y = row - z * extent.size[1];
  double sum = 0.0;
  FUSEDMIX_NO_UNROLL
  for (int64_t x = lane; x < extent.size[2]; x += lanes) sum += f(z, y, x);
  return sum;
}

// A sum belongs to a part. Selected, not indexed: an index would put the parts into local memory.
FUSEDMIX_HD void add_to(Sums& sums, int part, double sum) {
  for (int which = 0; which < 3; ++which) sums.part[which] += part == which ? sum : 0.0;
}

// Two coordinates' difference. Without a sign: of a centre that no sampler makes it may not fit.
FUSEDMIX_HD int32_t apart(int32_t c, int32_t centre) {
  return static_cast<int32_t>(static_cast<uint32_t>(c) - static_cast<uint32_t>(centre));
}

}  // namespace fusedmix
