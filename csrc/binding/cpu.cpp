// The operators of torch.ops.fusedmix_cpp (schemas: fusedmix/ops.py) over csrc/cpu.
#include <torch/csrc/stable/device.h>

#include "../cpu/losses.h"
#include "common.h"
#include "losses.h"

namespace fusedmix {
namespace {

using torch::stable::Device;

cpu::Parallel parallel() {
  const auto run = [](int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
    TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, n, grain, body, context));
  };
  return {run, static_cast<int>(torch::stable::get_num_threads())};
}

Plan sample(Tensor spec, int64_t batch_size, std::vector<int64_t> size, int64_t pairing, int64_t per, double p,
            std::optional<Tensor> lam, std::optional<Tensor> labels, std::optional<Tensor> seed,
            std::optional<Tensor> drawn, std::optional<Tensor> partner, Device) {
  Request request{spec, batch_size, size, pairing, per, p, lam, labels, seed, drawn, partner};
  return sample_on_cpu(request, parallel());
}

// The masks of a plan, in the types and layouts that kernels read, alive as long as the view is used. Checked, and what they
// hold as well.
struct MaskTensors {
  Tensor masks, pixels;
  PlanView view{};

  // `ndim`: on how many spatial dims the masks depend. `given`: the pixels.
  MaskTensors(const Tensor& records, int64_t families, int64_t batch, const int64_t* sides, int64_t ndim, int64_t pairing,
              int64_t per, const std::optional<Tensor>& given)
      : masks(packed("masks", records, ScalarType::Int, {batch, kWords})) {
    check_hints(pairing, per);
    check_number("families", families, 1, kAllFamilies);
    view = {nullptr, const_data<Record>(masks), static_cast<int32_t>(families), static_cast<int32_t>(pairing), per == kPerBatch, {}};
    if (given) view.pixels = pixels_of(*given, view.families, sides, per, batch, pixels);
    check_masks(view, batch, ndim > 0);
  }
};

Tensor mask(Tensor records, int64_t families, std::vector<int64_t> size, int64_t per, std::optional<Tensor> pixels) {
  int64_t sides[3];
  to_sides(size, sides, 0);
  const int64_t n = rows_of("masks", records);
  MaskTensors masks(records, families, n, sides, static_cast<int64_t>(size.size()), kRandom, per, pixels);
  Tensor out = new_masks(masks.masks, n, size);
  masks.view.shared = false;  // a mask is written for every sample
  cpu::masks(masks.view, n, sides, data<float>(out), parallel());
  return out;
}

Tensor fourier(Tensor spec, Tensor masks, Tensor seed, std::vector<int64_t> size, int64_t per, int64_t draws, bool soft) {
  const Tensor rows = packed_spec(spec);
  cpu::FourierArgs a{};
  a.rows = reinterpret_cast<const MethodRow*>(rows.const_data_ptr());
  a.methods = static_cast<int32_t>(rows.size(0));
  a.extent = extent_of(size, 1);
  a.batch = rows_of("masks", masks);
  check_hints(kRandom, per);
  check_hints(kRandom, draws);
  masks = packed("masks", masks, ScalarType::Int, {a.batch, kWords});
  a.per = static_cast<int32_t>(per);
  a.draws = static_cast<int32_t>(draws);
  packed_number("seed", seed, ScalarType::Long, a.batch > 0);
  if (seed.numel() > 0) a.seed = static_cast<uint64_t>(*const_data<int64_t>(seed));
  a.masks = const_data<Record>(masks);
  const int64_t pixels = stored_pixels(a.extent.size), n = mask_rows(per, a.batch);
  const Tensor out = soft ? empty_cpu("the pixels of FMix's masks", {n, pixels}, ScalarType::Short)
                          : empty_cpu("the pixels of FMix's masks", {n, (pixels + 31) / 32}, ScalarType::Int);
  if (soft) {
    a.levels = data<uint16_t>(out);
  } else {
    a.bits = data<uint32_t>(out);
  }
  cpu::fourier(a, parallel());
  return out;
}

enum class Way { kOutOfPlace, kInPlace, kAdjoint };

// Into `out`, if there is any: the images themselves in place.
Tensor apply(Way way, const Tensor& src, const Tensor* out, const Tensor& partner, const Tensor& records, int64_t families,
             int64_t ndim, int64_t pairing, int64_t per, const std::optional<Tensor>& pixels) {
  int64_t sides[3];
  check_images(src, ndim, way == Way::kAdjoint, sides);
  const int64_t batch = src.size(0);
  const Tensor partners = packed("partner", partner, ScalarType::Long, {batch});
  MaskTensors masks(records, families, batch, sides, ndim, pairing, per, pixels);
  masks.view.partner = const_data<int64_t>(partners);
  const Tensor dst = out == nullptr ? new_like(src) : *out;
  cpu::mix({element_type(src), src.const_data_ptr(), dst.mutable_data_ptr(), layout_of(src, dst, ndim), masks.view,
            way == Way::kAdjoint},
           parallel());
  return dst;
}

Tensor mix(Tensor x, Tensor partner, Tensor masks, int64_t families, int64_t ndim, int64_t pairing, int64_t per,
           std::optional<Tensor> pixels) {
  return apply(Way::kOutOfPlace, x, nullptr, partner, masks, families, ndim, pairing, per, pixels);
}

void mix_(Tensor x, Tensor partner, Tensor masks, int64_t families, int64_t ndim, int64_t pairing, int64_t per,
          std::optional<Tensor> pixels) {
  apply(Way::kInPlace, x, &x, partner, masks, families, ndim, pairing, per, pixels);
}

Tensor mix_adjoint(Tensor grad, Tensor partner, Tensor masks, int64_t families, int64_t ndim, int64_t pairing, int64_t per,
                   std::optional<Tensor> pixels) {
  return apply(Way::kAdjoint, grad, nullptr, partner, masks, families, ndim, pairing, per, pixels);
}

// Labels of an integer type, or soft labels that are not floating point, in the type that the kernels take.
template <class To>
void converted(const Tensor& labels, To* out) {
  const int64_t rows = labels.size(0), columns = labels.dim() == 2 ? labels.size(1) : 1;
  const int64_t row_step = labels.stride(0), step = labels.dim() == 2 ? labels.stride(1) : 0;
  of_label(label_type(labels), [&](auto as) {
    const auto* in = const_data<decltype(as)>(labels);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t k = 0; k < columns; ++k) out[i * columns + k] = label_as<To>(in[i * row_step + k * step]);
    }
  });
}

// Classes as int64, in `copy` if they are not so already. Throws if one is out of range.
const int64_t* classes_of(const Tensor& labels, int64_t num_classes, std::vector<int64_t>& copy) {
  const int64_t batch = labels.size(0);
  const int64_t* classes = nullptr;
  if (labels.scalar_type() == ScalarType::Long && labels.is_contiguous()) {
    classes = const_data<int64_t>(labels);
  } else {
    resize(copy, batch, "the classes as int64");
    converted(labels, copy.data());
    classes = copy.data();
  }
  for (int64_t i = 0; i < batch; ++i) {
    if (classes[i] < 0 || classes[i] >= num_classes) {
      throw std::invalid_argument("labels must be in [0, num_classes) = [0, " + std::to_string(num_classes) +
                                  "), but got " + std::to_string(classes[i]) + ".");
    }
  }
  return classes;
}

Tensor mix_labels(Tensor labels, Tensor partner, Tensor weight, int64_t num_classes, double label_smoothing) {
  const int64_t batch = rows_of("labels", labels);
  check_labels(labels, batch, num_classes, true);
  partner = packed("partner", partner, ScalarType::Long, {batch});
  weight = packed("weight", weight, ScalarType::Double, {batch});
  check_partners(const_data<int64_t>(partner), batch);
  cpu::LabelArgs args{};
  args.partner = const_data<int64_t>(partner);
  args.weight = const_data<double>(weight);
  args.batch = batch;
  args.num_classes = num_classes;
  args.smoothing = label_smoothing;
  std::vector<int64_t> classes;
  std::vector<float> soft;
  ScalarType type = ScalarType::Float;
  if (labels.dim() == 1) {
    args.classes = classes_of(labels, num_classes, classes);
  } else if (is_floating(labels.scalar_type())) {
    type = labels.scalar_type();
    args.type = element_type(labels);
    args.soft = labels.const_data_ptr();
    args.soft_stride = labels.stride(0);
    args.soft_step = labels.stride(1);
  } else {
    resize(soft, batch * num_classes, "the labels as float32");
    converted(labels, soft.data());
    args.soft = soft.data();
    args.soft_stride = num_classes;
    args.soft_step = 1;
  }
  Tensor targets = empty_cpu("the targets", {batch, num_classes}, type);
  args.targets = targets.mutable_data_ptr();
  if (batch > 0) cpu::mix_labels(args, parallel());
  return targets;
}

// The whole step: plan, targets, images. The labels first: one out of range must leave the images as they were.
std::tuple<Tensor, Tensor, Plan> step(Way way, const Tensor& x, const Tensor& y, Request request, int64_t num_classes,
                                      double label_smoothing) {
  check_step(x, y, request, way == Way::kInPlace, num_classes);
  std::vector<int64_t> copy;
  if (y.dim() == 1) {
    classes_of(y, num_classes, copy);
  } else {
    label_type(y);
  }
  const Tensor out = way == Way::kInPlace ? x : new_like(x);  // before anything is drawn: memory may be short
  Plan plan = sample_on_cpu(request, parallel());
  const auto& [partner, lam, weight, masks] = plan;
  Tensor targets = mix_labels(y, partner, weight, num_classes, label_smoothing);
  Tensor mixed = apply(way, x, &out, partner, masks, request.families(), request.spatial(), request.pairing,
                       request.shared() ? kPerBatch : kPerSample, std::nullopt);
  return {mixed, targets, plan};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mix_batch(
    Tensor x, Tensor y, Tensor spec, int64_t batch_size, std::vector<int64_t> size, int64_t pairing, int64_t per, double p,
    std::optional<Tensor> lam, std::optional<Tensor> labels, std::optional<Tensor> seed, std::optional<Tensor> drawn,
    std::optional<Tensor> partner, int64_t num_classes, double label_smoothing) {
  auto [mixed, targets, plan] = step(Way::kOutOfPlace, x, y, {spec, batch_size, size, pairing, per, p, lam, labels, seed, drawn, partner},
                                     num_classes, label_smoothing);
  return std::tuple_cat(std::make_tuple(mixed, targets), plan);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mix_batch_(
    Tensor x, Tensor y, Tensor spec, int64_t batch_size, std::vector<int64_t> size, int64_t pairing, int64_t per, double p,
    std::optional<Tensor> lam, std::optional<Tensor> labels, std::optional<Tensor> seed, std::optional<Tensor> drawn,
    std::optional<Tensor> partner, int64_t num_classes, double label_smoothing) {
  auto [mixed, targets, plan] = step(Way::kInPlace, x, y, {spec, batch_size, size, pairing, per, p, lam, labels, seed, drawn, partner},
                                     num_classes, label_smoothing);
  return std::tuple_cat(std::make_tuple(targets), plan);
}

// ---- label losses ----

cpu::LossArgs loss_args(LossTensors& t, double label_smoothing) {
  cpu::LossArgs args{};
  args.type = element_type(t.logits);
  args.logits = t.logits.const_data_ptr();
  args.row_stride = t.logits.stride(0);
  args.step = t.logits.stride(1);
  if (t.labels.dim() == 1) {
    args.classes = const_data<int64_t>(t.labels);
  } else {
    args.soft = t.labels.const_data_ptr();
    args.soft_type = label_type(t.labels);
    args.soft_stride = t.labels.stride(0);
    args.soft_step = t.labels.stride(1);
  }
  check_partners(const_data<int64_t>(t.partner), t.batch());
  args.partner = const_data<int64_t>(t.partner);
  args.weight = const_data<double>(t.weight);
  if (t.class_weight) args.class_weight = t.class_weight->const_data_ptr();
  if (t.pos_weight) args.pos_weight = t.pos_weight->const_data_ptr();
  args.batch = t.batch();
  args.num_classes = t.classes();
  args.smoothing = label_smoothing;
  return args;
}

// A class out of range is an error: there is no logit for it.
cpu::LossArgs binary_args(LossTensors& t, double label_smoothing, std::optional<double> threshold) {
  cpu::LossArgs args = loss_args(t, label_smoothing);
  args.thresholded = threshold.has_value();
  args.threshold = threshold.value_or(0);
  std::vector<int64_t> unused;
  if (t.labels.dim() == 1) classes_of(t.labels, t.classes(), unused);
  return args;
}

template <class C>
void total(const Tensor& losses, double factor, const Tensor& out) {
  double sum = 0;
  for (int64_t i = 0; i < losses.size(0); ++i) sum += static_cast<double>(const_data<C>(losses)[i]);
  *data<C>(out) = static_cast<C>(sum * factor);
}

// The losses of rows times a factor, summed; or as they are.
Tensor reduced(const Tensor& losses, int64_t reduction, double factor) {
  if (reduction == kNone) return losses;
  Tensor out = empty_cpu("a loss", {}, losses.scalar_type());
  losses.scalar_type() == ScalarType::Double ? total<double>(losses, factor, out) : total<float>(losses, factor, out);
  return out;
}

double number(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? *const_data<double>(t) : static_cast<double>(*const_data<float>(t));
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy(Tensor logits, Tensor labels, Tensor partner, Tensor weight, int64_t pairing,
                                                 int64_t per, std::optional<Tensor> class_weight, double label_smoothing,
                                                 int64_t ignore_index, int64_t reduction) {
  LossTensors t(logits, labels, partner, weight, class_weight, std::nullopt, pairing, per, false);
  check_number("reduction", reduction, kNone, kMeanOfAll);
  cpu::LossArgs args = loss_args(t, label_smoothing);
  args.ignore = ignore_index;
  const Tensor losses = empty_cpu("the losses", {t.batch()}, t.compute());
  const Tensor statistics = empty_cpu("the losses", {t.batch(), 2}, t.compute());
  cpu::cross_entropy(args, losses.mutable_data_ptr(), statistics.mutable_data_ptr(), parallel());
  double scale = 1;
  if (reduction == kMean) {
    int64_t counted = 0;
    for (int64_t i = 0; i < t.batch(); ++i) counted += args.classes[i] != ignore_index;
    scale = 1 / static_cast<double>(counted);
  }
  Tensor factor = empty_cpu("a loss", {}, t.compute());
  t.compute() == ScalarType::Double ? void(*data<double>(factor) = scale) : void(*data<float>(factor) = static_cast<float>(scale));
  return {reduced(losses, reduction, scale), statistics, factor};
}

Tensor cross_entropy_backward(Tensor grad, Tensor logits, Tensor labels, Tensor partner, Tensor weight, int64_t pairing,
                              int64_t per, std::optional<Tensor> class_weight, Tensor statistics, Tensor scale,
                              double label_smoothing, int64_t ignore_index) {
  LossTensors t(logits, labels, partner, weight, class_weight, std::nullopt, pairing, per, false);
  cpu::LossArgs args = loss_args(t, label_smoothing);
  args.ignore = ignore_index;
  statistics = packed("statistics", statistics, t.compute(), {t.batch(), 2});
  scale = packed("scale", scale, t.compute(), {});
  const Tensor out = empty_cpu("the gradient", {t.batch(), t.classes()}, logits.scalar_type());
  const int64_t step = t.grad_step(grad);
  cpu::cross_entropy_backward(args, statistics.const_data_ptr(), grad.const_data_ptr(), step, number(scale),
                              out.mutable_data_ptr(), parallel());
  return out;
}

Tensor binary_cross_entropy(Tensor logits, Tensor labels, Tensor partner, Tensor weight, int64_t pairing, int64_t per,
                            std::optional<Tensor> class_weight, std::optional<Tensor> pos_weight, double label_smoothing,
                            std::optional<double> threshold, int64_t reduction) {
  LossTensors t(logits, labels, partner, weight, class_weight, pos_weight, pairing, per, true);
  const cpu::LossArgs args = binary_args(t, label_smoothing, threshold);
  const Tensor losses = empty_cpu("the losses", {t.batch()}, t.compute());
  cpu::binary_cross_entropy(args, losses.mutable_data_ptr(), parallel());
  return reduced(losses, reduction, t.factor(reduction));
}

Tensor binary_cross_entropy_backward(Tensor grad, Tensor logits, Tensor labels, Tensor partner, Tensor weight, int64_t pairing,
                                     int64_t per, std::optional<Tensor> class_weight, std::optional<Tensor> pos_weight,
                                     double label_smoothing, std::optional<double> threshold, int64_t reduction) {
  LossTensors t(logits, labels, partner, weight, class_weight, pos_weight, pairing, per, true);
  const cpu::LossArgs args = binary_args(t, label_smoothing, threshold);
  const Tensor out = empty_cpu("the gradient", {t.batch(), t.classes()}, logits.scalar_type());
  const int64_t step = t.grad_step(grad);
  cpu::binary_cross_entropy_backward(args, grad.const_data_ptr(), step, t.factor(reduction), out.mutable_data_ptr(),
                                     parallel());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fusedmix_cpp, CPU, m) {
  m.impl("sample", TORCH_BOX(&sample));
  m.impl("mask", TORCH_BOX(&mask));
  m.impl("fourier", TORCH_BOX(&fourier));
  m.impl("mix", TORCH_BOX(&mix));
  m.impl("mix_", TORCH_BOX(&mix_));
  m.impl("mix_adjoint", TORCH_BOX(&mix_adjoint));
  m.impl("mix_labels", TORCH_BOX(&mix_labels));
  m.impl("mix_batch", TORCH_BOX(&mix_batch));
  m.impl("mix_batch_", TORCH_BOX(&mix_batch_));
  m.impl("cross_entropy", TORCH_BOX(&cross_entropy));
  m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward));
  m.impl("binary_cross_entropy", TORCH_BOX(&binary_cross_entropy));
  m.impl("binary_cross_entropy_backward", TORCH_BOX(&binary_cross_entropy_backward));
}

}  // namespace fusedmix
