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
  int32_t lane[V];   // the coordinate of each element along the row's axis; 0 where there is none
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

// A record, 16 bytes at a time.
struct RawRecord {
  using Raw = device::RawOf<16>::type;
  Raw part[3];
};

FUSEDMIX_DEVICE Record load_mask(const PlanView& plan, int64_t i) {
  const auto* from = reinterpret_cast<const RawRecord*>(plan.masks + (plan.shared ? 0 : i));
  return bit_cast<Record>(RawRecord{{device::load(from->part), device::load(from->part + 1), device::load(from->part + 2)}});
}

FUSEDMIX_DEVICE void store_mask(Record* mask, const Record& record) {
  const auto raw = bit_cast<RawRecord>(record);
  FUSEDMIX_UNROLL
  for (int k = 0; k < 3; ++k) device::store(reinterpret_cast<RawRecord*>(mask)->part + k, raw.part[k]);
}

// Lanes ascend.
template <int V>
FUSEDMIX_DEVICE Reach reach(const Record& mask, const Place<V>& place, int32_t row_axis) {
  return reach(mask, Stretch{{place.at[0], place.at[1], place.at[2]}, row_axis, place.lane[0], place.lane[V - 1]});
}

template <int V>
FUSEDMIX_DEVICE void weights(const Record& record, const Place<V>& place, int32_t row_axis, float (&w)[V]) {
  of_kind(record, [&](const auto& mask) {
    const auto row = mask.along(place.at, row_axis);
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) w[l] = row(place.lane[l]);
  });
}

// ---- masks that are stored, in kernels with kPixels ----

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
  Glimpse seen{device::load(&plan.masks[plan.shared ? 0 : i].kind), 0};
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

}  // namespace fusedmix::cuda
