// Crops of partners, resized into boxes: which pixels of a crop one pixel of a box is made of. The meaning is
// fusedmix/backends/gathers.py, paste.
#pragma once

#include "element.h"
#include "methods.h"

namespace fusedmix {

constexpr int32_t kMostPatches = 8;  // of a sample

// Where a box or a crop is along an axis.
struct Side {
  int32_t first, stop;
  FUSEDMIX_HD int32_t length() const { return stop - first; }
  FUSEDMIX_HD bool has(int32_t c) const { return (c >= first) & (c < stop); }
};

// What is painted over a batch: `count` patches for each sample, one over the other.
struct Patches {
  const int64_t* partner;        // (batch, count)
  const int32_t *boxes, *crops;  // (batch, count, 2·ndim): first of every side, then stop of every side
  int32_t count, ndim;
  Resize resize;

  // Of patch `patch` of all, along z, y or x; `load` reads memory. An axis that images lack is one pixel wide.
  template <class Load>
  FUSEDMIX_HD Side side_of(const int32_t* sides, int64_t patch, int32_t axis, const Load& load) const {
    const int32_t place = axis - (3 - ndim);
    if (place < 0) return {0, 1};
    const int32_t* at = sides + patch * 2 * ndim + place;
    return {load(at), load(at + ndim)};
  }
};

// Between two pixels of a crop, counted from its first: a + share·(b - a). Where one pixel is all of it, `second` is `first` and
// the share 0.
struct Tap {
  int32_t first, second;
  float share;
  FUSEDMIX_HD bool is_one() const { return first == second; }
};

// The place of pixel c of n in a crop of m pixels, as a fraction of whole numbers. `Int` has no sign: 32 bits of it hold sides up to
// 32767, 64 bits any side.
template <class Int>
struct Place {
  Int numerator, denominator;
};
template <class Int>
FUSEDMIX_HD Place<Int> place_in_crop(Resize resize, Int c, Int n, Int m) {
  if (resize == Resize::kNearest) return {c * m, n};
  if (resize == Resize::kLinearCorners) return {c * (m - 1), n > 1 ? n - 1 : 1};
  const Int centre = (2 * c + 1) * m;
  return {centre > n ? centre - n : 0, 2 * n};
}

template <class Int>
FUSEDMIX_HD Tap tap_of(Resize resize, Int whole, Int rest, Int denominator, Int m) {
  const auto first = static_cast<int32_t>(whole);
  const bool one = (resize == Resize::kNearest) | (rest == 0) | (whole + 1 >= m);
  return {first, one ? first : first + 1, one ? 0.0f : static_cast<float>(rest) / static_cast<float>(denominator)};
}
// Of pixel c of a box.
template <class Int>
FUSEDMIX_HD Tap tap_at(Resize resize, Int c, Int n, Int m) {
  const Place<Int> at = place_in_crop(resize, c, n, m);
  const Int whole = at.numerator / at.denominator;
  return tap_of(resize, whole, at.numerator - whole * at.denominator, at.denominator, m);
}

// Exactly a where the share is 0, whatever b is. Each operation is rounded, as those of the reference are.
template <class C>
FUSEDMIX_HD C between(C a, C b, float share) {
  const C mixed = a + static_cast<C>(share) * (b - a);
  return share == 0.0f ? a : mixed;
}

}  // namespace fusedmix
