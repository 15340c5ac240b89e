// One soft label: w·y + (1-w)·y' with both products and their sum rounded, as torchvision rounds them. The meaning is
// fusedmix/backends/reference.py, mix_labels.
#pragma once

#include "element.h"

namespace fusedmix {

// Label smoothing (Szegedy 2016): y·(1-ε) + ε/K, as two numbers.
template <class T>
struct Smoothing {
  Compute<T> keep, add;
  bool on;

  FUSEDMIX_HD Smoothing(double epsilon, int64_t num_classes)
      : keep(static_cast<Compute<T>>(1.0 - epsilon)),
        add(static_cast<Compute<T>>(epsilon / static_cast<double>(num_classes))),
        on(epsilon != 0.0) {}

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
