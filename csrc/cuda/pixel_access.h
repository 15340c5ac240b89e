// What threads do for each pixel by itself: where it is, its mask and its labels, and its logits where neighbours are no access.
// pixel_losses.cu goes through the classes.
#pragma once

#include "losses_kernel.h"
#include "pixel_losses.h"

namespace fusedmix::cuda {

// Of float64 there are as few as can be: its exponentials are long.
template <class C>
constexpr int kPixels = sizeof(C) == 4 ? 4 : 1;
template <class C>
constexpr int kPlanes = sizeof(C) == 4 ? 4 : 1;

struct PixelLossArgs {
  PixelLoss loss;
  PixelShape shape;
  Divisor tiles, rows, columns;  // of a row, of a sample, and of logits' rows in the dim above
  Divisor height, width;         // of the masks
  double share;                  // smoothing over the number of classes
  int32_t label_bytes;
  int64_t most_label, label_span;  // of labels with a sign of fewer than 8 bytes: above the most the bits are a negative number's
  PixelOut out;
  double* partial;
  PixelGrad grad;
  LaunchPlan plan;
};
static_assert(sizeof(PixelLossArgs) <= 4096, "kernel arguments");

// Which pixels a thread has.
template <class C>
struct PixelPlace {
  static constexpr int V = kPixels<C>;
  int64_t sample;
  int64_t upper, row;   // of the logits, in the two dims that are not in a row
  int32_t lane;         // pixels from one of the thread's to the next
  int32_t lanes;        // how many of them there are
  int32_t along;        // the first, in its row
  uint32_t pixel;       // and in its sample

  FUSEDMIX_DEVICE explicit PixelPlace(const PixelLossArgs& args) {
    const uint32_t block = device::block(), of_all = divide(block, args.tiles), tile = block - of_all * args.tiles.number;
    const uint32_t i = divide(of_all, args.rows), in_sample = of_all - i * args.rows.number, above = divide(in_sample, args.columns);
    sample = i;
    upper = above;
    row = in_sample - above * args.columns.number;
    const auto thread = static_cast<int32_t>(device::thread()), length = static_cast<int32_t>(args.shape.row);
    lane = args.shape.wide ? 1 : kPixelThreads;
    along = static_cast<int32_t>(tile) * (V * kPixelThreads) + (args.shape.wide ? V * thread : thread);
    const int32_t left = length - along;
    lanes = left <= 0 ? 0 : (args.shape.wide || left > (V - 1) * kPixelThreads ? V : (left + kPixelThreads - 1) / kPixelThreads);
    pixel = in_sample * static_cast<uint32_t>(length) + static_cast<uint32_t>(along);
  }
  // The element of the first pixel, of class 0, by strides.
  FUSEDMIX_DEVICE int64_t element(const PixelSteps& by) const { return sample * by.batch + upper * by.side[0] + row * by.side[1] + along * by.side[2]; }
  // Numbers of each pixel, in a tensor of them.
  FUSEDMIX_DEVICE int64_t number(const PixelLossArgs& args, int64_t of_sample) const { return of_sample * args.loss.pixels + pixel; }
};

// The logits of one class at a time, and what becomes of them, where neighbouring pixels are no access: [u][l] is that of class k + u
// at pixel l. `at`: that of class k at the first pixel.
template <class C, class T>
FUSEDMIX_DEVICE void load_one_by_one(const PixelLossArgs& args, const PixelPlace<C>& place, const T* at, int32_t left,
                                     C (&z)[kPlanes<C>][kPixels<C>]) {
  T one[kPlanes<C>][kPixels<C>]{};
  FUSEDMIX_UNROLL
  for (int u = 0; u < kPlanes<C>; ++u) {
    if (u >= left) break;
    const T* plane = at + u * args.loss.by.plane;
    FUSEDMIX_UNROLL
    for (int l = 0; l < kPixels<C>; ++l) {
      if (l < place.lanes) one[u][l] = device::load(plane + l * (kPixelThreads * args.loss.by.side[2]));
    }
  }
  FUSEDMIX_UNROLL
  for (int u = 0; u < kPlanes<C>; ++u) {
    FUSEDMIX_UNROLL
    for (int l = 0; l < kPixels<C>; ++l) z[u][l] = u < left ? to_compute(one[u][l]) : -C(INFINITY);
  }
}
template <class C, class T>
FUSEDMIX_DEVICE void store_one_by_one(const PixelLossArgs& args, const PixelPlace<C>& place, T* plane, const C (&made)[kPixels<C>]) {
  FUSEDMIX_UNROLL
  for (int l = 0; l < kPixels<C>; ++l) {
    if (l < place.lanes) device::store(plane + l * (kPixelThreads * args.grad.by.side[2]), from_compute<T>(made[l]));
  }
}

// One of the two labels of each of a thread's pixels.
template <class C>
struct PixelLabels {
  static constexpr int V = kPixels<C>;
  int32_t at[V];  // a class, 0 where it is none
  C share[V];     // M or 1-M; 0 where it is ignored, NaN where it is no class
  C weight[V];    // the share times the class's weight

  // Of a sample of the maps. A label whose share is 0 is not read.
  FUSEDMIX_DEVICE void load(const PixelLossArgs& args, const PixelPlace<C>& place, int64_t sample) {
    int64_t y[V];
    const int64_t first = place.number(args, sample);
    const auto load_as = [&](auto bits) {
      using Bits = decltype(bits);
      FUSEDMIX_UNROLL
      for (int l = 0; l < V; ++l) {
        y[l] = 0;
        if (share[l] != C(0)) y[l] = static_cast<int64_t>(device::load(static_cast<const Bits*>(args.loss.maps) + first + l * place.lane));
      }
    };
    switch (args.label_bytes) {
      case 8: load_as(uint64_t{}); break;
      case 4: load_as(uint32_t{}); break;
      case 2: load_as(uint16_t{}); break;
      default: load_as(uint8_t{}); break;
    }
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) {
      if (y[l] > args.most_label) y[l] -= args.label_span;
      const bool valid = static_cast<uint64_t>(y[l]) < static_cast<uint64_t>(args.loss.classes);
      at[l] = valid ? static_cast<int32_t>(y[l]) : 0;
      if (share[l] != C(0)) share[l] = y[l] == args.loss.ignore ? C(0) : (valid ? share[l] : C(NAN));
      weight[l] = share[l];
      if (share[l] != C(0)) weight[l] *= weight_of<C>(args.loss.class_weight, at[l]);
    }
  }
  // Its logits, 0 where its weight is 0. `first`: as of load_planes.
  FUSEDMIX_DEVICE void load_logits(const PixelLossArgs& args, const PixelPlace<C>& place, int64_t first, C (&z)[V]) const {
    int64_t element[V];
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) element[l] = first + at[l] * args.loss.by.plane + l * (place.lane * args.loss.by.side[2]);
    of_elements<C>(args.loss.type, [&](auto type) {
      using T = decltype(type);
      FUSEDMIX_UNROLL
      for (int l = 0; l < V; ++l) {
        z[l] = 0;
        if (weight[l] != C(0)) z[l] = to_compute(device::load(static_cast<const T*>(args.loss.logits) + element[l]));
      }
    });
  }
};

// Both labels of a thread's pixels. Those beyond the last have a share of 0.
template <class C>
FUSEDMIX_DEVICE void load_labels(const PixelLossArgs& args, const PixelPlace<C>& place, PixelLabels<C>& own, PixelLabels<C>& lent) {
  constexpr int V = kPixels<C>;
  const PlanView plan = view_of(args.plan);
  float m[V];
  one_by_one(m, [&](int l) {
    const uint32_t pixel = place.pixel + static_cast<uint32_t>(l * place.lane), row = divide(pixel, args.width), z = divide(row, args.height);
    const int32_t at[3] = {static_cast<int32_t>(z), static_cast<int32_t>(row - z * args.height.number),
                           static_cast<int32_t>(pixel - row * args.width.number)};
    return l < place.lanes ? weight_at(plan, static_cast<uint32_t>(place.sample), at) : 1.0f;
  });
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) lent.share[l] = l < place.lanes ? static_cast<C>(m[l]) : C(0);
  FUSEDMIX_NO_UNROLL  // the code of labels once
  for (int side = 0; side < 2; ++side) {
    own = lent;
    if (side == 1) {
      FUSEDMIX_UNROLL
      for (int l = 0; l < V; ++l) lent.share[l] = l < place.lanes ? C(1) - static_cast<C>(m[l]) : C(0);
    }
    lent.load(args, place, side == 0 ? place.sample : partner_of(plan, place.sample, args.loss.samples));
  }
}

// Numbers of a thread's pixels, in a tensor of the batch's.
template <class C>
FUSEDMIX_DEVICE void store_pixels(const PixelLossArgs& args, const PixelPlace<C>& place, void* to, const C (&x)[kPixels<C>]) {
  constexpr int V = kPixels<C>;
  C* at = static_cast<C*>(to) + place.number(args, place.sample);
  if (args.shape.wide && place.lanes > 0) {
    store_vector<C, V>(at, Vec<C, V>::of(x));
    return;
  }
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) {
    if (l < place.lanes) device::store(at + l * place.lane, x[l]);
  }
}
template <class C>
FUSEDMIX_DEVICE void load_pixels(const PixelLossArgs& args, const PixelPlace<C>& place, const void* from, C (&x)[kPixels<C>]) {
  const C* at = static_cast<const C*>(from) + place.number(args, place.sample);
  FUSEDMIX_UNROLL
  for (int l = 0; l < kPixels<C>; ++l) x[l] = l < place.lanes ? device::load(at + l * place.lane) : C(0);
}

}  // namespace fusedmix::cuda
