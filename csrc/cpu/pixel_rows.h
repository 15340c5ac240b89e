// The loops of pixel_losses.h for one instruction set: included by kernels.cpp alone.
//
// What is read twice, or does not lie pixel by pixel, is copied, a few classes of a tile at a time, to where it lies together: images
// whose sides are powers of two would have all classes of a pixel in a few lines of the cache otherwise.
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

// The label of each pixel, if it is a class.
FUSEDMIX_ONCE void find_classes(int32_t* __restrict found, LabelType type, const void* map, int64_t at, int64_t n, int64_t classes,
                                int64_t ignore) {
  of_label(type, [=](auto as) {
    const auto* labels = static_cast<const decltype(as)*>(map) + at;
    for (int64_t q = 0; q < n; ++q) {
      const auto y = label_as<int64_t>(labels[q]);
      const int64_t k = y >= 0 && y < classes ? y : int64_t{kNoClass};
      found[q] = static_cast<int32_t>(y == ignore ? int64_t{kIgnored} : k);
    }
  });
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
  FUSEDMIX_ONCE double losses(C* __restrict losses, C* __restrict logsumexp, const C* own, const C* lent, const PixelTargets& targets,
                              int64_t n) const {
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
  // The gradient of class k, whose weight is c.
  FUSEDMIX_ONCE void apply(C* __restrict out, const C* __restrict z, const PixelTargets& targets, const C* logsumexp, int32_t k, C c,
                           int64_t n) const {
    for (int64_t q = 0; q < n; ++q) {
      const C taken = (targets.own[q] == k ? own[q] : C(0)) + (targets.lent[q] == k ? lent[q] : C(0));
      out[q] = term(rate[q], exp_nonpositive(z[q] - logsumexp[q])) - taken;
    }
    for (int64_t q = 0; q < n && targets.flat != nullptr; ++q) out[q] -= c * flat[q];
  }
};

// Asks for a class of a tile: the hardware foresees what comes next within a class, not the next class.
template <bool kWritten, class T>
inline void ask_for_class(const T* at, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t q = 0; q < n; q += kLine) __builtin_prefetch(at + q, kWritten ? 1 : 0, 3);
}

template <class T>
void pixel_gradient(void* out, const PixelPlaces& there, const void* logits, const PixelPlaces& places, const PixelTargets& targets,
                    const void* logsumexp, const void* grads, bool each, double scale) {
  using C = Compute<T>;
  const C* weights = static_cast<const C*>(targets.class_weight);
  const T* from = static_cast<const T*>(logits);
  T* to = static_cast<T*>(out);
  const int64_t n = places.n, classes = places.classes;
  const TileSlope<C> slope(targets, static_cast<const C*>(grads), each, static_cast<C>(scale), n);
  const auto apply = [&](C* made, const C* z, int64_t k) {
    const C c = weights == nullptr ? C(1) : weights[k];
    slope.apply(made, z, targets, static_cast<const C*>(logsumexp), static_cast<int32_t>(k), c, n);
  };
  if (places.step == 1 && there.step == 1) {
    constexpr int64_t kAhead = 2;
    for (int64_t k = 0; k < classes; ++k) {
      if (k + kAhead < classes) {
        ask_for_class<false>(from + (k + kAhead) * places.plane, n);
        ask_for_class<true>(to + (k + kAhead) * there.plane, n);
      }
      write_row<T>(to + k * there.plane, from + k * places.plane, 1, n, [&](C* made, const C* z, int64_t, int64_t) { apply(made, z, k); });
    }
    return;
  }
  C read[kPixelClasses * kPixelTile], made[kPixelClasses * kPixelTile];
  for (int64_t first = 0; first < classes; first += kPixelClasses) {
    const int64_t count = classes - first < kPixelClasses ? classes - first : kPixelClasses;
    read_classes(read, from + first * places.plane, places, count);
    for (int64_t k = 0; k < count; ++k) apply(made + k * kPixelTile, read + k * kPixelTile, first + k);
    write_classes(to + first * there.plane, made, there, count);
  }
}

template <class T>
constexpr PixelRows pixel_rows() {
  return {find_classes, pixel_losses<T>, pixel_gradient<T>};
}

}  // namespace
}  // namespace fusedmix::cpu
