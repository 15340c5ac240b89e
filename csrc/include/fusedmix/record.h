// A mask as a record: its kind, and eleven words that mean what its family says (masks/*.h).
#pragma once

#include "element.h"
#include "methods.h"

namespace fusedmix {

// Words that a family does not use are 0. On a GPU records lie at multiples of 16 bytes: three loads.
struct Record {
  int32_t kind;
  int32_t words[11];
};
static_assert(sizeof(Record) == 48);

// Some elements of a sample that lie together, on a mask. Axes are (z, y, x); a signal of fewer dims has leading sides of 1.
struct Stretch {
  int32_t at[3];        // the coordinates along the other axes
  int32_t axis;         // along which they lie; -1: all of them are at one pixel
  int32_t first, last;  // their coordinates along it
};

// What a mask does to them: all of the sample, all of its partner, each element of either, or both.
enum Reach : int32_t { kKeep = 0, kTake = 1, kSelect = 2, kBlend = 3 };

FUSEDMIX_HD Reach reach_of(float w) { return w == 1.0f ? kKeep : (w == 0.0f ? kTake : kBlend); }

// The coordinate along an axis. Selected, not indexed: an index would put the record into local memory. All are read first: nvcc
// makes an index of reads that depend on the axis.
template <class T>
FUSEDMIX_HD T along_axis(const T* at, int32_t axis) {
  const T z = at[0], y = at[1], x = at[2];
  return axis == 2 ? x : (axis == 1 ? y : z);
}

// A row of one number.
struct Uniform {
  float w;
  FUSEDMIX_HD float operator()(int32_t) const { return w; }
  FUSEDMIX_HD Reach reach(int32_t, int32_t) const { return reach_of(w); }
};

}  // namespace fusedmix
