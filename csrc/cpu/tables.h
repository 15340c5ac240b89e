// The weights of masks along rows: from tables where the family has them, else pixel by pixel.
#pragma once

#include <memory>

#include "kernels.h"
#include "mix.h"
#include "spans.h"

namespace fusedmix::cpu {

// One call mixes so many rows of tables at most.
constexpr int64_t kScaledRows = 16;

// What masks are made of along a row, so that a weight takes a multiplication at most. Of a Gaussian: exp(-rate·d²) along every
// axis, in float64 rounded once; it is separable, so H+W exponentials serve H·W pixels. Of a box: a row beside it and one
// through it. Along the row every element has its own entry.
struct Tables {
  const Masks& masks;
  const Kernels& kernels;
  int64_t first[3];             // where each axis of a Gaussian begins in its table
  std::vector<int64_t> offset;  // of each mask's table, or -1
  std::unique_ptr<float[]> own;
  const float* values;

  // Whether a mask's weights along a row are one of these times a number, or 1 minus that.
  bool has(int64_t i) const { return offset[i] >= 0 && masks.along.axis == 2; }

  // Of a Gaussian, for each coordinate; along the row for each element.
  const float* axis(int64_t i, int axis) const { return values + offset[masks.index(i)] + first[axis]; }

  // The rows of a block of sample i, which is link l: through a box, or beside it, or a Gaussian's.
  void scale(int64_t i, const Block& block, int l, ScaledRow* rows) const {
    const Mask& m = masks[i];
    if (m.factored) {
      const float *z = axis(i, 0), *y = axis(i, 1), *x = axis(i, 2) + block.begin;
      const bool complement = m.complement;
      for (int64_t r = 0; r < block.rows; ++r) {
        const float factor = z[block.row[r].at[0]] * y[block.row[r].at[1]];
        rows[r].table[l] = x;
        rows[r].factor[l] = complement ? -factor : factor;
      }
    } else {
      const float *beside = values + offset[i] + block.begin, *through = beside + masks.along.length;
      for (int64_t r = 0; r < block.rows; ++r) {
        rows[r].table[l] = masks.reaches(m, block.row[r]) ? through : beside;
        rows[r].factor[l] = 1.0f;
      }
    }
  }

  // The mask of sample i, a weight for each element of the block. `kept`: for spans.
  void weights(int64_t i, const Block& block, std::vector<Span>& kept, float* w) const {
    const int64_t width = block.end - block.begin;
    if (masks[i].factored) {
      for (int64_t r = 0; r < block.rows; ++r) factored(i, block.row[r], block.begin, block.end, w + r * width);
      return;
    }
    if (masks[i].bits && masks.along.inner == 1 && masks.step == 1) {
      const uint32_t* bits = PixelsOf(masks.plan.pixels, i).bits();
      for (int64_t r = 0; r < block.rows; ++r) {
        kernels.fourier.expand(w + r * width, bits, masks.first_pixel(block.row[r]) + block.begin, width);
      }
      return;
    }
    const Cut made = masks.cut(i, block.begin, block.end);
    for (int64_t r = 0; r < block.rows; ++r, w += width) {
      masks.for_spans(made, block.row[r], kept, [&](const Span& span) {
        float* at = w + (span.begin - block.begin);
        if (varies(*made.mask, span.w)) {
          varying(i, block.row[r], span, at);
        } else {
          std::fill(at, at + (span.end - span.begin), span.w);
        }
      });
    }
  }

 private:
  void factored(int64_t i, const RowAt& row, int64_t begin, int64_t end, float* w) const {
    const int along = masks.along.axis;
    const bool complement = masks[i].complement;
    Factors f{1.0f, 1.0f, 1.0f};
    for (int other = 0; other < 3; ++other) {
      if (other == along) continue;
      const float value = axis(i, other)[row.at[other]];
      if (along < 0 || other < along) {  // all axes are before it where a row is in one pixel
        f.before *= value;
      } else {
        (other == along + 1 ? f.after : f.last) = value;
      }
    }
    if (along < 0) {
      std::fill(w, w + (end - begin), complement ? 1.0f - f.before : f.before);
    } else {
      kernels.gaussian(w, axis(i, along) + begin, end - begin, f, complement);
    }
  }

  // The mask of sample i along a span in which it varies. Out of line: within weights() all families would take the registers of
  // its loop, in which boxes do nothing but fill.
  __attribute__((noinline)) void varying(int64_t i, const RowAt& row, const Span& span, float* w) const {
    const Row& along = masks.along;
    if (masks[i].levels) {
      const PixelsOf pixels(masks.plan.pixels, i);
      const int64_t pixel = masks.first_pixel(row);
      for (int64_t k = span.begin; k < span.end; ++k) w[k - span.begin] = pixels.level(pixel + k / along.inner * masks.step);
      return;
    }
    of_kind(masks.plan.masks[masks.index(i)], [&](const auto& family) {
      const auto weight = row_of(family, row.at, along.axis, masks.plan, i, Load{});
      for (int64_t k = span.begin; k < span.end; ++k) w[k - span.begin] = weight(static_cast<int32_t>(k / along.inner));
    });
  }
};

// exp(-r·d²) for each d that there is along any axis, from exp(-r(d+1)²) = exp(-rd²)·q and the next q = q·exp(-2r): two
// exponentials for kAnchor pixels. After d steps from an anchor that is off by up to d²·2^-53 of itself, as the error of the
// first q is raised to the d²; anchors keep it below 2^-33, and what is made of it is rounded to float32.
inline void distances(const Gaussian& bell, const int64_t* size, std::vector<float>& found) {
  constexpr int64_t kAnchor = 1024;
  int64_t n = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t centre = bell.centre[axis];
    n = std::max(n, 1 + std::max(centre, size[axis] - 1 - centre));
  }
  resize(found, n, "the tables of masks");
  std::fill(found.begin(), found.end(), 0.0f);
  const double rate = bell.rate, step = std::exp(-2.0 * rate);
  double g = 1.0, q = 1.0;
  for (int64_t d = 0; d < n; ++d, g *= q, q *= step) {
    if (d % kAnchor == 0) {
      const double x = static_cast<double>(d);
      g = std::exp(-rate * (x * x));
      q = std::exp(-rate * (2.0 * x + 1.0));
    }
    if (g < 1e-60) break;  // far below what float32 holds
    found[d] = static_cast<float>(g);
  }
}

// The table of a Gaussian along an axis; `repeat` elements share a pixel.
inline void fill_axis(int64_t centre, int64_t side, int64_t repeat, const std::vector<float>& by_distance, float* out) {
  const float* at = by_distance.data();
  if (repeat == 1) {
    std::reverse_copy(at + 1, at + 1 + centre, out);
    std::copy(at, at + side - centre, out + centre);
    return;
  }
  for (int64_t c = 0; c < side; ++c, out += repeat) std::fill(out, out + repeat, at[std::abs(c - centre)]);
}

// `boxes`: not only of Gaussians.
inline Tables tables_of(const Masks& masks, bool boxes, const Parallel& parallel) {
  constexpr int64_t kKeptTable = 1 << 18;  // A thread keeps the memory of so many numbers at most.
  constexpr int64_t kManyMasks = 256;      // So many masks are worth more than one thread.
  const Row& row = masks.along;
  const auto count = static_cast<int64_t>(masks.all.size());
  Tables made{masks, kernels(), {}, {}, nullptr, nullptr};
  resize(made.offset, count, "the tables of masks");
  int64_t all_axes = 0, total = 0;
  for (int axis = 0; axis < 3; ++axis) {
    made.first[axis] = all_axes;
    all_axes += axis == row.axis ? row.length : masks.sides[axis];
  }
  boxes = boxes && row.axis >= 0 && row.length <= kBlock;
  for (int64_t m = 0; m < count; ++m) {
    const Mask& mask = masks.all[m];
    const bool tabled = mask.factored || (boxes && mask.boxed);
    made.offset[m] = tabled ? total : -1;
    if (tabled) total += mask.factored ? all_axes : 2 * row.length;
  }
  if (total == 0) return made;
  thread_local std::vector<float> kept;  // by the thread that calls, as scratch memory is
  if (total > kKeptTable) {
    made.own = unwritten<float>(total, "the tables of masks");
  } else if (static_cast<int64_t>(kept.size()) < total) {
    resize(kept, total, "the tables of masks");
  }
  float* const values = made.own ? made.own.get() : kept.data();
  made.values = values;
  parallel(count, count < kManyMasks ? count : 8, [&](int64_t begin, int64_t end) {
    std::vector<float> by_distance;
    for (int64_t m = begin; m < end; ++m) {
      if (made.offset[m] < 0) continue;
      float* const table = values + made.offset[m];
      const Mask& mask = masks.all[m];
      if (mask.boxed) {
        std::fill(table, table + 2 * row.length, mask.box.outer);
        const Span through = inside(mask.box, row.axis, row.length, row.inner);
        std::fill(table + row.length + through.begin, table + row.length + through.end, mask.box.inner);
        continue;
      }
      const auto bell = bit_cast<Gaussian>(masks.plan.masks[m]);
      distances(bell, masks.sides, by_distance);
      for (int axis = 0; axis < 3; ++axis) {
        fill_axis(bell.centre[axis], masks.sides[axis], axis == row.axis ? row.inner : 1, by_distance, table + made.first[axis]);
      }
    }
  });
  return made;
}

}  // namespace fusedmix::cpu
