// From a seed, or from numbers drawn elsewhere, to the mask and the label weight of a sample. The mirror of
// fusedmix/draws.py (device) and fusedmix/formulas.py; everything in float64, λ rounded once to float32.
#pragma once

#include "mask.h"
#include "philox.h"

namespace fusedmix {

enum Method : int32_t {
  kMixUp = 0,
  kCutMix = 1,
  kHMixReleased = 2,
  kHMixPaper = 3,
  kGMixReleased = 4,
  kGMixPaper = 5,
  kSamplePairing = 6,
  kFMixReleased = 7,
  kFMixPaper = 8,
};
enum Pairing : int32_t { kRoll = 0, kFlip = 1, kRandom = 2, kCrossClass = 3, kSameClass = 4 };
enum Per : int32_t { kPerBatch = 0, kPerPair = 1, kPerSample = 2 };

// One row of a spec: the columns of fusedmix/methods.py, in their order.
struct MethodRow {
  double method, weight, p, alpha, lam, lam_min, lam_max, ratio, decay, soft, cutoff, reformulate;
};

// Whether the mask is one number.
FUSEDMIX_HD bool is_constant(double method) { return method == kMixUp || method == kSamplePairing; }
FUSEDMIX_HD bool is_fourier_method(double method) { return method >= kFMixReleased; }

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

// Numbers of a draw that was made elsewhere: choice, applied, λ, centre z, y, x, coin, and the seed of FMix's noise.
constexpr int kDrawnWidth = 8;

// What is drawn once for a draw: which method, whether it is applied, λ before any clamp, the centre (z, y, x), whether FMix
// rounds up.
struct Draw {
  int32_t choice;
  bool applied;
  float lam;
  int64_t centre[3];
  bool coin;
};

// Philox at a logical index. `rows(i)` is row i of the spec. What is certain costs nothing and changes nothing else:
// every number has a counter of its own. Without `wants_lam` λ is given by the caller, and 1 here.
template <class Rows>
FUSEDMIX_HD Draw draw(uint64_t seed, int64_t index, const Rows& rows, int32_t methods, double p, bool wants_lam, int ndim,
                      const int64_t* size) {
  Draw drawn{0, true, 1.0f, {0, 0, 0}, false};
  const auto at = static_cast<uint64_t>(index);
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
  drawn.centre[2] = below(w.a, size[2]);
  if (ndim > 1) drawn.centre[1] = below(w.b, size[1]);
  if (ndim > 2) drawn.centre[0] = below(w.c, size[0]);
  drawn.coin = w.d >= 0x80000000u;
  return drawn;
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

// x^(1/d). Cube roots differ between libraries in the last bit, so they are rounded to float32.
FUSEDMIX_HD double root(double x, int d) {
  if (d == 1) return x;
  return d == 2 ? sqrt(x) : static_cast<double>(static_cast<float>(pow(x, 1.0 / 3.0)));
}

// The mask of a draw and its label weight. Where the mask is a Gaussian the weight is still missing: gaussian_weight()
// makes it from the sums that gaussian_sum() takes along the axes.
struct Shape {
  Mask mask;
  double weight;
};

FUSEDMIX_HD Shape shape(int32_t method, const MethodRow& row, float lam32, const Draw& drawn, int ndim, const int64_t* size) {
  const double lam = lam32, ratio = row.ratio;
  const int64_t* centre = drawn.centre;
  Shape made{{kConstant, {0, 0, 0}, {0, 0, 0}, lam32, 0.0f}, method == kSamplePairing ? 1.0 : lam};
  Mask& mask = made.mask;
  const double pixels = static_cast<double>(size[0] * size[1] * size[2]);
  if (method >= kCutMix && method <= kHMixPaper) {
    // The product of the roots first, as in the authors' code: another order moves the box.
    const double fraction = root(1.0 - lam, ndim) * root(ratio, ndim);
    mask.kind = kBox;
    double box = 1.0;
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t side = size[axis];
      const int64_t half = static_cast<int64_t>(floor(static_cast<double>(side) * fraction)) / 2;
      const int64_t first = centre[axis] - half, stop = centre[axis] + half;
      const bool absent = axis < 3 - ndim;
      mask.first[axis] = static_cast<int32_t>(absent || first < 0 ? 0 : first);
      mask.stop[axis] = static_cast<int32_t>(absent ? 1 : (stop < side ? stop : side));
      box *= static_cast<double>(mask.stop[axis] - mask.first[axis]);
    }
    box /= pixels;
    const double rest = 1.0 - box;
    const double share = method == kHMixReleased ? rest : (1.0 - ratio) + lam * ratio;
    const double outside = method == kCutMix ? 1.0 : (share > 0.0 ? fmin(lam / share, 1.0) : 0.0);
    mask.outer = static_cast<float>(outside);
    made.weight = method == kHMixReleased ? lam : static_cast<double>(mask.outer) * rest;
  } else if (method == kGMixReleased || method == kGMixPaper) {
    const bool released = method == kGMixReleased;
    const double s = released ? fmin(lam, 1.0 - lam) : 2.0 * (1.0 - lam);
    const double volume = s * pixels;
    const double squared_width = ndim == 2 ? volume : (ndim == 1 ? volume * volume : pow(volume, 2.0 / 3.0));
    for (int axis = 0; axis < 3; ++axis) mask.first[axis] = static_cast<int32_t>(centre[axis]);
    if (s > 0.0) {
      mask.kind = !released || lam >= 0.5 ? kGaussianComplement : kGaussian;
      mask.outer = static_cast<float>(fmin(3.141592653589793 / squared_width, 3.4028234663852886e38));
    }
  } else if (is_fourier_method(method)) {
    const double number = drawn.coin ? ceil(lam * pixels) : floor(lam * pixels);
    const double share = fmin(row.soft, fmin(lam, 1.0 - lam));
    mask.kind = method == kFMixReleased ? kFourierReleased : kFourier;
    mask.first[0] = static_cast<int32_t>(number);
    mask.first[1] = static_cast<int32_t>(fmin(floor(pixels * share), fmin(number, pixels - number)));
    mask.outer = static_cast<float>(row.decay);
    mask.inner = static_cast<float>(row.cutoff);
    made.weight = row.reformulate != 0.0 ? 1.0 : number / pixels;
  }
  return made;
}

// The part of lane `lane` of `lanes` of Σ exp(-rate·d²) along an axis.
FUSEDMIX_HD double gaussian_sum(const Mask& mask, int axis, int64_t side, int lane = 0, int lanes = 1) {
  const double rate = mask.outer;
  double sum = 0.0;
  for (int64_t c = lane; c < side; c += lanes) {
    const double d = static_cast<double>(c - mask.first[axis]);
    sum += exp(-rate * (d * d));
  }
  return sum;
}

// The mean of a Gaussian mask: it is separable.
FUSEDMIX_HD double gaussian_weight(const Mask& mask, const double* sums, const int64_t* size) {
  double mean = 1.0;
  for (int axis = 0; axis < 3; ++axis) mean = mean * sums[axis] / static_cast<double>(size[axis]);
  return mask.kind == kGaussianComplement ? 1.0 - mean : mean;
}

}  // namespace fusedmix
