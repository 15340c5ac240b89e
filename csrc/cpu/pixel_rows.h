// The loops of pixel_losses.h for one instruction set: included by kernels.cpp alone.
//
// A few classes of a tile are copied to where they lie together: images whose sides are powers of two would have all classes of a
// pixel in a few lines of the cache otherwise.
#pragma once

#include "loss_rows.h"
#include "pixel_losses.h"

namespace fusedmix::cpu {
namespace {

constexpr int64_t kPixelClasses = 16;  // at a time

template <class T>
inline void read_classes(Compute<T>* to, const T* from, const PixelPlaces& places, int64_t count) {
  for (int64_t k = 0; k < count && places.step == 1; ++k) widen(to + k * kPixelTile, from + k * places.plane, places.n);
  for (int64_t q = 0; q < places.n && places.step != 1; ++q) {
    for (int64_t k = 0; k < count; ++k) to[k * kPixelTile + q] = to_compute(from[q * places.step + k * places.plane]);
  }
}

template <class T>
inline void write_classes(T* to, const Compute<T>* from, const PixelPlaces& places, int64_t count) {
  for (int64_t k = 0; k < count && places.step == 1; ++k) narrow<T>(to + k * places.plane, from + k * kPixelTile, places.n);
  for (int64_t q = 0; q < places.n && places.step != 1; ++q) {
    for (int64_t k = 0; k < count; ++k) to[q * places.step + k * places.plane] = from_compute<T>(from[k * kPixelTile + q]);
  }
}

// Functions for each compute type, not for each element type, as in loss_rows.h.

// What one pass over the logits of a tile finds out.
template <class C>
struct TileSums {
  C top[kPixelTile] = {};           // the largest logit; 0 where all are -inf
  C exponentials[kPixelTile] = {};  // Σ exp(z - top)
  C linear[kPixelTile] = {};        // Σ c·(z - top), if it is asked for
  double total = 0;                 // Σ c

  // Adds `count` classes of n pixels each. `weights`: of these, or null.
  FUSEDMIX_ONCE void add(const C* __restrict logits, int64_t count, int64_t n, bool smooth, const C* weights) {
    C highest[kPixelTile], before[kPixelTile];
    for (int64_t q = 0; q < n; ++q) highest[q] = logits[q];
    for (int64_t k = 1; k < count; ++k) {
      const C* z = logits + k * kPixelTile;
      for (int64_t q = 0; q < n; ++q) highest[q] = z[q] > highest[q] ? z[q] : highest[q];
    }
    for (int64_t q = 0; q < n; ++q) {
      // Where nothing but -inf has been added any number may be the base.
      const bool none = exponentials[q] == C(0);
      const C base = highest[q] == -C(INFINITY) ? C(0) : highest[q];
      before[q] = top[q];
      top[q] = none | (base > top[q]) ? base : top[q];
      exponentials[q] = none ? C(0) : exponentials[q] * exp_nonpositive(before[q] - top[q]);
    }
    for (int64_t k = 0; k < count; ++k) {
      const C* z = logits + k * kPixelTile;
      for (int64_t q = 0; q < n; ++q) exponentials[q] += exp_nonpositive(z[q] - top[q]);
    }
    if (!smooth) return;
    for (int64_t q = 0; q < n; ++q) linear[q] += term(static_cast<C>(total), before[q] - top[q]);
    for (int64_t k = 0; k < count; ++k) {
      const C *z = logits + k * kPixelTile, c = weights == nullptr ? C(1) : weights[k];
      total += static_cast<double>(c);
      for (int64_t q = 0; q < n && c != C(0); ++q) linear[q] += c * (z[q] - top[q]);
    }
  }

  // `own` and `lent` are the logits of the labels.
  FUSEDMIX_ONCE double losses(C* losses, C* logsumexp, const C* own, const C* lent, const PixelTargets& targets, int64_t n) const {
    const C *own_part = static_cast<const C*>(targets.own_part), *lent_part = static_cast<const C*>(targets.lent_part);
    const C *flat = static_cast<const C*>(targets.flat), mass = static_cast<C>(targets.mass);
    for (int64_t q = 0; q < n; ++q) {
      const C logarithm = log_from_one(exponentials[q]);
      logsumexp[q] = top[q] + logarithm;
      losses[q] = term(own_part[q], logarithm - (own[q] - top[q])) + term(lent_part[q], logarithm - (lent[q] - top[q]));
    }
    for (int64_t q = 0; q < n && flat != nullptr; ++q) losses[q] += term(flat[q], mass * (logsumexp[q] - top[q]) - linear[q]);
    return sum(losses, n);
  }
};

template <class T>
void read_labelled(Compute<T>* to, const T* from, const PixelPlaces& places, const int32_t* labels) {
  for (int64_t q = 0; q < places.n; ++q) {
    to[q] = labels[q] < 0 ? Compute<T>(0) : to_compute(from[q * places.step + labels[q] * places.plane]);
  }
}

template <class T>
double pixel_losses(void* losses, void* logsumexp, const void* from, const PixelPlaces& places, const PixelTargets& targets) {
  using C = Compute<T>;
  const T* z = static_cast<const T*>(from);
  C logits[kPixelClasses * kPixelTile];
  TileSums<C> sums;
  for (int64_t first = 0; first < places.classes; first += kPixelClasses) {
    const int64_t count = places.classes - first < kPixelClasses ? places.classes - first : kPixelClasses;
    read_classes(logits, z + first * places.plane, places, count);
    const C* weights = targets.class_weight == nullptr ? nullptr : static_cast<const C*>(targets.class_weight) + first;
    sums.add(logits, count, places.n, targets.flat != nullptr, weights);
  }
  C own[kPixelTile], lent[kPixelTile];
  read_labelled(own, z, places, targets.own);
  read_labelled(lent, z, places, targets.lent);
  return sums.losses(static_cast<C*>(losses), static_cast<C*>(logsumexp), own, lent, targets, places.n);
}

// What the gradient of a tile is made of: rate·exp(z - logsumexp) less what the labels take.
template <class C>
struct TileSlope {
  C rate[kPixelTile], own[kPixelTile], lent[kPixelTile], flat[kPixelTile];

  FUSEDMIX_ONCE TileSlope(const PixelTargets& targets, const C* grads, bool each, C scale, int64_t n) {
    const C *own_part = static_cast<const C*>(targets.own_part), *lent_part = static_cast<const C*>(targets.lent_part);
    const C *flat_part = static_cast<const C*>(targets.flat), mass = static_cast<C>(targets.mass);
    for (int64_t q = 0; q < n; ++q) rate[q] = (each ? grads[q] : grads[0]) * scale;
    for (int64_t q = 0; q < n; ++q) flat[q] = flat_part == nullptr ? C(0) : term(flat_part[q], rate[q]);
    for (int64_t q = 0; q < n; ++q) {
      own[q] = term(own_part[q], rate[q]);
      lent[q] = term(lent_part[q], rate[q]);
      rate[q] = own[q] + lent[q] + mass * flat[q];
    }
  }
  // The logits of class k, whose weight is c, become their gradient.
  FUSEDMIX_ONCE void apply(C* __restrict z, const PixelTargets& targets, const C* logsumexp, int32_t k, C c, int64_t n) const {
    for (int64_t q = 0; q < n; ++q) {
      const C taken = (targets.own[q] == k ? own[q] : C(0)) + (targets.lent[q] == k ? lent[q] : C(0));
      z[q] = term(rate[q], exp_nonpositive(z[q] - logsumexp[q])) - taken;
    }
    for (int64_t q = 0; q < n && targets.flat != nullptr; ++q) z[q] -= c * flat[q];
  }
};

template <class T>
void pixel_gradient(void* to, const PixelPlaces& there, const void* from, const PixelPlaces& places, const PixelTargets& targets,
                    const void* logsumexp, const void* grads, bool each, double scale) {
  using C = Compute<T>;
  const C* weights = static_cast<const C*>(targets.class_weight);
  const TileSlope<C> slope(targets, static_cast<const C*>(grads), each, static_cast<C>(scale), places.n);
  C logits[kPixelClasses * kPixelTile];
  for (int64_t first = 0; first < places.classes; first += kPixelClasses) {
    const int64_t count = places.classes - first < kPixelClasses ? places.classes - first : kPixelClasses;
    read_classes(logits, static_cast<const T*>(from) + first * places.plane, places, count);
    for (int64_t k = 0; k < count; ++k) {
      slope.apply(logits + k * kPixelTile, targets, static_cast<const C*>(logsumexp), static_cast<int32_t>(first + k),
                  weights == nullptr ? C(1) : weights[first + k], places.n);
    }
    write_classes(static_cast<T*>(to) + first * there.plane, logits, there, count);
  }
}

template <class T>
constexpr PixelRows pixel_rows() {
  return {pixel_losses<T>, pixel_gradient<T>};
}

}  // namespace
}  // namespace fusedmix::cpu
