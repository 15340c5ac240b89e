// The tensors of a label loss, for both bindings.
#pragma once

#include "common.h"

namespace fusedmix {

// fusedmix/methods.py, Reduction
enum Reduction : int64_t { kNone = 0, kSum = 1, kMean = 2, kMeanOfAll = 3 };

// What the kernels of the losses read, in the types and layouts that they read, alive as long as their arguments are used.
struct LossTensors {
  Tensor logits, labels, partner, weight;
  std::optional<Tensor> class_weight, pos_weight;

  LossTensors(const Tensor& z, const Tensor& y, const Tensor& p, const Tensor& w, const std::optional<Tensor>& c,
              const std::optional<Tensor>& positive)
      : logits(z), labels(y.dim() == 1 ? packed(y, ScalarType::Long) : y), partner(p), weight(w) {
    if (element_type(z) == ElementType::kUInt8) throw std::invalid_argument("fusedmix: logits must be floating point");
    if (y.size(0) != z.size(0) || p.size(0) != z.size(0) || w.size(0) != z.size(0)) {
      throw std::invalid_argument("fusedmix: logits, labels and plan must have one batch size");
    }
    if (c) class_weight = packed(*c, compute());
    if (positive) pos_weight = packed(*positive, compute());
    for (const auto& each : {class_weight, pos_weight}) {
      if (each && each->size(0) != classes()) throw std::invalid_argument("fusedmix: a weight of another number of classes");
    }
  }

  int64_t batch() const { return logits.size(0); }
  int64_t classes() const { return logits.size(1); }
  ScalarType compute() const { return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

  // By which the sum of all losses is multiplied, where no label is ignored.
  double factor(int64_t reduction) const {
    const double rows = static_cast<double>(batch());
    return reduction == kMean ? 1 / rows : (reduction == kMeanOfAll ? 1 / (rows * static_cast<double>(classes())) : 1.0);
  }

  // Of one gradient for all rows 0, else from row to row.
  int64_t grad_step(const Tensor& grad) const {
    if (grad.scalar_type() != compute()) throw std::invalid_argument("fusedmix: a gradient of the wrong dtype");
    return grad.dim() == 0 ? 0 : grad.stride(0);
  }
};

}  // namespace fusedmix
