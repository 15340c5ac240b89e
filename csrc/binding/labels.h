// Labels, the targets that are made of them, and the tensors of a label loss.
#pragma once

#include <optional>
#include <utility>

#include "plan.h"

namespace fusedmix {

// fusedmix/methods.py, Reduction
enum Reduction : int64_t { kNone = 0, kSum = 1, kMean = 2, kMeanOfAll = 3 };

inline Labels labels_of(const Tensor& y) {
  const bool soft = y.dim() == 2;
  return {y.const_data_ptr(), label_type(y), soft, y.stride(0), soft ? y.stride(1) : 0};
}

// The targets to write, and the tensor that is to hold them, which make(what, sizes, dtype) allocates.
template <class Make>
std::pair<Targets, Tensor> targets_of(const Tensor& y, int64_t num_classes, double label_smoothing, const Make& make) {
  const bool floating = y.dim() == 2 && is_floating(y.scalar_type());
  Targets t{labels_of(y), y.size(0), num_classes, label_smoothing, nullptr, ElementType::kFloat32};
  const Tensor out = make("the targets", {t.batch, num_classes}, floating ? y.scalar_type() : ScalarType::Float);
  t.out = out.mutable_data_ptr();
  t.out_type = element_type(out);
  if (out.numel() == 0) t.labels.data = nullptr;
  return {t, out};
}

// A loss, and the tensors that it points to, in the types and layouts that kernels read.
struct LossTensors {
  Tensor logits, labels, partner, weight;
  int64_t pairing, per;
  std::optional<Tensor> class_weight, pos_weight;
  Loss loss{};

  // In the order of fusedmix/ops.py.
  LossTensors(bool binary, double label_smoothing, const std::optional<Tensor>& positive, const Tensor& z, const Tensor& y,
              const Tensor& p, const Tensor& w, int64_t given_pairing, int64_t given_per, const std::optional<Tensor>& c)
      : logits(z), labels(y), partner(p), weight(w), pairing(given_pairing), per(given_per), class_weight(c), pos_weight(positive) {
    if (z.dim() != 2 || !is_floating(z.scalar_type())) refuse("logits", z, "floating point of shape (any, any)");
    check_labels(y, batch(), classes(), binary);
    check_hints(pairing, per);
    if (y.dim() == 1) pack("labels", labels, ScalarType::Long, {batch()});
    pack("partner", partner, ScalarType::Long, {batch()});
    pack("weight", weight, ScalarType::Double, {batch()});
    if (class_weight) pack("the weights of classes", *class_weight, compute(), {classes()});
    if (pos_weight) pack("the weights of positives", *pos_weight, compute(), {classes()});
    loss.binary = binary;
    loss.type = element_type(logits);
    loss.logits = logits.const_data_ptr();
    loss.row_stride = logits.stride(0);
    loss.step = logits.stride(1);
    loss.labels = labels_of(labels);
    if (class_weight) loss.class_weight = class_weight->const_data_ptr();
    if (pos_weight) loss.pos_weight = pos_weight->const_data_ptr();
    loss.batch = batch();
    loss.num_classes = classes();
    loss.smoothing = label_smoothing;
  }

  int64_t batch() const { return logits.size(0); }
  int64_t classes() const { return logits.size(1); }
  ScalarType compute() const { return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

  // What the sum of all losses is multiplied with, where no label is ignored.
  double factor(int64_t reduction) const {
    check_number("reduction", reduction, kNone, kMeanOfAll);
    const double rows = static_cast<double>(batch());
    return reduction == kMean ? 1 / rows : (reduction == kMeanOfAll ? 1 / (rows * static_cast<double>(classes())) : 1.0);
  }

  LossGrad gradient(const Tensor& grad, double factor, const std::optional<Tensor>& scale, const std::optional<Tensor>& statistics) const {
    const bool fits = grad.dim() == 0 || (grad.dim() == 1 && grad.size(0) == batch());
    if (!fits || grad.scalar_type() != compute()) {
      refuse("grad", grad, name_of(compute()) + " of shape () or " + shape_of(std::initializer_list<int64_t>{batch()}));
    }
    const auto at = [](const std::optional<Tensor>& t) { return t ? t->const_data_ptr() : nullptr; };
    return {grad.const_data_ptr(), grad.dim() == 0 ? 0 : grad.stride(0), factor, at(scale), at(statistics)};
  }
};

}  // namespace fusedmix
