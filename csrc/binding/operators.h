// The operators as torch calls them (schemas: fusedmix/ops.py), for both bindings: the arguments of each become records, and a
// function that the binding defines does the work.
//
// The rows of arguments that several schemas share are spelled once, as the types that a template has for its `Fields`: those of
// _REQUEST with _SOURCE, of _MASKS, and of _MIXED.
#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/library.h>

#include <utility>

#include "labels.h"
#include "request.h"

namespace fusedmix {

using torch::stable::Device;
using Maybe = std::optional<Tensor>;

// The masks of a plan, which images are mixed by. (To copy a tensor is to count its owners, which processors have to agree on.)
struct GivenMasks {
  const Tensor &partner, &masks;
  int64_t families, ndim, pairing, per;
  const Maybe& pixels;
};

enum class Way { kOutOfPlace, kInPlace, kAdjoint };

// ---- what each binding defines ----

Plan sample(Request request, const Device& device);
Tensor mask(Tensor masks, int64_t families, std::vector<int64_t> size, int64_t per, Maybe pixels);
Tensor fourier(Tensor spec, Tensor masks, Tensor seed, std::vector<int64_t> size, int64_t per, int64_t draws, bool soft);
// (right, down)
std::tuple<Tensor, Tensor> border_costs(Tensor x, Tensor partner, Tensor scale, std::vector<int64_t> cells);
Tensor label_grid(Tensor unary, Tensor right, Tensor down);
// Returns the mixed images: in place the tensor that was given.
Tensor apply(Way way, const Tensor& images, const GivenMasks& masks);
Tensor mix_labels(const Tensor& labels, Tensor partner, Tensor weight, int64_t num_classes, double label_smoothing);
// A whole training step: the mixed images, their targets and the plan.
std::tuple<Tensor, Tensor, Plan> step(Way way, const Tensor& x, const Tensor& y, Request request, int64_t num_classes,
                                      double label_smoothing);
// (loss, statistics, scale)
std::tuple<Tensor, Tensor, Tensor> cross_entropy(const LossTensors& loss, int64_t reduction);
Tensor binary_cross_entropy(const LossTensors& loss, int64_t reduction);
Tensor loss_gradient(const LossTensors& loss, const Tensor& grad, double factor, const Maybe& scale = {}, const Maybe& statistics = {});

// ---- the operators ----

template <class... Fields>
struct RequestOperators {
  static Plan sample(const Fields&... fields, Device device) { return fusedmix::sample({fields...}, device); }
  static auto mix_batch(const Tensor& x, const Tensor& y, const Fields&... fields, int64_t num_classes, double label_smoothing) {
    auto [mixed, targets, plan] = step(Way::kOutOfPlace, x, y, {fields...}, num_classes, label_smoothing);
    return std::tuple_cat(std::make_tuple(std::move(mixed), std::move(targets)), std::move(plan));
  }
  static auto mix_batch_(const Tensor& x, const Tensor& y, const Fields&... fields, int64_t num_classes, double label_smoothing) {
    auto [mixed, targets, plan] = step(Way::kInPlace, x, y, {fields...}, num_classes, label_smoothing);
    return std::tuple_cat(std::make_tuple(std::move(targets)), std::move(plan));
  }
};
using OfRequest = RequestOperators<Tensor, int64_t, std::vector<int64_t>, int64_t, int64_t, double, Maybe, Maybe, Maybe, Maybe, Maybe>;

template <class... Fields>
struct MaskOperators {
  static Tensor mix(const Tensor& x, const Fields&... fields) { return apply(Way::kOutOfPlace, x, {fields...}); }
  static void mix_(const Tensor& x, const Fields&... fields) { apply(Way::kInPlace, x, {fields...}); }
  static Tensor mix_adjoint(const Tensor& grad, const Fields&... fields) { return apply(Way::kAdjoint, grad, {fields...}); }
};
using OfMasks = MaskOperators<Tensor, Tensor, int64_t, int64_t, int64_t, int64_t, Maybe>;

template <class... Fields>
struct LossOperators {
  static LossTensors of_classes(const Fields&... fields, double label_smoothing, int64_t ignore_index) {
    LossTensors t(false, label_smoothing, std::nullopt, fields...);
    t.loss.ignore = ignore_index;
    return t;
  }
  static LossTensors of_binary(const Fields&... fields, const Maybe& pos_weight, double label_smoothing, std::optional<double> threshold) {
    LossTensors t(true, label_smoothing, pos_weight, fields...);
    t.loss.thresholded = threshold.has_value();
    t.loss.threshold = threshold.value_or(0);
    return t;
  }

  static std::tuple<Tensor, Tensor, Tensor> cross_entropy(const Fields&... fields, double label_smoothing, int64_t ignore_index,
                                                          int64_t reduction) {
    check_number("reduction", reduction, kNone, kMeanOfAll);
    return fusedmix::cross_entropy(of_classes(fields..., label_smoothing, ignore_index), reduction);
  }
  static Tensor cross_entropy_backward(const Tensor& grad, const Fields&... fields, const Tensor& statistics, const Tensor& scale,
                                       double label_smoothing, int64_t ignore_index) {
    const LossTensors t = of_classes(fields..., label_smoothing, ignore_index);
    return loss_gradient(t, grad, 1.0, packed("scale", scale, t.compute(), {}),
                         packed("statistics", statistics, t.compute(), {t.batch(), 2}));
  }
  static Tensor binary_cross_entropy(const Fields&... fields, const Maybe& pos_weight, double label_smoothing,
                                     std::optional<double> threshold, int64_t reduction) {
    return fusedmix::binary_cross_entropy(of_binary(fields..., pos_weight, label_smoothing, threshold), reduction);
  }
  static Tensor binary_cross_entropy_backward(const Tensor& grad, const Fields&... fields, const Maybe& pos_weight,
                                              double label_smoothing, std::optional<double> threshold, int64_t reduction) {
    const LossTensors t = of_binary(fields..., pos_weight, label_smoothing, threshold);
    return loss_gradient(t, grad, t.factor(reduction));
  }
};
using OfLosses = LossOperators<Tensor, Tensor, Tensor, Tensor, int64_t, int64_t, Maybe>;

// All but `sample`, whose tensors do not say which backend is meant.
inline void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("mask", TORCH_BOX(&mask));
  m.impl("fourier", TORCH_BOX(&fourier));
  m.impl("border_costs", TORCH_BOX(&border_costs));
  m.impl("label_grid", TORCH_BOX(&label_grid));
  m.impl("mix", TORCH_BOX(&OfMasks::mix));
  m.impl("mix_", TORCH_BOX(&OfMasks::mix_));
  m.impl("mix_adjoint", TORCH_BOX(&OfMasks::mix_adjoint));
  m.impl("mix_labels", TORCH_BOX(&mix_labels));
  m.impl("mix_batch", TORCH_BOX(&OfRequest::mix_batch));
  m.impl("mix_batch_", TORCH_BOX(&OfRequest::mix_batch_));
  m.impl("cross_entropy", TORCH_BOX(&OfLosses::cross_entropy));
  m.impl("cross_entropy_backward", TORCH_BOX(&OfLosses::cross_entropy_backward));
  m.impl("binary_cross_entropy", TORCH_BOX(&OfLosses::binary_cross_entropy));
  m.impl("binary_cross_entropy_backward", TORCH_BOX(&OfLosses::binary_cross_entropy_backward));
}

}  // namespace fusedmix
