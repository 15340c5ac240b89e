// Several elements of a sample that lie together, and one access to them.
#pragma once

#include <type_traits>

#include "../include/fusedmix/element.h"
#include "kernels.h"

namespace fusedmix::cuda {

// Elements of less than 4 bytes stay packed in words until they are used. Apart, each would take a register of its own, and
// with 216 of them (uint8) two blocks would fit on a multiprocessor, not three.
template <class T, int V>
struct Vec {
  static constexpr int kPerWord = sizeof(T) < 4 ? 4 / static_cast<int>(sizeof(T)) : 1;
  using Word = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  using Bits = std::conditional_t<sizeof(T) == 1, uint8_t, std::conditional_t<sizeof(T) == 2, uint16_t, Word>>;
  Word words[(V + kPerWord - 1) / kPerWord];

  FUSEDMIX_DEVICE T get(int l) const { return bit_cast<T>(static_cast<Bits>(words[l / kPerWord] >> shift(l))); }
  // Once for each element, of a vector of zeros.
  FUSEDMIX_DEVICE void set(int l, T value) {
    words[l / kPerWord] |= static_cast<Word>(bit_cast<Bits>(value)) << shift(l);
  }

 private:
  static FUSEDMIX_DEVICE int shift(int l) { return l % kPerWord * static_cast<int>(8 * sizeof(T)); }
};

template <class T, int V>
FUSEDMIX_DEVICE Vec<T, V> load_vector(const void* at) {
  using Raw = typename device::RawOf<sizeof(T) * V>::type;
  const Raw raw = device::load(static_cast<const Raw*>(at));
  Vec<T, V> value{};
  memcpy(&value, &raw, sizeof(raw));
  return value;
}

template <class T, int V>
FUSEDMIX_DEVICE void store_vector(void* at, const Vec<T, V>& value) {
  using Raw = typename device::RawOf<sizeof(T) * V>::type;
  Raw raw;
  memcpy(&raw, &value, sizeof(raw));
  device::store(static_cast<Raw*>(at), raw);
}

// The loops over a sample, the innermost in vectors: what make_layout() found, with the channels of channels_last folded
// into the axis that they lie along.
struct Loops {
  int32_t rank;
  int32_t row_axis;   // of the innermost dim, -1: all its elements share a pixel
  int32_t row_inner;  // elements of it that share one
  bool small;         // column numbers fit 32 bits
  int64_t columns;    // vectors in a sample
  int64_t src_batch, dst_batch;
  Dim dims[kMaxDims];
};

// Where a thread's vector lies in every sample, and on the mask.
template <int V>
struct Place {
  int64_t src, dst;  // elements from the start of a sample
  int32_t at[3];     // (z, y, x), but for the row's axis
  int32_t lane[V];   // the coordinate of each element along the row's axis
};

template <int V, class Index>
FUSEDMIX_DEVICE Place<V> place_of(const Loops& loops, Index column) {
  Place<V> place{0, 0, {0, 0, 0}, {}};
  Index inner = 0;
  for (int d = loops.rank - 1; d >= 0; --d) {
    const Dim& dim = loops.dims[d];
    const Index size = static_cast<Index>(dim.size);
    const Index at = column % size;
    column /= size;
    place.src += static_cast<int64_t>(at) * dim.src;
    place.dst += static_cast<int64_t>(at) * dim.dst;
    if (d == loops.rank - 1) {
      inner = at * V;
    } else {
      FUSEDMIX_UNROLL
      for (int axis = 0; axis < 3; ++axis) place.at[axis] = dim.axis == axis ? static_cast<int32_t>(at) : place.at[axis];
    }
  }
  if (loops.row_axis >= 0) {
    int32_t pixel = static_cast<int32_t>(inner / static_cast<Index>(loops.row_inner));
    int32_t channel = static_cast<int32_t>(inner % static_cast<Index>(loops.row_inner));
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) {
      place.lane[l] = pixel;
      const bool full = ++channel == loops.row_inner;
      pixel += full ? 1 : 0;
      channel = full ? 0 : channel;
    }
  }
  return place;
}

template <int V>
FUSEDMIX_DEVICE Place<V> place_of(const Loops& loops, int64_t column) {
  // A 64-bit division costs several times a 32-bit one, and there is one for every dim.
  return loops.small ? place_of<V, uint32_t>(loops, static_cast<uint32_t>(column))
                     : place_of<V, uint64_t>(loops, static_cast<uint64_t>(column));
}

// What a mask does to a vector.
enum Reach : int32_t { kKeep = 0, kTake = 1, kSelect = 2, kBlend = 3 };

FUSEDMIX_DEVICE Reach reach_of(float w) { return w == 1.0f ? kKeep : (w == 0.0f ? kTake : kBlend); }

// The bounds of a box along the row's axis. Selected, not indexed: an index would put the mask into local memory.
FUSEDMIX_DEVICE int32_t along_row(const int32_t* bounds, int32_t axis) {
  return axis == 2 ? bounds[2] : (axis == 1 ? bounds[1] : bounds[0]);
}

template <int V>
FUSEDMIX_DEVICE bool reaches_row(const Mask& mask, const Place<V>& place, int32_t row_axis) {
  bool inside = true;
  FUSEDMIX_UNROLL
  for (int axis = 0; axis < 3; ++axis) {
    inside = inside && (axis == row_axis || (place.at[axis] >= mask.first[axis] && place.at[axis] < mask.stop[axis]));
  }
  return inside;
}

template <int V>
FUSEDMIX_DEVICE Reach reach(const Mask& mask, const Place<V>& place, int32_t row_axis) {
  if (mask.kind != kBox) return mask.kind == kConstant ? reach_of(mask.outer) : kBlend;
  if (!reaches_row<V>(mask, place, row_axis)) return reach_of(mask.outer);
  if (row_axis < 0) return reach_of(mask.inner);
  // The box is a stretch of the row, and lanes ascend.
  const int32_t first = along_row(mask.first, row_axis), stop = along_row(mask.stop, row_axis);
  if (place.lane[0] >= first && place.lane[V - 1] < stop) return reach_of(mask.inner);
  if (place.lane[V - 1] < first || place.lane[0] >= stop || first >= stop) return reach_of(mask.outer);
  return mask.outer == 1.0f && mask.inner == 0.0f ? kSelect : kBlend;
}

template <int V>
FUSEDMIX_DEVICE void weights(const Mask& mask, const Place<V>& place, int32_t row_axis, float (&w)[V]) {
  if (is_gaussian(mask.kind)) {
    float d2 = 0.0f;
    FUSEDMIX_UNROLL
    for (int axis = 0; axis < 3; ++axis) d2 += axis == row_axis ? 0.0f : distance2(mask, axis, place.at[axis]);
    const int32_t centre = along_row(mask.first, row_axis);
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) {
      const float d = row_axis < 0 ? 0.0f : static_cast<float>(place.lane[l] - centre);
      w[l] = gaussian(mask.kind, mask.outer, d2 + d * d);
    }
    return;
  }
  const bool box = mask.kind == kBox && reaches_row<V>(mask, place, row_axis);
  const int32_t first = along_row(mask.first, row_axis), stop = along_row(mask.stop, row_axis);
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) {
    const bool inside = box && (row_axis < 0 || (place.lane[l] >= first && place.lane[l] < stop));
    w[l] = inside ? mask.inner : mask.outer;
  }
}

// ---- masks that are stored, in kernels with kStored ----

// Where a thread's vector lies on every stored mask. In 32 bits: a plan counts pixels in as many.
struct OnPixels {
  uint32_t first;  // the pixel of element 0
  uint32_t step;   // from pixel to pixel along the row; 0 where all elements share one
};

template <int V>
FUSEDMIX_DEVICE OnPixels on_pixels(const Pixels& pixels, const Place<V>& place, int32_t row_axis) {
  OnPixels on{0, row_axis < 0 ? 0 : static_cast<uint32_t>(pixel_step(pixels, row_axis))};
  FUSEDMIX_UNROLL
  for (int axis = 0; axis < 3; ++axis) {
    const int32_t at = axis == row_axis ? place.lane[0] : place.at[axis];
    on.first += static_cast<uint32_t>(pixel_step(pixels, axis) * at);
  }
  return on;
}

// Where the mask of sample i begins, in words or levels.
FUSEDMIX_DEVICE int64_t stored_row(const PlanView& plan, int64_t i) {
  return plan.shared ? 0 : draw_index(plan.pixels.per, i, plan.pixels.batch) * plan.pixels.stride;
}

// What decides about a vector, loaded before it is known to be needed, so that loads are under way together: rows of other
// kinds have words too.
struct Glimpse {
  int32_t kind;
  uint32_t word;  // with the first element's pixel
};
// What is kept of it until the weights are: bit l that of element l, and the highest that the mask is stored.
constexpr uint32_t kIsStored = 1u << 31;

FUSEDMIX_DEVICE Glimpse glimpse(const PlanView& plan, const OnPixels& on, int64_t i) {
  Glimpse seen{device::load(plan.kind + (plan.shared ? 0 : i)), 0};
  if (plan.pixels.levels == nullptr) seen.word = device::load(plan.pixels.bits + stored_row(plan, i) + on.first / 32);
  return seen;
}

// Bit l: that of element l's pixel. Usually all of them are in the word that is there: vectors divide rows, and 32.
template <int V>
FUSEDMIX_DEVICE uint32_t lanes_of(const PlanView& plan, const OnPixels& on, const Place<V>& place, int64_t i, uint32_t word) {
  const uint32_t shift = on.first % 32;
  const auto last = static_cast<uint32_t>(on.step == 0 ? 0 : place.lane[V - 1] - place.lane[0]);
  if (on.step > 1 && V > 1) {  // the row is not the masks'
    uint32_t lanes = 0;
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) {
      const uint32_t q = on.first + on.step * static_cast<uint32_t>(place.lane[l] - place.lane[0]);
      lanes |= (device::load(plan.pixels.bits + stored_row(plan, i) + q / 32) >> (q % 32) & 1u) << l;
    }
    return lanes;
  }
  uint32_t window = word >> shift;
  if (shift + last >= 32) {  // rows of any length
    window |= device::load(plan.pixels.bits + stored_row(plan, i) + on.first / 32 + 1) << (32 - shift);
  }
  if (last == V - 1) return window & ((1u << V) - 1u);
  uint32_t lanes = 0;  // channels that lie together share pixels
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) lanes |= (window >> (on.step == 0 ? 0 : place.lane[l] - place.lane[0]) & 1u) << l;
  return lanes;
}

// What a stored mask does to the vector of sample i, and what of it the weights need. Levels are not looked at so early.
template <int V>
FUSEDMIX_DEVICE Reach stored_reach(const PlanView& plan, const OnPixels& on, const Place<V>& place, int64_t i, uint32_t word,
                                   uint32_t& lanes) {
  lanes = kIsStored;
  if (plan.pixels.levels != nullptr) return kBlend;
  const uint32_t ones = lanes_of<V>(plan, on, place, i, word);
  lanes |= ones;
  return ones == (1u << V) - 1u ? kKeep : (ones == 0 ? kTake : kSelect);
}

template <int V>
FUSEDMIX_DEVICE void stored_weights(const PlanView& plan, const OnPixels& on, const Place<V>& place, int64_t i, uint32_t lanes,
                                    float (&w)[V]) {
  if (plan.pixels.levels == nullptr) {
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) w[l] = (lanes >> l & 1u) != 0 ? 1.0f : 0.0f;
    return;
  }
  const uint16_t* mask = plan.pixels.levels + stored_row(plan, i) + on.first;  // soft masks are few: a load for each element
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) w[l] = weight_of_level(device::load(mask + on.step * static_cast<uint32_t>(place.lane[l] - place.lane[0])));
}

// ---- masks by formula ----

// The mask of a sample; what its kind does not need is not loaded. One that no formula has (FMix's without pixels, a kind that
// there is not), which only the host could refuse, makes NaN.
FUSEDMIX_DEVICE Mask load_mask(const PlanView& plan, int64_t i) {
  const int64_t row = plan.shared ? 0 : i;
  Mask mask{device::load(plan.kind + row), {0, 0, 0}, {0, 0, 0}, device::load(plan.value + 2 * row), 0.0f};
  if (static_cast<uint32_t>(mask.kind) > kGaussianComplement) {
    mask.kind = kConstant;
    mask.outer = NAN;
  }
  if (mask.kind == kConstant) return mask;
  FUSEDMIX_UNROLL
  for (int axis = 0; axis < 3; ++axis) mask.first[axis] = device::load(plan.geometry + 6 * row + axis);
  if (mask.kind != kBox) return mask;
  mask.inner = device::load(plan.value + 2 * row + 1);
  FUSEDMIX_UNROLL
  for (int axis = 0; axis < 3; ++axis) mask.stop[axis] = device::load(plan.geometry + 6 * row + 3 + axis);
  return mask;
}

}  // namespace fusedmix::cuda
