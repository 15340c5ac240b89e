// CutMix (Yun 2019) and HMix (Park 2022): one number in a box of the partner and one outside of it.
#pragma once

#include "../sampling.h"

namespace fusedmix {

// x^(1/d). Cube roots differ between libraries in the last bit, so they are rounded to float32.
FUSEDMIX_HD double root(double x, int d) {
  if (d == 1) return x;
  return d == 2 ? sqrt(x) : static_cast<double>(static_cast<float>(pow(x, 1.0 / 3.0)));
}

// The shares of the image's height and width that a box has, where its width/height is drawn (fusedmix/masks/box.py).
FUSEDMIX_HD void shape(const MethodRow& row, uint32_t bits, double fraction, const Extent& extent, double* shares) {
  if (!(row.aspect_high > 0.0) || extent.ndim < 2) return;
  const double uniform = static_cast<double>(2 * uint64_t{bits} + 1) * 0x1p-33;
  const double grown = static_cast<float>(exp(uniform * log(row.aspect_high / row.aspect_low)));
  const double ratio = row.aspect_low * grown * static_cast<double>(extent.size[1]) / static_cast<double>(extent.size[2]);
  const double stretch = fmax(sqrt(ratio), fraction), most = 1.0 / (fraction > 0.0 ? fraction : 1.0);
  shares[1] = fraction / fmin(stretch, most);
  shares[2] = fmin(fraction * stretch, 1.0);
}

struct Box : Family {
  int32_t kind;
  int32_t first[3], stop[3];
  float outer, inner;
  int32_t unused[3];

  static constexpr bool kHasBox = true;

  FUSEDMIX_HD static int32_t may_hold(const MethodRow& row) { return row.method == kCutMix ? kCuts : kBoxes; }
  FUSEDMIX_HD static Made make(const MethodRow& row, float lam32, const Draw& drawn, const Extent& extent) {
    const double lam = lam32, ratio = row.ratio_alpha > 0.0 ? static_cast<double>(drawn.ratio) : row.ratio;
    const bool released = row.method == kHMixReleased;
    // The product of the roots first, as in the authors' code: another order moves the box.
    const double fraction = root(1.0 - lam, extent.ndim) * root(ratio, extent.ndim);
    double shares[3] = {fraction, fraction, fraction};
    shape(row, drawn.aspect, fraction, extent, shares);
    Box mask{};
    mask.kind = kBox;
    double share = 1.0;  // of the box in the image
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t side = extent.size[axis];
      auto length = static_cast<int64_t>(floor(static_cast<double>(side) * shares[axis]));
      if (row.side_high > 0.0) {
        const auto low = static_cast<int64_t>(floor(static_cast<double>(side) * row.side_low));
        const int64_t more = static_cast<int64_t>(floor(static_cast<double>(side) * row.side_high)) - low;
        length = low + below(drawn.sides[axis], more < 1 ? 1 : more);
      }
      int64_t first = drawn.centre[axis] - length / 2, stop = drawn.centre[axis] + length / 2;
      if (row.inside != 0.0 || row.side_high > 0.0) {
        first = below(drawn.place[axis], side - length + 1);
        stop = first + length;
      }
      const bool absent = axis < 3 - extent.ndim;
      mask.first[axis] = static_cast<int32_t>(absent || first < 0 ? 0 : first);
      mask.stop[axis] = static_cast<int32_t>(absent ? 1 : (stop < side ? stop : side));
      share *= static_cast<double>(mask.stop[axis] - mask.first[axis]);
    }
    share /= extent.pixels();
    const double rest = 1.0 - share;
    // λ is divided by this so that it is the mean: of every mask (released), or of masks that nothing clips (paper).
    const double outside = released ? rest : (1.0 - ratio) + lam * ratio;
    mask.outer = row.method == kCutMix ? 1.0f : static_cast<float>(outside > 0.0 ? fmin(lam / outside, 1.0) : 0.0);
    return {bit_cast<Record>(mask), released ? lam : static_cast<double>(mask.outer) * rest};
  }
  FUSEDMIX_HD int32_t families() const { return outer == 1.0f && inner == 0.0f ? kCuts | kBoxes : kBoxes; }

  FUSEDMIX_HD bool is_empty() const { return first[0] >= stop[0] || first[1] >= stop[1] || first[2] >= stop[2]; }

  // Whether a row along an axis passes through the box, wherever that is along it. Without branches: a GPU has many for `&&`.
  FUSEDMIX_HD bool crosses(const int32_t* at, int32_t row_axis) const {
    bool inside = true;
    for (int axis = 0; axis < 3; ++axis) inside &= (axis == row_axis) | ((at[axis] >= first[axis]) & (at[axis] < stop[axis]));
    return inside;
  }

  struct Row {
    int32_t begin, end;
    float outer, inner;
    FUSEDMIX_HD float operator()(int32_t c) const { return c >= begin && c < end ? inner : outer; }
    FUSEDMIX_HD Reach reach(int32_t from, int32_t to) const {
      if (from >= begin && to < end) return reach_of(inner);
      if (to < begin || from >= end || begin >= end) return reach_of(outer);
      return outer == 1.0f && inner == 0.0f ? kSelect : kBlend;
    }
  };
  FUSEDMIX_HD Row along(const int32_t* at, int32_t axis) const {
    const int32_t end = axis < 0 ? 1 : along_axis(stop, axis);
    return {axis < 0 ? 0 : along_axis(first, axis), crosses(at, axis) ? end : 0, outer, inner};
  }

  FUSEDMIX_HD Box box() const { return *this; }
};
static_assert(sizeof(Box) == sizeof(Record));

}  // namespace fusedmix
