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

// The masks of a plan, which images are mixed by.
struct GivenMasks {
  Tensor partner, masks;
  int64_t families, ndim, pairing, per;
  Maybe pixels;
};

enum class Way { kOutOfPlace, kInPlace, kAdjoint };

// ---- what each binding defines ----

Plan sample(Request request, const Device& device);
Tensor mask(Tensor masks, int64_t families, std::vector<int64_t> size, int64_t per, Maybe pixels);
Tensor fourier(Tensor spec, Tensor masks, Tensor seed, std::vector<int64_t> size, int64_t per, int64_t draws, bool soft);
// Returns the mixed images: in place the tensor that was given.
Tensor apply(Way way, const Tensor& images, const GivenMasks& masks);
Tensor mix_labels(Tensor labels, Tensor partner, Tensor weight, int64_t num_classes, double label_smoothing);
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
  static Plan sample(Fields... fields, Device device) { return fusedmix::sample({std::move(fields)...}, device); }
  static auto mix_batch(Tensor x, Tensor y, Fields... fields, int64_t num_classes, double label_smoothing) {
    const auto [mixed, targets, plan] = step(Way::kOutOfPlace, x, y, {std::move(fields)...}, num_classes, label_smoothing);
    return std::tuple_cat(std::make_tuple(mixed, targets), plan);
  }
  static auto mix_batch_(Tensor x, Tensor y, Fields... fields, int64_t num_classes, double label_smoothing) {
    const auto [mixed, targets, plan] = step(Way::kInPlace, x, y, {std::move(fields)...}, num_classes, label_smoothing);
    return std::tuple_cat(std::make_tuple(targets), plan);
  }
};
using OfRequest = RequestOperators<Tensor, int64_t, std::vector<int64_t>, int64_t, int64_t, double, Maybe, Maybe, Maybe, Maybe, Maybe>;

template <class... Fields>
struct MaskOperators {
  static Tensor mix(Tensor x, Fields... fields) { return apply(Way::kOutOfPlace, x, {std::move(fields)...}); }
  static void mix_(Tensor x, Fields... fields) { apply(Way::kInPlace, x, {std::move(fields)...}); }
  static Tensor mix_adjoint(Tensor grad, Fields... fields) { return apply(Way::kAdjoint, grad, {std::move(fields)...}); }
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

  static std::tuple<Tensor, Tensor, Tensor> cross_entropy(Fields... fields, double label_smoothing, int64_t ignore_index,
                                                          int64_t reduction) {
    check_number("reduction", reduction, kNone, kMeanOfAll);
    return fusedmix::cross_entropy(of_classes(fields..., label_smoothing, ignore_index), reduction);
  }
  static Tensor cross_entropy_backward(Tensor grad, Fields... fields, Tensor statistics, Tensor scale, double label_smoothing,
                                       int64_t ignore_index) {
    const LossTensors t = of_classes(fields..., label_smoothing, ignore_index);
    return loss_gradient(t, grad, 1.0, packed("scale", scale, t.compute(), {}),
                         packed("statistics", statistics, t.compute(), {t.batch(), 2}));
  }
  static Tensor binary_cross_entropy(Fields... fields, Maybe pos_weight, double label_smoothing, std::optional<double> threshold,
                                     int64_t reduction) {
    return fusedmix::binary_cross_entropy(of_binary(fields..., pos_weight, label_smoothing, threshold), reduction);
  }
  static Tensor binary_cross_entropy_backward(Tensor grad, Fields... fields, Maybe pos_weight, double label_smoothing,
                                              std::optional<double> threshold, int64_t reduction) {
    const LossTensors t = of_binary(fields..., pos_weight, label_smoothing, threshold);
    return loss_gradient(t, grad, t.factor(reduction));
  }
};
using OfLosses = LossOperators<Tensor, Tensor, Tensor, Tensor, int64_t, int64_t, Maybe>;

// All but `sample`, whose tensors do not say which backend is meant.
inline void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("mask", TORCH_BOX(&mask));
  m.impl("fourier", TORCH_BOX(&fourier));
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
