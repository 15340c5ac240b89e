// Several elements of a sample that lie together, and one access to them.
#pragma once

#include <type_traits>

#include "../include/fusedmix/blend.h"
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
  static FUSEDMIX_DEVICE Vec of(const Compute<T> (&numbers)[V]) {
    Vec made{};
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) {
      if constexpr (kPerWord == 2 && V % 2 == 0) {
        if (l % 2 == 0) made.words[l / 2] = pair_of<T>(numbers[l], numbers[l + 1]);
      } else {
        made.set(l, from_compute<T>(numbers[l]));
      }
    }
    return made;
  }

 private:
  static FUSEDMIX_DEVICE int shift(int l) { return l % kPerWord * static_cast<int>(8 * sizeof(T)); }
};

// A vector as one access moves it.
template <class T, int V>
using RawVec = typename device::RawOf<sizeof(T) * V>::type;

template <class T, int V>
FUSEDMIX_DEVICE Vec<T, V> from_raw(const RawVec<T, V> raw) {
  Vec<T, V> value{};
  memcpy(&value, &raw, sizeof(raw));
  return value;
}
template <class T, int V>
FUSEDMIX_DEVICE RawVec<T, V> to_raw(const Vec<T, V>& value) {
  RawVec<T, V> raw;
  memcpy(&raw, &value, sizeof(raw));
  return raw;
}

template <class T, int V>
FUSEDMIX_DEVICE Vec<T, V> load_vector(const void* at) {
  return from_raw<T, V>(device::load(static_cast<const RawVec<T, V>*>(at)));
}
template <class T, int V>
FUSEDMIX_DEVICE void store_vector(void* at, const Vec<T, V>& value) {
  device::store(static_cast<RawVec<T, V>*>(at), to_raw(value));
}

// One dim of a sample, in vectors if it is the innermost. Strides are in bytes.
struct Loop {
  Divisor size;
  int32_t axis;  // 0, 1, 2 = z, y, x where masks depend on it, else -1
  int64_t src, dst;
};

// The loops over a sample: what make_layout() found, with the channels of channels_last folded into the axis that they lie
// along.
struct Loops {
  int32_t rank;
  int32_t row_axis;   // of the innermost dim, -1: all its elements share a pixel
  int32_t row_inner;  // elements of it that share one
  Divisor by_inner;
  uint32_t columns;  // vectors in a sample, below 2^31
  int64_t src_batch, dst_batch;
  Loop dims[kMaxDims];
};

// Where a thread's vector lies in every sample, and on the mask.
template <int V>
struct Place {
  int64_t src, dst;  // bytes from the start of a sample
  int32_t at[3];     // (z, y, x), but for the row's axis
  int32_t element;   // of the row, the first; 0 where all share a pixel
  int32_t first;     // the first element's coordinate along the row's axis; 0 where there is none
  int32_t channel;   // and which it is of those that share it
  int32_t lane[V];   // from there to that of each element
};

// lane[l] where l is not known to the compiler: an index would put the array into local memory.
FUSEDMIX_DEVICE int32_t lane_at(const Loops& loops, int32_t channel, int32_t l) {
  return static_cast<int32_t>(divide(static_cast<uint32_t>(channel + l), loops.by_inner));
}

template <int V>
FUSEDMIX_DEVICE Place<V> place_of(const Loops& loops, uint32_t column) {
  Place<V> place{0, 0, {0, 0, 0}, 0, 0, 0, {}};
  // Not unrolled: of the dims that there may be, most samples have two or three.
  FUSEDMIX_NO_UNROLL
  for (int d = loops.rank - 1; d >= 0; --d) {
    const Loop& dim = loops.dims[d];
    const uint32_t rest = divide(column, dim.size), at = column - rest * dim.size.number;
    column = rest;
    place.src += static_cast<int64_t>(at) * dim.src;
    place.dst += static_cast<int64_t>(at) * dim.dst;
    if (d == loops.rank - 1) {
      place.element = loops.row_axis < 0 ? 0 : static_cast<int32_t>(at) * V;
    } else {
      FUSEDMIX_UNROLL
      for (int axis = 0; axis < 3; ++axis) place.at[axis] = dim.axis == axis ? static_cast<int32_t>(at) : place.at[axis];
    }
  }
  if (loops.row_inner == 1) {
    place.first = place.element;
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) place.lane[l] = l;
    return place;
  }
  const uint32_t first = divide(static_cast<uint32_t>(place.element), loops.by_inner);
  place.first = static_cast<int32_t>(first);
  place.channel = static_cast<int32_t>(place.element - first * loops.by_inner.number);
  int32_t pixel = 0, channel = place.channel;
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) {
    place.lane[l] = pixel;
    const bool full = ++channel == loops.row_inner;
    pixel += full ? 1 : 0;
    channel = full ? 0 : channel;
  }
  return place;
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

// The lanes of a vector that a row's box holds: from `first` on, below `stop`.
struct LaneRange {
  int32_t first, stop;
  FUSEDMIX_DEVICE bool holds(int32_t l) const { return l >= first && l < stop; }
  FUSEDMIX_DEVICE bool holds_all(int32_t lanes) const { return first <= 0 && stop >= lanes; }
  FUSEDMIX_DEVICE bool holds_none(int32_t lanes) const { return stop <= 0 || first >= lanes || stop <= first; }
};

template <int V>
FUSEDMIX_DEVICE LaneRange lanes_in(const Box::Row& row, const Place<V>& place, const Loops& loops) {
  return {row.begin * loops.row_inner - place.element, row.end * loops.row_inner - place.element};
}

// What a row does to the vector; lanes ascend.
template <int V, class Row>
FUSEDMIX_DEVICE Reach reach_of_row(const Row& row, const Place<V>& place, const Loops&) {
  const Reach reach = row.reach(place.first, place.first + place.lane[V - 1]);
  return reach == kSelect ? kBlend : reach;
}
template <int V>
FUSEDMIX_DEVICE Reach reach_of_row(const Box::Row& row, const Place<V>& place, const Loops& loops) {
  const LaneRange in = lanes_in(row, place, loops);
  if (in.holds_all(V)) return reach_of(row.inner);
  return in.holds_none(V) ? reach_of(row.outer) : kBlend;
}

// Two vectors, blended by weight(l) in lane l.
template <class T, int V, class Weight>
FUSEDMIX_DEVICE Vec<T, V> blend_lanes(const Weight& weight, const Vec<T, V>& a, const Vec<T, V>& b) {
  if constexpr (sizeof(T) == 1) {  // the differences of bytes are numbers, whatever the weight: nothing is to be left out
    const auto mixed = [&](int l) {
      if (l >= V) return 0u;
      const float x = raised(a.words[l / 4], l % 4), y = raised(b.words[l / 4], l % 4);
      return bit_cast<uint32_t>(raised_byte(weight(l), x - y, y + (kRaised - 0x1p23f)));
    };
    Vec<T, V> out;
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; l += 4) out.words[l / 4] = low_bytes(mixed(l), mixed(l + 1), mixed(l + 2), mixed(l + 3));
    return out;
  } else {
    Compute<T> mixed[V];
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) {
      const Compute<T> x = to_compute(a.get(l)), y = to_compute(b.get(l));
      const float w = weight(l);
      const Compute<T> sum = fma(static_cast<Compute<T>>(w), x - y, y);
      mixed[l] = w == 0.0f ? y : (w == 1.0f || x == y ? x : sum);
    }
    return Vec<T, V>::of(mixed);
  }
}

// Lanes in the range are b's, all others a's: words by masks, whatever the type.
template <class T, int V>
FUSEDMIX_DEVICE Vec<T, V> pick(const LaneRange& in, const Vec<T, V>& a, const Vec<T, V>& b) {
  using Word = typename Vec<T, V>::Word;
  constexpr int kBits = 8 * sizeof(T), kWord = 8 * sizeof(Word);
  const auto below = [](int32_t bits) { return bits <= 0 ? Word{0} : (bits >= kWord ? ~Word{0} : (Word{1} << bits) - 1); };
  // Beyond the vector nothing changes: so the products below fit.
  const int32_t first = in.first < 0 ? 0 : (in.first > V ? V : in.first), stop = in.stop < 0 ? 0 : (in.stop > V ? V : in.stop);
  Vec<T, V> out;
  FUSEDMIX_UNROLL
  for (int k = 0; k < static_cast<int>(sizeof(out.words) / sizeof(Word)); ++k) {
    const Word taken = below(stop * kBits - k * kWord) & ~below(first * kBits - k * kWord);
    out.words[k] = (a.words[k] & ~taken) | (b.words[k] & taken);
  }
  return out;
}

// w[l] = f(l), in a loop: the code of f once, for what is long and seldom.
template <int V, class F>
FUSEDMIX_DEVICE void one_by_one(float (&w)[V], const F& f) {
  FUSEDMIX_NO_UNROLL
  for (int l = 0; l < V; ++l) {
    const float one = f(l);
    FUSEDMIX_UNROLL
    for (int k = 0; k < V; ++k) w[k] = k == l ? one : w[k];
  }
}

// The weights of a vector by a row. Of a Gaussian at distances that are counted from the first lane's, which costs one conversion
// and not one a lane.
template <int V, class Row>
FUSEDMIX_DEVICE void row_weights(const Row& row, const Place<V>& place, const Loops&, float (&w)[V]) {
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) w[l] = row(place.first + place.lane[l]);
}
template <int V>
FUSEDMIX_DEVICE void row_weights(const Gaussian::Row& row, const Place<V>& place, const Loops&, float (&w)[V]) {
  const float first = row.from_first(place.first);
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) w[l] = row.at(first + static_cast<float>(place.lane[l]));
}
template <int V>
FUSEDMIX_DEVICE void row_weights(const Smooth::Row& row, const Place<V>& place, const Loops& loops, float (&w)[V]) {
  one_by_one(w, [&](int l) { return row(place.first + lane_at(loops, place.channel, l)); });
}
template <int V>
FUSEDMIX_DEVICE void row_weights(const Grid::Row& row, const Place<V>& place, const Loops& loops, float (&w)[V]) {
  one_by_one(w, [&](int l) { return row(place.first + lane_at(loops, place.channel, l)); });
}

template <int32_t kFamilies, int V>
FUSEDMIX_DEVICE void weights(const Record& record, const Place<V>& place, const Loops& loops, float (&w)[V]) {
  of_kind_in<kFamilies>(record, [&](const auto& mask) { row_weights(mask.along(place.at, loops.row_axis), place, loops, w); });
}

// ---- masks that are stored ----

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
    const int32_t at = axis == row_axis ? place.first : place.at[axis];
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

FUSEDMIX_DEVICE Glimpse glimpse(const PlanView& plan, const OnPixels& on, int64_t i) {
  Glimpse seen{device::load(&plan.masks[plan.shared ? 0 : i].kind), 0};
  if (plan.pixels.levels == nullptr) seen.word = device::load(plan.pixels.bits + stored_row(plan, i) + on.first / 32);
  return seen;
}

// Bit l: that of element l's pixel. Usually all of them are in the word that is there: vectors divide rows, and 32.
template <int V>
FUSEDMIX_DEVICE uint32_t lanes_of(const PlanView& plan, const OnPixels& on, const Place<V>& place, int64_t i, uint32_t word) {
  const uint32_t shift = on.first % 32;
  const auto last = static_cast<uint32_t>(on.step == 0 ? 0 : place.lane[V - 1]);
  if (on.step > 1 && V > 1) {  // the row is not the masks'
    uint32_t lanes = 0;
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) {
      const uint32_t q = on.first + on.step * static_cast<uint32_t>(place.lane[l]);
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
  for (int l = 0; l < V; ++l) lanes |= (window >> (on.step == 0 ? 0 : place.lane[l]) & 1u) << l;
  return lanes;
}

// What a stored mask does to the vector of sample i. Levels are not looked at so early.
template <int V>
FUSEDMIX_DEVICE Reach stored_reach(const PlanView& plan, uint32_t ones) {
  if (plan.pixels.levels != nullptr) return kBlend;
  return ones == (1u << V) - 1u ? kKeep : (ones == 0 ? kTake : kBlend);
}

// The weights of the vector: bits of `ones`, or levels. Soft masks are few: a load for each element.
template <int V>
FUSEDMIX_DEVICE void stored_weights(const PlanView& plan, const OnPixels& on, const Place<V>& place, const Loops& loops, int64_t i,
                                    uint32_t ones, float (&w)[V]) {
  if (plan.pixels.levels == nullptr) {
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) w[l] = (ones >> l & 1u) != 0 ? 1.0f : 0.0f;
    return;
  }
  const uint16_t* mask = plan.pixels.levels + stored_row(plan, i) + on.first;
  one_by_one(w, [&](int l) {
    return weight_of_level(device::load(mask + on.step * static_cast<uint32_t>(lane_at(loops, place.channel, l))));
  });
}

}  // namespace fusedmix::cuda
