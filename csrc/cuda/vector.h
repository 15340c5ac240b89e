// Several elements of a sample that lie together, and one access to them.
#pragma once

#include <type_traits>

#include "../include/fusedmix/blend.h"
#include "kernels.h"
#include "partner.h"

namespace fusedmix::cuda {

// Elements of less than 4 bytes stay packed in words until they are used. Apart, each would take a register of its own, and
// with 216 of them (uint8) two blocks would fit on a multiprocessor, not three.
template <class T, int V>
struct Vec {
  static constexpr int kPerWord = sizeof(T) < 4 ? 4 / static_cast<int>(sizeof(T)) : 1;
  using Word = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  using Bits = std::conditional_t<sizeof(T) == 1, uint8_t, std::conditional_t<sizeof(T) == 2, uint16_t, Word>>;
  static constexpr int kWords = (V + kPerWord - 1) / kPerWord;
  Word words[kWords];

  FUSEDMIX_DEVICE T get(int l) const { return bit_cast<T>(static_cast<Bits>(words[l / kPerWord] >> shift(l))); }
  // Once for each element, of a vector of zeros.
  FUSEDMIX_DEVICE void set(int l, T value) {
    words[l / kPerWord] |= static_cast<Word>(bit_cast<Bits>(value)) << shift(l);
  }
  // The same where l is not known to the compiler: an index would put the vector into local memory.
  FUSEDMIX_DEVICE void put(int l, T value) {
    FUSEDMIX_UNROLL
    for (int n = 0; n < kWords; ++n) words[n] |= n == l / kPerWord ? static_cast<Word>(bit_cast<Bits>(value)) << shift(l) : 0;
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

// f of an element of a floating-point type that is computed with in C: asked at run time, where a kernel is of all of them.
template <class C, class F>
FUSEDMIX_DEVICE void of_elements(ElementType type, const F& f) {
  if constexpr (sizeof(C) == 8) {
    f(double{});
  } else if (type == ElementType::kFloat16) {
    f(Half{});
  } else if (type == ElementType::kBFloat16) {
    f(BFloat16{});
  } else {
    f(float{});
  }
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
  uint32_t signs;     // of int16: the sign bits of two. Flipped they are uint16, 2^15 more, which leaves ties as they are
  Divisor by_inner;
  uint32_t columns;  // vectors in a sample, below 2^31
  int64_t src_batch, dst_batch;
  Loop dims[kMaxDims];
};

// With a row that is cut into so many vectors of that width. Host code.
inline Loops loops_of(const Layout& layout, ElementType type, int32_t width, int64_t columns) {
  const Row row = innermost_row(layout);
  const int64_t size = element_size(type);
  const auto inner = static_cast<int32_t>(row.axis < 0 ? INT32_MAX : row.inner);
  const uint32_t signs = type == ElementType::kInt16 ? 0x80008000u : 0u;
  Loops loops{row.outer_rank + 1, row.axis, inner, signs, divisor(inner), static_cast<uint32_t>(columns), layout.src_batch * size,
              layout.dst_batch * size, {}};
  const auto loop = [&](const Dim& dim) { return Loop{divisor(dim.size), dim.axis, dim.src * size, dim.dst * size}; };
  for (int d = 0; d < row.outer_rank; ++d) loops.dims[d] = loop(layout.dims[d]);
  loops.dims[row.outer_rank] = loop({row.length / width, row.src_step * width, row.dst_step * width, row.axis});
  return loops;
}

// An element as a number, and back: integers of 16 bits with the sign that those of the batch may have.
template <class T>
FUSEDMIX_DEVICE Compute<T> number_of(T value, const Loops& loops) {
  if constexpr (std::is_same_v<T, uint16_t>) {
    const uint32_t sign = loops.signs & 0x8000u;
    return static_cast<float>(static_cast<int32_t>(value ^ sign) - static_cast<int32_t>(sign));
  } else {
    return to_compute(value);
  }
}
template <class T>
FUSEDMIX_DEVICE T rounded_to(Compute<T> x, const Loops& loops) {
  if constexpr (std::is_same_v<T, uint16_t>) {
    const auto least = static_cast<float>(-static_cast<int32_t>(loops.signs & 0x8000u));
    return static_cast<T>(nearest_integer(x, {least, least + 65535.0f}));
  } else {
    return rounded<T>(x);
  }
}

// A small number for each lane; of 16 lanes four in a word, because a register for each would be a quarter of what a thread has.
template <int V>
struct Lanes {
  static constexpr int kPerWord = V == 16 ? 4 : 1, kBits = 32 / kPerWord;
  uint32_t words[V / kPerWord];

  FUSEDMIX_DEVICE int32_t operator[](int l) const {
    return static_cast<int32_t>(kPerWord == 1 ? words[l] : words[l / kPerWord] >> l % kPerWord * kBits & 0xFFu);
  }
  // Once for each lane, of zeros.
  FUSEDMIX_DEVICE void set(int l, int32_t value) { words[l / kPerWord] |= static_cast<uint32_t>(value) << l % kPerWord * kBits; }
};

// Where a thread's vector lies in every sample, and on the mask.
template <int V>
struct Place {
  int64_t src, dst;  // bytes from the start of a sample
  int32_t at[3];     // (z, y, x), but for the row's axis
  int32_t element;   // of the row, the first; 0 where all share a pixel
  int32_t first;     // the first element's coordinate along the row's axis; 0 where there is none
  int32_t channel;   // and which it is of those that share it
  Lanes<V> lane;     // from there to that of each element
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
    for (int l = 0; l < V; ++l) place.lane.set(l, l);
    return place;
  }
  const uint32_t first = divide(static_cast<uint32_t>(place.element), loops.by_inner);
  place.first = static_cast<int32_t>(first);
  place.channel = static_cast<int32_t>(place.element - first * loops.by_inner.number);
  int32_t pixel = 0, channel = place.channel;
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) {
    place.lane.set(l, pixel);
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

// Reads memory for the functions of masks.h.
struct Load {
  template <class T>
  FUSEDMIX_DEVICE T operator()(const T* at) const { return device::load(at); }
};

FUSEDMIX_DEVICE void store_mask(Record* mask, const Record& record) {
  const auto raw = bit_cast<RawRecord>(record);
  FUSEDMIX_UNROLL
  for (int k = 0; k < 3; ++k) device::store(reinterpret_cast<RawRecord*>(mask)->part + k, raw.part[k]);
}

// Bit l: that of lane l.
template <int V>
constexpr uint32_t kAllLanes = (1u << V) - 1u;

// The lanes of a vector that a row's box holds.
template <int V>
FUSEDMIX_DEVICE uint32_t lanes_in(const Box::Row& row, const Place<V>& place, const Loops& loops) {
  const auto from = [&](int32_t edge) {
    const int32_t lane = edge * loops.row_inner - place.element;
    return ~0u << (lane < 0 ? 0 : (lane > V ? V : lane));
  };
  return from(row.begin) & ~from(row.end);
}

// The lanes whose cells are chosen. Cells are some pixels long, so that most vectors are in one.
template <int V, class Load>
FUSEDMIX_DEVICE uint32_t lanes_in(const Grid::Row<Load>& row, const Place<V>& place, const Loops& loops) {
  uint32_t lanes = 0, before = 0;
  FUSEDMIX_NO_UNROLL
  for (int n = 0; n < V; ++n) {
    const int l = n == 0 ? V - 1 : n - 1;  // the last, and then from the first on
    const uint32_t cell = row.cell(place.first + lane_at(loops, place.channel, l));
    const bool chosen = row.chosen.one(row.base + row.step * cell);
    if (n == 1 && cell == before) return chosen ? kAllLanes<V> : 0;
    before = cell;
    lanes |= chosen ? 1u << l : 0u;
  }
  return lanes;
}

template <int V>
FUSEDMIX_DEVICE void two_weights(uint32_t inside, float inner, float outer, float (&w)[V]) {
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) w[l] = (inside >> l & 1u) != 0 ? inner : outer;
}

// Two vectors, blended by weight(l) in lane l.
template <class T, int V, class Weight>
FUSEDMIX_DEVICE Vec<T, V> blend_lanes(const Weight& weight, const Vec<T, V>& a, const Vec<T, V>& b) {
  if constexpr (sizeof(T) == 1) {  // the differences of bytes are numbers, whatever the weight: nothing is to be left out
    const auto mixed = [&](int l) {
      if (l >= V) return 0u;
      const float x = raised(a.words[l / 4], l % 4), y = raised(b.words[l / 4], l % 4);
      return bit_cast<uint32_t>(raised_integer(weight(l), x - y, y + (kRaised - 0x1p23f), bounds_of<T>()));
    };
    Vec<T, V> out;
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; l += 4) out.words[l / 4] = low_bytes(mixed(l), mixed(l + 1), mixed(l + 2), mixed(l + 3));
    return out;
  } else if constexpr (std::is_integral_v<T>) {
    Vec<T, V> out{};
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) {
      const float x = raised_half(a.words[l / 2], l % 2), y = raised_half(b.words[l / 2], l % 2);
      const float mixed = raised_integer(weight(l), x - y, y + (kRaised - 0x1p23f), bounds_of<T>());
      out.set(l, static_cast<T>(bit_cast<uint32_t>(mixed)));
    }
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

// The same of a batch with those loops, whose integers of 16 bits may have signs.
template <class T, int V, class Weight>
FUSEDMIX_DEVICE Vec<T, V> blend_lanes(const Loops& loops, const Weight& weight, Vec<T, V> a, Vec<T, V> b) {
  if constexpr (std::is_same_v<T, uint16_t>) {
    const auto flip = [&](Vec<T, V>& v) {
      FUSEDMIX_UNROLL
      for (int k = 0; k < Vec<T, V>::kWords; ++k) v.words[k] ^= loops.signs;
    };
    flip(a), flip(b);
    Vec<T, V> out = blend_lanes(weight, a, b);
    flip(out);
    return out;
  } else {
    return blend_lanes(weight, a, b);
  }
}

// Lanes that are `taken` are b's, all others a's.
template <class T, int V>
FUSEDMIX_DEVICE Vec<T, V> pick(uint32_t taken, const Vec<T, V>& a, const Vec<T, V>& b) {
  using Word = typename Vec<T, V>::Word;
  constexpr int kPerWord = Vec<T, V>::kPerWord;
  Vec<T, V> out;
  FUSEDMIX_UNROLL
  for (int k = 0; k < static_cast<int>(sizeof(out.words) / sizeof(Word)); ++k) {
    if constexpr (kPerWord == 1) {
      out.words[k] = (taken >> k & 1u) != 0 ? b.words[k] : a.words[k];
    } else {
      const uint32_t of_b = spread<sizeof(T)>(taken >> k * kPerWord);
      out.words[k] = (a.words[k] & ~of_b) | (b.words[k] & of_b);
    }
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
// for a lane and not one for every mask; but of 16 lanes these would wait in as many registers.
template <int V>
FUSEDMIX_DEVICE void row_weights(const Uniform& row, const Place<V>&, const Loops&, float (&w)[V]) {
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) w[l] = row.w;
}
template <int V>
FUSEDMIX_DEVICE void row_weights(const Box::Row& row, const Place<V>& place, const Loops& loops, float (&w)[V]) {
  two_weights(lanes_in(row, place, loops), row.inner, row.outer, w);
}
template <int V>
FUSEDMIX_DEVICE void row_weights(const Gaussian::Row& row, const Place<V>& place, const Loops&, float (&w)[V]) {
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) {
    w[l] = V == 16 ? row(place.first + place.lane[l]) : row.at(row.from_first(place.first) + static_cast<float>(place.lane[l]));
  }
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
FUSEDMIX_DEVICE int64_t stored_row(const PlanView& plan, uint32_t i) {
  const auto row = static_cast<uint32_t>(draw_index(plan.pixels.per, i, static_cast<uint32_t>(plan.pixels.batch)));
  return plan.shared ? 0 : row * plan.pixels.stride;
}

// What decides about a vector, loaded before it is known to be needed, so that loads are under way together: rows of other
// kinds have words too.
struct Glimpse {
  int32_t kind;
  int64_t row;    // of sample i's mask
  uint32_t word;  // with the first element's pixel
};

FUSEDMIX_DEVICE Glimpse glimpse(const PlanView& plan, const OnPixels& on, uint32_t i) {
  Glimpse seen{device::load(&plan.masks[plan.shared ? 0 : i].kind), stored_row(plan, i), 0};
  if (plan.pixels.levels == nullptr) seen.word = device::load(plan.pixels.bits + seen.row + on.first / 32);
  return seen;
}

// Bit l: that of element l's pixel. Usually all of them are in the word that is there: vectors divide rows, and 32.
template <int V>
FUSEDMIX_DEVICE uint32_t lanes_of(const PlanView& plan, const OnPixels& on, const Place<V>& place, const Loops& loops,
                                  const Glimpse& seen) {
  const uint32_t* bits = plan.pixels.bits + seen.row;
  const uint32_t shift = on.first % 32;
  const auto last = static_cast<uint32_t>(on.step == 0 ? 0 : place.lane[V - 1]);
  if (on.step > 1 && V > 1) {  // the row is not the masks'
    uint32_t lanes = 0;
    FUSEDMIX_NO_UNROLL
    for (int l = 0; l < V; ++l) {
      const uint32_t q = on.first + on.step * static_cast<uint32_t>(lane_at(loops, place.channel, l));
      lanes |= (device::load(bits + q / 32) >> (q % 32) & 1u) << l;
    }
    return lanes;
  }
  uint32_t window = seen.word >> shift;
  if (shift + last >= 32) {  // rows of any length
    window |= device::load(bits + on.first / 32 + 1) << (32 - shift);
  }
  if (last == V - 1) return window & kAllLanes<V>;
  uint32_t lanes = 0;  // channels that lie together share pixels
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) lanes |= (window >> (on.step == 0 ? 0 : place.lane[l]) & 1u) << l;
  return lanes;
}

// The weights of a vector by levels. Soft masks are few: a load for each element.
template <int V>
FUSEDMIX_DEVICE void level_weights(const PlanView& plan, const OnPixels& on, const Place<V>& place, const Loops& loops, int64_t row,
                                   float (&w)[V]) {
  const uint16_t* mask = plan.pixels.levels + row + on.first;
  one_by_one(w, [&](int l) {
    return weight_of_level(device::load(mask + on.step * static_cast<uint32_t>(lane_at(loops, place.channel, l))));
  });
}

// M at a pixel, by formula or by its cell.
FUSEDMIX_HD float formula_at(const PlanView& plan, int64_t i, const Record& mask, const int32_t (&at)[3]) {
  return of_kind(mask, [&](const auto& family) { return row_of(family, at, -1, plan, i, Load{})(0); });
}
// The same, or as it is stored.
FUSEDMIX_DEVICE float weight_at(const PlanView& plan, uint32_t i, const int32_t (&at)[3]) {
  const Record mask = load_mask(plan, i);
  if (may_be_stored(plan) && is_stored(mask)) {
    int64_t pixel = 0;
    FUSEDMIX_UNROLL
    for (int axis = 0; axis < 3; ++axis) pixel += pixel_step(plan.pixels, axis) * at[axis];
    const int64_t row = stored_row(plan, i);
    if (plan.pixels.levels != nullptr) return weight_of_level(device::load(plan.pixels.levels + row + pixel));
    return static_cast<float>(device::load(plan.pixels.bits + row + pixel / 32) >> (pixel % 32) & 1u);
  }
  return formula_at(plan, i, mask, at);
}

// ---- many families ----

// What a mask says of a vector, in a form that families share: a kernel of many then has what follows once for each form.
struct Form {
  enum : int32_t { kTwo, kCurve, kLevels, kWeights } is;
  // kTwo: one number in the lanes inside, another one in all others.
  uint32_t inside;
  float inner, outer;
  // kCurve: sign·exp(-rate·e²) + add. Of a Gaussian e is the distance from a square without a side.
  Smooth::Row curve;
  float sign, add;
};

FUSEDMIX_DEVICE Form two_numbers(uint32_t inside, float inner, float outer) { return {Form::kTwo, inside, inner, outer, {}, 0.0f, 0.0f}; }
FUSEDMIX_DEVICE Form curve(const Smooth::Row& row, float sign, float add) { return {Form::kCurve, 0, 0.0f, 0.0f, row, sign, add}; }

template <int V>
FUSEDMIX_DEVICE Form form_of(const Uniform& row, const Place<V>&, const Loops&, float (&)[V]) {
  return two_numbers(0, row.w, row.w);
}
template <int V>
FUSEDMIX_DEVICE Form form_of(const Box::Row& row, const Place<V>& place, const Loops& loops, float (&)[V]) {
  return two_numbers(lanes_in(row, place, loops), row.inner, row.outer);
}
template <int V, class Load>
FUSEDMIX_DEVICE Form form_of(const Grid::Row<Load>& row, const Place<V>& place, const Loops& loops, float (&)[V]) {
  return row.chosen.missing() ? two_numbers(0, NAN, NAN) : two_numbers(lanes_in(row, place, loops), 1.0f, 0.0f);
}
template <int V>
FUSEDMIX_DEVICE Form form_of(const Gaussian::Row& row, const Place<V>&, const Loops&, float (&)[V]) {
  return curve({false, row.rate, 0.0f, row.d2, 0.0f, row.centre}, row.sign, row.add);
}
template <int V>
FUSEDMIX_DEVICE Form form_of(const Smooth::Row& row, const Place<V>&, const Loops&, float (&)[V]) {
  return curve(row, -1.0f, 1.0f);
}
// The form of any other row.
template <int V, class Row>
FUSEDMIX_DEVICE Form form_of(const Row& row, const Place<V>& place, const Loops& loops, float (&w)[V]) {
  one_by_one(w, [&](int l) { return row(place.first + lane_at(loops, place.channel, l)); });
  return {Form::kWeights, 0, 0.0f, 0.0f, {}, 0.0f, 0.0f};
}

// The weights of the vector of a sample's mask, and what they do to it. `seen`: of plans with masks that are stored.
template <int32_t kFamilies, int V>
FUSEDMIX_DEVICE Reach weigh(const PlanView& plan, uint32_t i, const OnPixels& on, const Glimpse& seen, const Place<V>& place,
                            const Loops& loops, float (&w)[V]) {
  const Form form = of_kind_in<kFamilies>(load_mask(plan, i), [&](const auto& mask) {
    if constexpr (std::decay_t<decltype(mask)>::kHasPixels) {
      if (may_be_stored(plan)) {
        if (plan.pixels.levels != nullptr) return Form{Form::kLevels, 0, 0.0f, 0.0f, {}, 0.0f, 0.0f};
        return two_numbers(lanes_of(plan, on, place, loops, seen), 1.0f, 0.0f);
      }
    }
    return form_of(row_of(mask, place.at, loops.row_axis, plan, i, Load{}), place, loops, w);
  });
  if (form.is == Form::kTwo) {
    two_weights(form.inside, form.inner, form.outer, w);
    if (form.inside == kAllLanes<V>) return reach_of(form.inner);
    return form.inside == 0 ? reach_of(form.outer) : kBlend;
  }
  if (form.is == Form::kWeights) return kBlend;
  if ((kFamilies & kLevels) != 0 && form.is == Form::kLevels) {
    level_weights(plan, on, place, loops, seen.row, w);
    return kBlend;
  }
  const auto distance = [&](int32_t lane) { return static_cast<float>(apart(place.first + lane, form.curve.centre)); };
  float others = form.curve.others;
  if ((kFamilies & kSmooth) != 0 && form.curve.disc) {
    one_by_one(w, [&](int l) { return form.curve.from_disc(distance(lane_at(loops, place.channel, l))); });
    others = 0.0f;
  } else {
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) w[l] = form.curve.from_square(distance(place.lane[l]));
  }
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) {
    float e2 = others + w[l] * w[l];
    if constexpr ((kFamilies & kSmooth) != 0) e2 += form.curve.after;
    w[l] = fma(form.sign, near_exp(form.curve.rate, e2), form.add);
  }
  return kBlend;
}

}  // namespace fusedmix::cuda
