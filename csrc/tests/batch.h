// Batches and plans to test with: values, memory layouts, partners and masks of every kind, from a seed.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "../include/fusedmix/requests.h"
#include "check.h"

namespace fusedmix::test {

constexpr ElementType kTypes[] = {ElementType::kFloat32, ElementType::kFloat16, ElementType::kBFloat16, ElementType::kFloat64,
                                  ElementType::kUInt8,   ElementType::kInt16,   ElementType::kUInt16};
inline const char* name_of(ElementType type) {
  constexpr const char* names[] = {"float32", "float16", "bfloat16", "float64", "uint8", "int16", "uint16"};
  return names[static_cast<int>(type)];
}

// As a type of labels.
inline LabelType label_type(ElementType type) { return static_cast<LabelType>(kLabelFloat + static_cast<int>(type)); }

// An element as a number, without the conversions under test.
inline double read_element(ElementType type, const void* memory, int64_t at) {
  const auto bits = [&](auto as) {
    std::memcpy(&as, static_cast<const char*>(memory) + at * static_cast<int64_t>(sizeof(as)), sizeof(as));
    return as;
  };
  switch (type) {
    case ElementType::kFloat32: return bits(float{});
    case ElementType::kFloat64: return bits(double{});
    case ElementType::kUInt8: return bits(uint8_t{});
    case ElementType::kInt16: return bits(int16_t{});
    case ElementType::kUInt16: return bits(uint16_t{});
    case ElementType::kBFloat16: {
      const uint32_t wide = static_cast<uint32_t>(bits(uint16_t{})) << 16;
      float value;
      std::memcpy(&value, &wide, sizeof(value));
      return value;
    }
    default: break;
  }
  const uint16_t half = bits(uint16_t{});
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double sign = half >> 15 ? -1.0 : 1.0;
  if (exponent == 31) return fraction ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

enum class Order {
  kContiguous,
  kChannelsLast,
  kPadded,      // rows start at multiples of 16 elements: vectors with gaps between them
  kSliced,      // a crop that begins one element into its rows: nothing is aligned
  kBatchInside  // the batch is the innermost dim
};
constexpr Order kOrders[] = {Order::kContiguous, Order::kChannelsLast, Order::kPadded, Order::kSliced, Order::kBatchInside};
inline const char* name_of(Order order) {
  constexpr const char* names[] = {"contiguous", "channels last", "padded", "sliced", "batch inside"};
  return names[static_cast<int>(order)];
}

// (B, C, *S) elements in memory.
struct Batch {
  ElementType type;
  std::vector<int64_t> sizes, strides;
  int64_t first = 0;  // elements before the batch
  std::vector<char> memory;

  Batch(ElementType element_type, std::vector<int64_t> shape, Order order) : type(element_type), sizes(std::move(shape)) {
    const int n = static_cast<int>(sizes.size());
    std::vector<int64_t> outer(n), step = sizes;  // dims from the outermost; the size that each is given
    std::iota(outer.begin(), outer.end(), int64_t{0});
    if (order == Order::kChannelsLast) std::rotate(outer.begin() + 1, outer.begin() + 2, outer.end());
    if (order == Order::kBatchInside) std::rotate(outer.begin(), outer.begin() + 1, outer.end());
    if (order == Order::kPadded) step.back() = (step.back() + 16) / 16 * 16;
    if (order == Order::kSliced) {
      step.back() += 3;
      step[n - 2] += 2;
      first = 1;
    }
    strides.assign(n, 0);
    int64_t total = 1;
    for (int d = n - 1; d >= 0; --d) {
      strides[outer[d]] = total;
      total *= step[outer[d]];
    }
    memory.assign((first + total) * element_size(type), '\x7B');  // a finite number in every type, so that it compares
  }

  int64_t elements() const { return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<int64_t>()); }
  int64_t pixel_dims() const { return static_cast<int64_t>(sizes.size()) - 2; }
  const void* data() const { return memory.data() + first * element_size(type); }
  void* data() { return memory.data() + first * element_size(type); }

  // Where the n-th element in the order of its indices lies, counted from data().
  int64_t at(int64_t n, int64_t* index = nullptr) const {
    int64_t offset = 0;
    for (int d = static_cast<int>(sizes.size()) - 1; d >= 0; --d) {
      const int64_t i = n % sizes[d];
      n /= sizes[d];
      offset += i * strides[d];
      if (index != nullptr) index[d] = i;
    }
    return offset;
  }

  // Numbers of magnitude up to 4 and, if asked for, infinities and NaN here and there.
  void fill(Random& random, bool special) {
    const int64_t n = elements();
    for (int64_t i = 0; i < n; ++i) {
      char* to = static_cast<char*>(data()) + at(i) * element_size(type);
      const uint64_t word = random.next();
      const auto sign = static_cast<uint16_t>(word >> 48 & 0x8000);
      const bool odd = special && random.below(50) == 0, whole = random.below(8) == 0;  // whole numbers: equal pairs
      const double limit = random.below(2) ? std::numeric_limits<double>::infinity() : std::nan("");
      const double drawn = random.uniform(-4.0, 4.0), value = odd ? limit : (whole ? std::floor(drawn) : drawn);
      const auto value32 = static_cast<float>(value);
      uint16_t bits16 = 0;
      if (type == ElementType::kFloat16) {  // of any exponent up to 4, subnormal ones too
        const uint16_t exponent = random.below(8) == 0 ? 0 : static_cast<uint16_t>(10 + random.below(7));
        bits16 = static_cast<uint16_t>(sign | exponent << 10 | (whole ? 0 : word & 1023));
        if (odd) bits16 = static_cast<uint16_t>(sign | (std::isnan(limit) ? 0x7E00 : 0x7C00));
      } else if (type == ElementType::kBFloat16) {
        std::memcpy(&bits16, reinterpret_cast<const char*>(&value32) + 2, 2);  // the upper half
      }
      switch (type) {
        case ElementType::kFloat32: std::memcpy(to, &value32, 4); break;
        case ElementType::kFloat64: std::memcpy(to, &value, 8); break;
        case ElementType::kUInt8: *to = static_cast<char>(word); break;
        case ElementType::kInt16:
        case ElementType::kUInt16: std::memcpy(to, &word, 2); break;
        default: std::memcpy(to, &bits16, 2);
      }
    }
  }
};

inline Layout layout_of(const Batch& src, const Batch& dst, int spatial) {
  return make_layout(static_cast<int>(src.sizes.size()), src.sizes.data(), src.strides.data(), dst.strides.data(), spatial);
}

constexpr Method kMethods[] = {kMixUp,     kCutMix,        kHMixReleased, kHMixPaper, kGMixReleased,
                               kGMixPaper, kSamplePairing, kFMixReleased, kFMixPaper};
enum class Masks { kConstant, kCutMix, kBlendedBox, kGaussian, kAll, kBits, kLevels };
constexpr Masks kMasks[] = {Masks::kConstant, Masks::kCutMix, Masks::kBlendedBox, Masks::kGaussian,
                            Masks::kAll,      Masks::kBits,   Masks::kLevels};
inline const char* name_of(Masks masks) {
  constexpr const char* names[] = {"constant", "CutMix", "blended box", "Gaussian", "all masks", "bits", "levels"};
  return names[static_cast<int>(masks)];
}

inline const char* name_of_pairing(int32_t pairing) {
  constexpr const char* names[] = {"roll", "flip", "random", "cross class", "same class"};
  return names[pairing];
}

// A random permutation: as a rule a few long cycles; `short_cycles` leaves most samples alone or in pairs.
inline std::vector<int64_t> permutation(Random& random, int64_t n, bool short_cycles) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t{0});
  for (int64_t i = n - 1; i > 0; --i) {
    const int64_t low = short_cycles ? std::max<int64_t>(0, i - 2) : 0;
    std::swap(order[i], order[low + random.below(i + 1 - low)]);
  }
  return order;
}

// The tensors of a plan, not drawn by the samplers under test.
struct HostPlan {
  std::vector<int64_t> partner;
  std::vector<Record> masks;
  int32_t families = kAllFamilies;
  std::vector<double> weight;
  int32_t pairing = kRoll;
  bool shared = false;
  std::vector<uint32_t> bits;    // of stored masks: these,
  std::vector<uint16_t> levels;  // or these
  Pixels pixels{};               // but for the pointers

  PlanView view() const {
    PlanView made{partner.data(), masks.data(), families, pairing, shared, pixels};
    if (!bits.empty()) made.pixels.bits = bits.data();
    if (!levels.empty()) made.pixels.levels = levels.data();
    return made;
  }
};

// `size` is (z, y, x).
inline HostPlan make_plan(Random& random, int64_t batch, const int64_t* size, int32_t pairing, Masks masks, bool shared) {
  HostPlan plan;
  plan.pairing = pairing;
  plan.shared = shared;
  plan.partner = permutation(random, batch, random.below(3) == 0);
  for (int64_t i = 0; i < batch && pairing <= kFlip; ++i) plan.partner[i] = formula_partner(pairing, i, batch);
  for (int64_t i = 0; i < batch; ++i) {
    const bool fixed = random.below(4) == 0;  // a weight of 0 or 1
    const auto lam = static_cast<float>(fixed ? random.below(2) : random.uniform());
    // Other masks stand among those that are stored.
    const bool stored = masks == Masks::kBits || masks == Masks::kLevels, other = stored && random.below(4) == 0;
    const Masks chosen = masks == Masks::kAll || other ? kMasks[random.below(stored ? 3 : 4)] : masks;
    float outer = lam, inner = 0.0f;
    int32_t kind = kConstant;
    if (chosen == Masks::kCutMix || chosen == Masks::kBlendedBox) {
      kind = kBox;
      if (chosen == Masks::kCutMix) outer = 1.0f;
      if (chosen == Masks::kBlendedBox && random.below(2)) inner = static_cast<float>(random.uniform());
    } else if (chosen == Masks::kGaussian) {
      kind = random.below(2) ? kGaussian : kGaussianComplement;
      outer = static_cast<float>(3.14 / (random.uniform(0.05, 2.0) * static_cast<double>(size[1] * size[2])));
    } else if (chosen == Masks::kBits || chosen == Masks::kLevels) {
      kind = random.below(2) ? kFourier : kFourierReleased;
    }
    Record mask{kind, {}};
    std::memcpy(&mask.words[6], &outer, 4);
    std::memcpy(&mask.words[7], &inner, 4);
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t centre = random.below(size[axis]), half = random.below(size[axis] / 2 + 2);
      mask.words[axis] = static_cast<int32_t>(kind == kBox ? std::max<int64_t>(0, centre - half) : centre);
      mask.words[3 + axis] = static_cast<int32_t>(std::min(size[axis], centre + half));  // may be empty
      if (size[axis] == 1 && kind == kBox) mask.words[3 + axis] = 1;
    }
    plan.masks.push_back(mask);
    plan.weight.push_back(random.uniform());
  }
  if (masks == Masks::kBits || masks == Masks::kLevels) {
    const int64_t count = size[0] * size[1] * size[2], words = (count + 31) / 32;
    const int32_t per = shared ? kPerBatch : (pairing == kFlip && random.below(2) ? kPerPair : kPerSample);
    const int64_t rows = mask_rows(per, batch), stride = masks == Masks::kBits ? words : count;
    plan.pixels = {nullptr, nullptr, stride, {size[0], size[1], size[2]}, per, batch};
    // Long runs of ones and zeros, as Fourier masks have them, and noise.
    for (int64_t k = 0; k < rows * stride; ++k) {
      const int64_t form = random.below(3);
      const uint64_t word = form == 0 ? 0 : (form == 1 ? ~uint64_t{0} : random.next());
      if (masks == Masks::kBits) {
        plan.bits.push_back(static_cast<uint32_t>(word));
      } else {
        plan.levels.push_back(static_cast<uint16_t>(word));
      }
    }
  }
  return plan;
}

// (z, y, x) of a batch.
inline void sides_of(const Batch& batch, int64_t* size) {
  const int n = static_cast<int>(batch.pixel_dims());
  for (int axis = 0; axis < 3; ++axis) size[axis] = axis < 3 - n ? 1 : batch.sizes[2 + axis - (3 - n)];
}

}  // namespace fusedmix::test
