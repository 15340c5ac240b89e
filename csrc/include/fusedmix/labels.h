// One soft label: w·y + (1-w)·y' with both products and their sum rounded, as torchvision rounds them. The meaning is
// fusedmix/backends/reference.py, mix_labels.
#pragma once

#include <type_traits>

#include "element.h"

namespace fusedmix {

// What labels may be. Those from kLabelFloat on are in the order of ElementType.
enum LabelType : int32_t {
  kLabelInt64, kLabelInt32, kLabelInt16, kLabelInt8, kLabelUInt8, kLabelUInt16, kLabelUInt32, kLabelUInt64,
  kLabelFloat, kLabelHalf, kLabelBFloat16, kLabelDouble,
};

// f of a label of that type.
template <class F>
FUSEDMIX_HD auto of_label(LabelType type, const F& f) {
  switch (type) {
    case kLabelInt64: return f(int64_t{});
    case kLabelInt32: return f(int32_t{});
    case kLabelInt16: return f(int16_t{});
    case kLabelInt8: return f(int8_t{});
    case kLabelUInt8: return f(uint8_t{});
    case kLabelUInt16: return f(uint16_t{});
    case kLabelUInt32: return f(uint32_t{});
    case kLabelUInt64: return f(uint64_t{});
    case kLabelHalf: return f(Half{});
    case kLabelBFloat16: return f(BFloat16{});
    case kLabelDouble: return f(double{});
    default: return f(float{});
  }
}
FUSEDMIX_HD int64_t label_size(LabelType type) {
  return of_label(type, [](auto label) { return static_cast<int64_t>(sizeof(label)); });
}
template <class To, class T>
FUSEDMIX_HD To label_as(T label) {
  if constexpr (std::is_arithmetic_v<T>) {
    return static_cast<To>(label);
  } else {
    return static_cast<To>(to_compute(label));
  }
}

// Label smoothing (Szegedy 2016): y·(1-ε) + ε/K, as two numbers.
template <class T>
struct Smoothing {
  Compute<T> keep, add;
  bool on;

  FUSEDMIX_HD Smoothing(double epsilon, int64_t num_classes) : Smoothing(epsilon, epsilon / static_cast<double>(num_classes)) {}
  // share: ε/K.
  FUSEDMIX_HD Smoothing(double epsilon, double share)
      : keep(static_cast<Compute<T>>(1.0 - epsilon)), add(static_cast<Compute<T>>(share)), on(epsilon != 0.0) {}

  FUSEDMIX_HD T operator()(T y) const {
    if (!on) return y;
    return from_compute<T>(to_compute(y) * keep + add);
  }
};

// The two weights of a row, each rounded from float64 on its own.
template <class T>
struct LabelWeights {
  Compute<T> own, lent;

  FUSEDMIX_HD explicit LabelWeights(double weight)
      : own(static_cast<Compute<T>>(weight)), lent(static_cast<Compute<T>>(1.0 - weight)) {}

  FUSEDMIX_HD T operator()(T y, T partner) const {
    const T left = from_compute<T>(to_compute(partner) * lent), right = from_compute<T>(to_compute(y) * own);
    return from_compute<T>(to_compute(left) + to_compute(right));
  }
};

}  // namespace fusedmix
