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

  // `soft`: labels may be (B, K).
  LossTensors(const Tensor& z, const Tensor& y, const Tensor& p, const Tensor& w, const std::optional<Tensor>& c,
              const std::optional<Tensor>& positive, int64_t pairing, int64_t per, bool soft)
      : logits(z) {
    if (z.dim() != 2 || !is_floating(z.scalar_type())) refuse("logits", z, "floating point of shape (any, any)");
    check_labels(y, batch(), classes(), soft);
    check_hints(pairing, per);
    labels = y.dim() == 1 ? packed("labels", y, ScalarType::Long, {batch()}) : y;
    partner = packed("partner", p, ScalarType::Long, {batch()});
    weight = packed("weight", w, ScalarType::Double, {batch()});
    if (c) class_weight = packed("the weights of classes", *c, compute(), {classes()});
    if (positive) pos_weight = packed("the weights of positives", *positive, compute(), {classes()});
  }

  int64_t batch() const { return logits.size(0); }
  int64_t classes() const { return logits.size(1); }
  ScalarType compute() const { return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

  // By which the sum of all losses is multiplied, where no label is ignored.
  double factor(int64_t reduction) const {
    check_number("reduction", reduction, kNone, kMeanOfAll);
    const double rows = static_cast<double>(batch());
    return reduction == kMean ? 1 / rows : (reduction == kMeanOfAll ? 1 / (rows * static_cast<double>(classes())) : 1.0);
  }

  // Of one gradient for all rows 0, else from row to row.
  int64_t grad_step(const Tensor& grad) const {
    const bool fits = grad.dim() == 0 || (grad.dim() == 1 && grad.size(0) == batch());
    if (!fits || grad.scalar_type() != compute()) {
      refuse("grad", grad, name_of(compute()) + " of shape () or " + shape_of(std::initializer_list<int64_t>{batch()}));
    }
    return grad.dim() == 0 ? 0 : grad.stride(0);
  }
};

}  // namespace fusedmix
