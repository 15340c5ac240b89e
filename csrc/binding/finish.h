// Batches that are finished (fusedmix/finishing.py): what operators are called with, checked, as the records that backends read.
#pragma once

#include <torch/csrc/stable/library.h>

#include "../include/fusedmix/finish.h"
#include "operators.h"

namespace fusedmix {

// The arguments of _FINISH in fusedmix/ops.py.
struct GivenFinish {
  Tensor affine;
  Maybe draws;
  int64_t fill;
  bool nhwc;
  ScalarType dtype;
  bool channels_last;
};

// The batch as (B, C, H, W), whatever lies where.
struct Planes {
  int64_t batch, channels, height, width;
  int64_t step[4];  // from sample to sample, channel to channel, row to row, pixel to pixel
};

inline Planes planes_of(const Tensor& x, bool nhwc) {
  if (x.dim() != 4) refuse("x", x, nhwc ? "(B, H, W, C)" : "(B, C, H, W)");
  const int64_t c = nhwc ? 3 : 1, h = nhwc ? 1 : 2, w = nhwc ? 2 : 3;
  Planes planes{x.size(0), x.size(c), x.size(h), x.size(w), {x.stride(0), x.stride(c), x.stride(h), x.stride(w)}};
  const int64_t sides[3] = {1, planes.height, planes.width};
  check_sides(sides, 0);
  return planes;
}

inline Tensor new_finished(const Planes& p, ScalarType dtype, bool channels_last, int32_t device_type, int32_t device_index) {
  const int64_t sizes[4] = {p.batch, p.channels, p.height, p.width};
  const int64_t c = std::max<int64_t>(1, p.channels), h = std::max<int64_t>(1, p.height), w = std::max<int64_t>(1, p.width);
  const int64_t planar[4] = {c * h * w, h * w, w, 1}, last[4] = {c * h * w, 1, w * c, c};
  return allocate("the finished images", 4, sizes, channels_last ? last : planar, dtype, device_type, device_index);
}

// Which way holes are filled, and that no record says more holes than it has room for: on the host.
inline Fill checked_fill(const GivenFinish& how, int64_t batch) {
  check_number("fill", how.fill, kFillNumber, kFillEachPixel);
  if (!how.draws) return static_cast<Fill>(how.fill);
  const int64_t words = how.draws->dim() == 2 ? how.draws->size(1) : 0, holes = (words - kFinishHead) / 4;
  if (words < kFinishHead || words % 4 != 0 || holes > kMostHoles) {
    refuse("draws", *how.draws, "int32 of shape (B, 4 + 4·holes), of at most 16 holes");
  }
  const auto* record = const_data<int32_t>(*how.draws);
  for (int64_t i = 0; i < batch; ++i) check_number("the holes of a record in draws", record[i * words + kWordHoles], 0, holes);
  return static_cast<Fill>(how.fill);
}

}  // namespace fusedmix
