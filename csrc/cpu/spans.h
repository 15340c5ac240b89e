// Masks along rows: boxes, and stretches in which a mask is one number, as its family's traits say (sampling.h).
#pragma once

#include <limits>

#include "../include/fusedmix/masks.h"
#include "tiles.h"

namespace fusedmix::cpu {

// How a mask is gone through.
struct Mask {
  bool boxed, bits, levels, grid;
  bool factored, complement;  // a Gaussian whose centre is in the image; 1 minus one
  Box box;                    // empty where the mask is one number
};

// A stretch of a row in which the mask is one number, or varies.
struct Span {
  int64_t begin, end;
  float w;
};
// The w of a span that does: no number is it, as λ may be any. (A λ of NaN is a number here, of a mask that never varies.)
constexpr float kVaries = std::numeric_limits<float>::quiet_NaN();
inline bool varies(const Mask& mask, float w) { return w != w && !mask.boxed; }

// A row cut where a box starts and ends: the same for every row that crosses the box. Other masks are one span, which varies.
struct Cut {
  int n;
  Span inside[3];
  Span outside;
  const Mask* mask;
  int64_t sample;
};

struct Spans {
  const Span* at;
  int n;
};

// As the functions of masks.h ask for it.
struct Load {
  template <class T>
  T operator()(const T* at) const {
    return *at;
  }
};

// The pixels of one Fourier mask.
class PixelsOf {
 public:
  PixelsOf(const Pixels& pixels, int64_t sample) : pixels_(pixels), base_(draw_index(pixels.per, sample, pixels.batch) * pixels.stride) {}

  const uint32_t* bits() const { return pixels_.bits + base_; }
  bool bit(int64_t q) const { return (bits()[q / 32] >> (q % 32) & 1u) != 0; }
  float level(int64_t q) const { return weight_of_level(pixels_.levels[base_ + q]); }

  // How many of the pixels q, q + step, ... before q + n·step are what the first is.
  int64_t run(int64_t q, int64_t step, int64_t n) const {
    const bool first = bit(q);
    int64_t k = 1;
    if (step != 1) {
      while (k < n && bit(q + k * step) == first) ++k;
      return k;
    }
    while (k < n) {  // word by word: the bits from q + k on that differ from the first
      const int64_t at = q + k, rest = 32 - at % 32;
      const uint32_t word = bits()[at / 32], differ = (first ? ~word : word) >> (at % 32);
      if (differ != 0) return std::min(n, k + __builtin_ctz(differ));
      k += rest;
    }
    return n;
  }

 private:
  const Pixels& pixels_;
  const int64_t base_;
};

// The masks of a plan on the rows of its images.
struct Masks {
  const PlanView& plan;
  Row along;
  int64_t sides[3];  // of the images
  int64_t outside[3], step;  // from pixel to pixel along the axes that rows are not along, and along them
  std::vector<Mask> all;

  int64_t index(int64_t i) const { return plan.shared ? 0 : i; }
  const Mask& operator[](int64_t i) const { return all[index(i)]; }
  bool reaches(const Mask& m, const RowAt& at) const { return m.box.crosses(at.at, along.axis); }

  Cut cut(int64_t i, int64_t begin, int64_t end) const {
    const Mask& m = (*this)[i];
    Cut made{0, {}, {begin, end, m.boxed ? m.box.outer : kVaries}, &m, i};
    if (!m.boxed || m.box.is_empty()) return made;
    int64_t x0 = begin, x1 = end;
    if (along.axis >= 0) {
      x0 = std::min(end, std::max(begin, m.box.first[along.axis] * along.inner));
      x1 = std::max(x0, std::min(end, m.box.stop[along.axis] * along.inner));
    }
    if (begin < x0) made.inside[made.n++] = {begin, x0, m.box.outer};
    if (x0 < x1) made.inside[made.n++] = {x0, x1, m.box.inner};
    if (x1 < end) made.inside[made.n++] = {x1, end, m.box.outer};
    return made;
  }

  // f of the spans of one row; of masks that are pixels or cells they are put into `kept`.
  template <class F>
  void for_spans(const Cut& cut, const RowAt& at, std::vector<Span>& kept, const F& f) const {
    const Spans found = cut.mask->bits || cut.mask->grid             ? alike(cut, at, kept)
                        : cut.n > 0 && reaches(*cut.mask, at) ? Spans{cut.inside, cut.n}
                                                              : Spans{&cut.outside, 1};
    for (int k = 0; k < found.n; ++k) f(found.at[k]);
  }

  int64_t first_pixel(const RowAt& row) const {
    return row.at[0] * outside[0] + row.at[1] * outside[1] + row.at[2] * outside[2];
  }

  // Whether a mask is one number in the whole tile: no row of it reaches into a box.
  bool is_number(const Mask& m, const Tile& tile) const {
    const Box& box = m.box;
    if (!m.boxed || box.is_empty()) return m.boxed;
    for (int axis = 0; axis < 3; ++axis) {
      if (axis != along.axis && (box.stop[axis] <= tile.low[axis] || box.first[axis] > tile.high[axis])) return true;
    }
    return along.axis >= 0 && (box.stop[along.axis] * along.inner <= tile.begin || box.first[along.axis] * along.inner >= tile.end);
  }

 private:
  // The pixels of a row, those that are alike together.
  __attribute__((noinline)) Spans alike(const Cut& cut, const RowAt& at, std::vector<Span>& found) const {
    found.clear();
    if (cut.mask->bits) {
      const PixelsOf pixels(plan.pixels, cut.sample);
      const int64_t first = first_pixel(at);
      add_alike(cut, found, [&](int64_t pixel) { return pixels.bit(first + pixel * step) ? 1.0f : 0.0f; },
                [&](int64_t pixel, int64_t stop) { return pixel + pixels.run(first + pixel * step, step, stop - pixel); });
    } else {
      const int64_t sample = index(cut.sample);
      const auto cells = row_of(bit_cast<Grid>(plan.masks[sample]), at.at, along.axis, plan, sample, Load{});
      add_alike(cut, found, [&](int64_t pixel) { return cells(static_cast<int32_t>(pixel)); },
                [&](int64_t pixel, int64_t stop) { return std::min(stop, cells.next(static_cast<int32_t>(pixel))); });
    }
    return {found.data(), static_cast<int>(found.size())};
  }
  // `end_of`: where the pixels end, before `stop`, that are what one is.
  template <class Weight, class End>
  void add_alike(const Cut& cut, std::vector<Span>& found, const Weight& weight, const End& end_of) const {
    const int64_t stop = ceil_div(cut.outside.end, along.inner);
    for (int64_t begin = cut.outside.begin, end; begin < cut.outside.end; begin = end) {
      const int64_t pixel = along.axis < 0 ? 0 : begin / along.inner;
      end = along.axis < 0 ? cut.outside.end : std::min(cut.outside.end, end_of(pixel, stop) * along.inner);
      const float w = weight(pixel);
      if (!found.empty() && found.back().w == w) {
        found.back().end = end;
      } else {
        found.push_back({begin, end, w});
      }
    }
  }
};

// Of images of that size: n of them, or one that serves all.
inline Masks masks_of(const PlanView& plan, const Row& along, const int64_t* size, int64_t n) {
  Masks masks{plan, along, {size[0], size[1], size[2]}, {}, 0, {}};
  for (int axis = 0; axis < 3; ++axis) {
    (axis == along.axis ? masks.step : masks.outside[axis]) = pixel_step(plan.pixels, axis);
  }
  resize(masks.all, plan.shared ? 1 : n, "the masks of a batch");
  const Record* record = plan.masks;
  for (Mask& made : masks.all) {
    of_kind(*record++, [&](const auto& mask) {
      using Its = std::decay_t<decltype(mask)>;
      made.bits = Its::kHasPixels && plan.pixels.levels == nullptr;
      made.levels = Its::kHasPixels && !made.bits;
      made.grid = std::is_same_v<Its, Grid>;
      if constexpr (Its::kHasBox) made.boxed = true, made.box = mask.box();
      if constexpr (Its::kHasFactors) made.factored = mask.is_inside(size), made.complement = mask.is_complement();
    });
  }
  return masks;
}

// Where a box is along an axis, whose every coordinate has so many elements.
inline Span inside(const Box& box, int axis, int64_t length, int64_t inner) {
  const int64_t begin = std::max<int64_t>(0, box.first[axis] * inner);
  return {begin, std::max(begin, std::min(length, box.stop[axis] * inner)), 0.0f};
}

// Some rows of a sample, and the same part of each.
struct Window {
  int64_t first, stop;  // of all rows
  int64_t begin, end;   // of each
};

// Rows of a box in a window along the innermost dim outside of them. In elements of the destination.
struct BoxRows {
  int64_t place;   // of the first in a sample,
  int64_t step;    // and from one to the next
  int64_t packed;  // the place of the first where all rows of the window lie behind each other
  int64_t rows, length;
};

template <class F>
void for_box_rows(const Row& row, const Layout& layout, const Box& box, const Window& window, const Span& part, int d, int64_t place,
                  int64_t number, const F& f) {
  const Dim dim = row.outer_rank == 0 ? Dim{1, 0, 0, -1} : layout.dims[d];
  const Span across = dim.axis < 0 ? Span{0, dim.size, 0.0f} : inside(box, dim.axis, dim.size, 1);
  number *= dim.size;
  if (d + 1 >= row.outer_rank) {
    const int64_t first = std::max(window.first, number + across.begin), stop = std::min(window.stop, number + across.end);
    if (first >= stop) return;
    return f(BoxRows{place + (first - number) * dim.dst + part.begin, dim.dst,
                     (first - window.first) * (window.end - window.begin) + part.begin - window.begin, stop - first,
                     part.end - part.begin});
  }
  for (int64_t i = across.begin; i < across.end; ++i) {
    for_box_rows(row, layout, box, window, part, d + 1, place + i * dim.dst, number + i, f);
  }
}
// f of all rows of a box in a window.
template <class F>
void for_box(const Masks& masks, const Layout& layout, const Box& box, const Window& window, const F& f) {
  for (int axis = 0; axis < 3; ++axis) {
    if (masks.sides[axis] == 1 && (box.first[axis] > 0 || box.stop[axis] < 1)) return;  // such an axis has no dim below
  }
  const Row& row = masks.along;
  Span part = row.axis < 0 ? Span{0, row.length, 0.0f} : inside(box, row.axis, row.length, row.inner);
  part.begin = std::max(part.begin, window.begin);
  part.end = std::min(part.end, window.end);
  if (part.begin < part.end) for_box_rows(row, layout, box, window, part, 0, 0, 0, f);
}

}  // namespace fusedmix::cpu
