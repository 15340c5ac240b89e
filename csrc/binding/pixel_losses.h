// The operators of the loss of label maps as torch calls them (schemas: fusedmix/ops.py), for both bindings; what they are called
// with, checked.
#pragma once

#include "operators.h"

namespace fusedmix {

// The steps of a tensor (B, K, *S). Sides of one pixel have what their neighbours go on with, so that pixels that lie at one
// constant step are seen to.
inline PixelSteps pixel_steps(const Tensor& t, const int64_t* sides) {
  const auto strides = t.strides();
  PixelSteps by{strides[0], strides[1], {1, 1, 1}};
  const int64_t count = t.dim() - 2;
  int innermost = 2;
  while (innermost > 0 && sides[innermost] == 1) --innermost;
  for (int axis = innermost; axis >= 0; --axis) {
    const int64_t d = axis - (3 - count);
    by.side[axis] = sides[axis] != 1 ? strides[2 + d] : (axis == innermost ? 1 : by.side[axis + 1] * sides[axis + 1]);
  }
  std::fill(by.side + innermost + 1, by.side + 3, by.side[innermost]);
  return by;
}

// A loss, and the tensors that it points to, in the types and layouts that kernels read.
struct PixelTensors {
  Tensor logits, maps;
  Maybe class_weight;
  PixelLoss loss{};

  // In the order of fusedmix/ops.py; `ndim`: on how many spatial dims the masks depend.
  PixelTensors(const Tensor& z, const Tensor& y, const Maybe& weights, double label_smoothing, int64_t ignore_index, int64_t ndim)
      : logits(z), maps(y), class_weight(weights) {
    if (z.dim() < 2 || z.dim() > 5 || !is_floating(z.scalar_type()) || z.size(1) == 0) {
      refuse("logits", z, "floating point of shape (batch_size, num_classes, *size)");
    }
    const int64_t count = z.dim() - 2;
    const auto sizes = z.sizes(), of_maps = y.sizes();
    bool fits = y.dim() == 1 + count && !is_floating(y.scalar_type()) && of_maps[0] >= sizes[0];
    for (int64_t d = 0; fits && d < count; ++d) fits = of_maps[1 + d] == sizes[2 + d];
    if (!fits) refuse("maps", y, "integers of shape (samples, *size), beside logits of shape " + shape_of(sizes));
    if (ndim != 0 && ndim != count) refuse("ndim must be 0 or " + std::to_string(count) + ", but is " + std::to_string(ndim));
    if (!maps.is_contiguous()) maps = torch::stable::contiguous(maps);
    if (class_weight) pack("class_weight", *class_weight, compute(), {sizes[1]});
    loss.type = element_type(z);
    loss.logits = z.const_data_ptr();
    to_sides(sizes, 2, count, loss.side);
    check_sides(loss.side, 0);
    loss.by = pixel_steps(z, loss.side);
    loss.maps = maps.const_data_ptr();
    loss.label = label_type(maps);
    loss.class_weight = class_weight ? class_weight->const_data_ptr() : nullptr;
    loss.batch = sizes[0], loss.samples = of_maps[0], loss.classes = sizes[1];
    loss.pixels = loss.side[0] * loss.side[1] * loss.side[2];
    loss.smoothing = label_smoothing, loss.ignore = ignore_index;
    if (loss.classes > INT32_MAX) refuse("logits of more than 2^31 classes");
  }
  PixelTensors(const PixelTensors&) = delete;

  ScalarType compute() const { return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }
  // (B, *S) numbers: what kernels write, and what they are given.
  Tensor empty_like_maps(const char* what) const {
    std::vector<int64_t> shape(maps.sizes().begin(), maps.sizes().end());
    shape[0] = loss.batch;
    const double elements = static_cast<double>(loss.batch) * static_cast<double>(loss.pixels);
    return allocated(what, logits, elements, [&] {
      return torch::stable::new_empty(logits, torch::headeronly::IntHeaderOnlyArrayRef(shape), compute());
    });
  }
  Tensor given_like_maps(const char* name, Tensor t) const {
    bool fits = t.scalar_type() == compute() && t.dim() == maps.dim() && t.size(0) == loss.batch;
    for (int64_t d = 1; fits && d < maps.dim(); ++d) fits = t.size(d) == maps.size(d);
    if (!fits) refuse(name, t, name_of(compute()) + ", a number for each pixel of logits of shape " + shape_of(logits.sizes()));
    return t.is_contiguous() ? t : torch::stable::contiguous(t);
  }
};

// ---- what each binding defines ----

// (loss, logsumexp, scale)
std::tuple<Tensor, Tensor, Tensor> pixel_cross_entropy(const PixelTensors& t, int64_t reduction, const GivenMasks& masks);
// `grad` is one number, or one for each pixel.
Tensor pixel_gradient(const PixelTensors& t, const Tensor& grad, const Tensor& logsumexp, const Tensor& scale, const GivenMasks& masks);

// ---- the operators ----

template <class... Fields>
struct PixelOperators {
  static std::tuple<Tensor, Tensor, Tensor> pixel_cross_entropy(const Tensor& logits, const Tensor& maps, const Maybe& class_weight,
                                                                double label_smoothing, int64_t ignore_index, int64_t reduction,
                                                                const Fields&... fields) {
    check_number("reduction", reduction, kNone, kMean);
    const GivenMasks masks{fields...};
    return fusedmix::pixel_cross_entropy({logits, maps, class_weight, label_smoothing, ignore_index, masks.ndim}, reduction, masks);
  }
  static Tensor pixel_cross_entropy_backward(const Tensor& grad, const Tensor& logits, const Tensor& maps, const Maybe& class_weight,
                                             double label_smoothing, int64_t ignore_index, const Tensor& logsumexp, const Tensor& scale,
                                             const Fields&... fields) {
    const GivenMasks masks{fields...};
    const PixelTensors t(logits, maps, class_weight, label_smoothing, ignore_index, masks.ndim);
    const Tensor from = grad.dim() == 0 ? packed("grad", grad, t.compute(), {}) : t.given_like_maps("grad", grad);
    return pixel_gradient(t, from, t.given_like_maps("logsumexp", logsumexp), packed("scale", scale, t.compute(), {}), masks);
  }
};
using OfPixels = PixelOperators<Tensor, Tensor, int64_t, int64_t, int64_t, int64_t, Maybe>;

inline void implement_pixel_losses(torch::stable::detail::StableLibrary& m) {
  m.impl("pixel_cross_entropy", TORCH_BOX(&OfPixels::pixel_cross_entropy));
  m.impl("pixel_cross_entropy_backward", TORCH_BOX(&OfPixels::pixel_cross_entropy_backward));
}

}  // namespace fusedmix
