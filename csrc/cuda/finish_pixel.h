// A batch that is finished number by number, from memory: what holes touch, and what fits no vector.
#pragma once

#include "finish_side.h"

namespace fusedmix::cuda {

// The last hole that a pixel is in, or -1.
FUSEDMIX_DEVICE int32_t hole_at(const Side& side, int32_t y, int32_t x) {
  int32_t found = -1;
  FUSEDMIX_NO_UNROLL
  for (int32_t k = 0; k < side.count; ++k) {
    if (load_hole(side.holes + k).has(y, x)) found = k;
  }
  return found;
}

// The number of channel c at a pixel, where either sample may be in a hole. `number`: reads one of a batch that comes.
template <class Number>
FUSEDMIX_DEVICE float finished_at(const FinishingArgs& args, const Side& own, const Side& lent, float w, int32_t c, int32_t y,
                                  int32_t x, const Number& number) {
  const auto number_of = [&](const Side& side) {
    const int32_t column = side.flip ? args.width - 1 - x : x;
    return number(side.src + c * args.from.channel + y * args.from.row + column * args.from.pixel);
  };
  const float a = number_of(own), b = number_of(lent);
  const float scale = device::load(args.affine + c), shift = device::load(args.affine + args.channels + c);
  const int32_t own_hole = hole_at(own, y, x), lent_hole = hole_at(lent, y, x);
  if (own_hole < 0 && lent_hole < 0) return fma(blend<float>(w, a, b), scale, shift);
  float before = 0.0f, last = 0.0f;  // of the sample and of its partner, by code that there is once
  FUSEDMIX_NO_UNROLL
  for (int side = 0; side < 2; ++side) {
    const int32_t hole = side == 0 ? own_hole : lent_hole;
    before = last;
    last = fma(side == 0 ? a : b, scale, shift);
    if (hole < 0) continue;
    if (args.fill == kFillNumber) {
      last = device::load(args.affine + 2 * args.channels + c);
    } else {
      const auto index = static_cast<uint64_t>(args.fill == kFillEachHole ? hole : static_cast<int64_t>(y) * args.width + x);
      last = normal_fill(fill_words(side == 0 ? own.seed : lent.seed, index, c), c);
    }
  }
  return blend<float>(w, before, last);
}

template <class In>
FUSEDMIX_DEVICE float load_number(const char* at) {
  return to_compute(bit_cast<In>(device::load(reinterpret_cast<const typename device::RawOf<sizeof(In)>::type*>(at))));
}

// P pixels of C channels from x on, a vector at a time: store(k, numbers) has the k-th. kLast: each pixel's channels lie together.
template <class In, int P, int C, bool kLast, class Weights, class Store>
FUSEDMIX_DEVICE void finish_one_by_one(const FinishingArgs& args, const Side& own, const Side& lent, const Weights& weights,
                                       int32_t first_channel, int32_t y, int32_t x, const Store& store) {
  FUSEDMIX_NO_UNROLL
  for (int k = 0; k < C; ++k) {
    float numbers[P];
    one_by_one(numbers, [&](int l) {
      const int e = k * P + l, p = kLast ? e / C : l, c = kLast ? e - p * C : k;
      return finished_at(args, own, lent, weights.at(p), first_channel + c, y, x + p, load_number<In>);
    });
    store(k, numbers);
  }
}

template <class Out>
FUSEDMIX_DEVICE void store_number(char* at, float number) {
  using Raw = typename device::RawOf<sizeof(Out)>::type;
  device::store(reinterpret_cast<Raw*>(at), bit_cast<Raw>(from_compute<Out>(number)));
}

}  // namespace fusedmix::cuda
