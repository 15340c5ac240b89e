// The operators of torch.ops.fusedmix_cuda (schemas: fusedmix/ops.py) over csrc/cuda: the checks of tensors, where
// memory comes from, and on which device and stream things run.
#include "../cuda/step.h"

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/device.h>

#include <algorithm>
#include <array>
#include <string>

#include "common.h"
#include "losses.h"

namespace fusedmix {
namespace {

using torch::stable::Device;
using torch::stable::accelerator::DeviceGuard;

// Memory of a device, which is the current one while it lives, and the caller's current stream there.
struct Target final : cuda::Memory {
  int32_t device;
  DeviceGuard guard;
  std::vector<Tensor> kept;  // what was given out, and what kernels read besides

  explicit Target(int32_t index) : device(index), guard(index) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
  }

  Tensor tensor(const char* what, std::initializer_list<int64_t> sizes, ScalarType dtype) {
    try {
      return fusedmix::empty(what, sizes, dtype, aoti_torch_device_type_cuda(), device);
    } catch (const std::runtime_error&) {
      check(cudaPeekAtLastError());  // after an error of a kernel memory cannot be had either
      throw;
    }
  }
  void* empty(const char* name, int64_t bytes) override {
    kept.push_back(tensor(name, {bytes}, ScalarType::Byte));
    return kept.back().mutable_data_ptr();
  }
  // The driver takes a copy of pageable memory before it returns.
  const void* upload(const char* name, const void* bytes, int64_t size) override {
    cudaStreamCaptureStatus capturing;
    check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &capturing));
    if (capturing != cudaStreamCaptureStatusNone) {
      throw std::runtime_error(
          std::string("fusedmix: ") + name + " of " + std::to_string(size) + " bytes on the CPU cannot be captured in a CUDA graph: more than " +
          std::to_string(cuda::kInlineBytes) + " do not fit a kernel's arguments. Move it first: plan.to(device).");
    }
    void* there = empty(name, size);
    check(cudaMemcpyAsync(there, bytes, size, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)));
    return there;
  }
  // Asked of each device once; two threads may both ask: they write the same numbers.
  const device::Limits& limits() override {
    static std::array<device::Limits, 64> known{};
    device::Limits& its = known[device % 64];
    if (its.multiprocessors == 0 || device >= 64) check(cuda::limits(its));
    return its;
  }
  void check(int error) override {
    if (error == 0) return;
    throw std::runtime_error(std::string("fusedmix: CUDA error: ") + cudaGetErrorString(static_cast<cudaError_t>(error)));
  }

  void check_here(const char* name, const Tensor& t) const {
    if (!t.is_cuda() || t.get_device_index() != device) refuse(std::string(name) + " must be on the GPU of the images or logits");
  }
  // What may also be on the host.
  void check_near(const char* name, const Tensor& t) const {
    if (t.is_cuda()) check_here(name, t);
  }

  // A tensor of a plan.
  template <class T>
  cuda::Part<T> part(const char* name, const Tensor& t, ScalarType dtype, std::initializer_list<int64_t> sizes) {
    check_near(name, t);
    kept.push_back(packed(name, t, dtype, sizes));
    return {const_data<T>(kept.back()), !t.is_cuda()};
  }
  // Kernels load records 16 bytes at a time: one that lies elsewhere, in memory of the caller's making, is copied.
  void add_masks(cuda::GivenPlan& plan, const Tensor& masks, int64_t families) {
    check_number("families", families, 1, kAllFamilies);
    plan.families = static_cast<int32_t>(families);
    plan.masks = part<Record>("masks", masks, ScalarType::Int, {plan.batch, kWords});
    if (!masks.is_cuda() || reinterpret_cast<uintptr_t>(plan.masks.data) % 16 == 0) return;
    kept.push_back(torch::stable::clone(kept.back()));
    plan.masks.data = const_data<Record>(kept.back());
  }
  void add_pixels(cuda::GivenPlan& plan, const std::optional<Tensor>& pixels, const int64_t* sides, int64_t per) {
    if (!pixels) return;
    check_near("pixels", *pixels);
    kept.push_back(*pixels);
    plan.pixels = pixels_of(*pixels, plan.families, sides, per, plan.batch, kept.back());
    plan.pixels_on_host = !pixels->is_cuda();
  }
  cuda::GivenPlan with_partners(int64_t batch, int64_t pairing, const Tensor& partner) {
    cuda::GivenPlan plan{};
    plan.batch = batch;
    plan.pairing = static_cast<int32_t>(pairing);
    plan.partner = part<int64_t>("partner", partner, ScalarType::Long, {batch});
    return plan;
  }
  void add_weights(cuda::GivenPlan& plan, const Tensor& weight, bool shared) {
    plan.weight = part<double>("weight", weight, ScalarType::Double, {plan.batch});
    plan.weight_shared = shared;
  }
};

cuda::Images images_of(const Tensor& src, const Tensor& dst, int64_t spatial, bool adjoint = false) {
  return {element_type(src), src.const_data_ptr(), dst.mutable_data_ptr(), layout_of(src, dst, spatial), adjoint};
}

// ---- applying a plan ----

enum class Way { kOutOfPlace, kInPlace, kAdjoint };

Tensor apply(Way way, const Tensor& src, const Tensor& partner, const Tensor& masks, int64_t families, int64_t ndim,
             int64_t pairing, int64_t per, const std::optional<Tensor>& pixels) {
  if (!src.is_cuda()) refuse("images must be on a GPU");
  int64_t sides[3];
  check_images(src, ndim, way == Way::kAdjoint, sides);
  check_hints(pairing, per);
  const int64_t batch = src.size(0);
  Target target(src.get_device_index());
  cuda::GivenPlan plan = target.with_partners(batch, pairing, partner);
  plan.shared = per == kPerBatch;
  target.add_masks(plan, masks, families);
  target.add_pixels(plan, pixels, sides, per);
  const PlanView view{nullptr, plan.masks.data, plan.families, plan.pairing, plan.shared, plan.pixels};
  if (plan.masks.on_host) check_masks(view, batch, ndim > 0);
  const Tensor dst = way == Way::kInPlace ? src : new_like(src);
  cuda::apply(target, images_of(src, dst, ndim, way == Way::kAdjoint), plan, way != Way::kOutOfPlace);
  return dst;
}

Tensor mix(Tensor x, Tensor partner, Tensor masks, int64_t families, int64_t ndim, int64_t pairing, int64_t per,
           std::optional<Tensor> pixels) {
  return apply(Way::kOutOfPlace, x, partner, masks, families, ndim, pairing, per, pixels);
}

void mix_(Tensor x, Tensor partner, Tensor masks, int64_t families, int64_t ndim, int64_t pairing, int64_t per,
          std::optional<Tensor> pixels) {
  apply(Way::kInPlace, x, partner, masks, families, ndim, pairing, per, pixels);
}

Tensor mix_adjoint(Tensor grad, Tensor partner, Tensor masks, int64_t families, int64_t ndim, int64_t pairing, int64_t per,
                   std::optional<Tensor> pixels) {
  return apply(Way::kAdjoint, grad, partner, masks, families, ndim, pairing, per, pixels);
}

Tensor mask(Tensor masks, int64_t families, std::vector<int64_t> size, int64_t per, std::optional<Tensor> pixels) {
  if (!masks.is_cuda()) refuse("masks must be on a GPU");
  int64_t sides[3];
  to_sides(size, sides, 0);
  check_hints(kRandom, per);
  Target target(masks.get_device_index());
  cuda::GivenPlan plan{};
  plan.batch = rows_of("masks", masks);
  target.add_masks(plan, masks, families);
  target.add_pixels(plan, pixels, sides, per);
  Tensor out = new_masks(masks, plan.batch, size);
  cuda::masks(target, plan, sides, data<float>(out));
  return out;
}

// On the GPU that the plan is on. The seed may be on the host.
Tensor fourier(Tensor spec, Tensor masks, Tensor seed, std::vector<int64_t> size, int64_t per, int64_t draws, bool soft) {
  if (!masks.is_cuda()) refuse("masks must be on a GPU");
  Target target(masks.get_device_index());
  target.check_near("seed", seed);
  const Tensor rows = packed_spec(spec);
  cuda::Fourier f{};
  f.rows = reinterpret_cast<const MethodRow*>(rows.const_data_ptr());
  f.methods = static_cast<int32_t>(rows.size(0));
  f.extent = extent_of(size, 1);
  f.batch = rows_of("masks", masks);
  check_hints(kRandom, per);
  check_hints(kRandom, draws);
  masks = packed("masks", masks, ScalarType::Int, {f.batch, kWords});
  packed_number("seed", seed, ScalarType::Long, f.batch > 0);
  f.per = static_cast<int32_t>(per);
  f.draws = static_cast<int32_t>(draws);
  if (seed.is_cuda()) {
    f.seed = const_data<int64_t>(seed);
  } else if (seed.numel() > 0) {
    f.seed_value = static_cast<uint64_t>(*const_data<int64_t>(seed));
  }
  f.masks = const_data<Record>(masks);
  const int64_t pixels = stored_pixels(f.extent.size), n = mask_rows(per, f.batch);
  const Tensor out = soft ? target.tensor("the pixels of FMix's masks", {n, pixels}, ScalarType::Short)
                          : target.tensor("the pixels of FMix's masks", {n, (pixels + 31) / 32}, ScalarType::Int);
  if (soft) {
    f.levels = data<uint16_t>(out);
  } else {
    f.bits = data<uint32_t>(out);
  }
  cuda::fourier(target, f);
  return out;
}

// ---- labels ----

// Targets to write, and the tensor that will hold them.
std::pair<cuda::Targets, Tensor> targets_of(Target& target, const Tensor& y, int64_t num_classes, double label_smoothing) {
  cuda::Targets t{};
  t.label_type = label_type(y);
  t.soft = y.dim() == 2;
  t.row_stride = y.stride(0);
  t.step = t.soft ? y.stride(1) : 0;
  t.batch = y.size(0);
  t.num_classes = num_classes;
  t.smoothing = label_smoothing;
  const bool floating = t.soft && t.label_type >= kLabelFloat;
  const Tensor out = target.tensor("the targets", {t.batch, num_classes}, floating ? y.scalar_type() : ScalarType::Float);
  t.out_type = element_type(out);
  t.out = out.mutable_data_ptr();
  t.labels = out.numel() > 0 ? y.const_data_ptr() : nullptr;
  return {t, out};
}

Tensor mix_labels(Tensor labels, Tensor partner, Tensor weight, int64_t num_classes, double label_smoothing) {
  if (!labels.is_cuda()) refuse("labels must be on a GPU");
  const int64_t batch = rows_of("labels", labels);
  check_labels(labels, batch, num_classes, true);
  Target target(labels.get_device_index());
  cuda::GivenPlan plan = target.with_partners(batch, kRandom, partner);
  target.add_weights(plan, weight, false);
  const auto [targets, out] = targets_of(target, labels, num_classes, label_smoothing);
  target.check(cuda::write_targets(cuda::place(target, plan), targets, target.stream));
  return out;
}

// ---- sampling ----

// The request of a plan that is drawn on the device, into `plan`.
cuda::Sampling sampling_of(const Target& target, Request& request, const Plan& plan) {
  const cpu::SampleArgs args = request.args();
  cuda::Sampling s{};
  s.rows = args.rows;
  s.methods = args.methods;
  s.batch = args.batch;
  s.extent = args.extent;
  s.pairing = args.pairing;
  s.per = args.per;
  s.p = args.p;
  s.lam = args.lam;
  s.lam_each = args.lam_each;
  s.classes = args.classes;
  if (request.lam) target.check_here("lam", *request.lam);
  if (request.classes) target.check_here("labels", *request.classes);
  target.check_near("seed", *request.seed);
  if (request.seed->is_cuda()) {
    if (request.seed->numel() == 0) refuse("seed must be one number, but is empty");
    s.seed = const_data<int64_t>(*request.seed);
  } else {
    s.seed_value = seed_value(*request.seed);
  }
  s.out = plan_out(plan);
  return s;
}

Plan sample(Tensor spec, int64_t batch_size, std::vector<int64_t> size, int64_t pairing, int64_t per, double p,
            std::optional<Tensor> lam, std::optional<Tensor> labels, std::optional<Tensor> seed,
            std::optional<Tensor> drawn, std::optional<Tensor> partner, Device device) {
  Request request{spec, batch_size, size, pairing, per, p, lam, labels, seed, drawn, partner};
  if (!seed) return sample_on_cpu(request);
  const int32_t index = device.index() >= 0 ? device.index() : torch::stable::accelerator::getCurrentDeviceIndex();
  Target target(index);
  const Plan plan = empty_plan(batch_size, aoti_torch_device_type_cuda(), index);
  cuda::Pass(target, nullptr, kRandom, 0).sample(sampling_of(target, request, plan));
  return plan;
}

// ---- a whole step ----

std::tuple<Tensor, Tensor, Plan> step(Way way, const Tensor& x, const Tensor& y, Request request, int64_t num_classes,
                                      double label_smoothing) {
  check_step(x, y, request, way == Way::kInPlace, num_classes);
  if (!x.is_cuda()) refuse("images must be on a GPU");
  label_type(y);
  Target target(x.get_device_index());
  target.check_here("labels", y);
  // Before anything is drawn: memory may be short.
  const Tensor out = way == Way::kInPlace ? x : new_like(x);
  const cuda::Images images = images_of(x, out, request.spatial());
  // Partners that were drawn elsewhere need not follow from the pairing.
  const auto pairing = static_cast<int32_t>(request.partner ? int64_t{kRandom} : request.pairing);
  const cuda::Pass pass(target, &images, pairing, static_cast<int32_t>(request.families()));
  const auto [targets, dense] = targets_of(target, y, num_classes, label_smoothing);

  const bool on_device = request.seed.has_value();
  const Plan made =
      on_device ? empty_plan(request.batch, aoti_torch_device_type_cuda(), target.device) : sample_on_cpu(request);
  const auto& [partner, lam, weight, masks] = made;
  cuda::GivenPlan plan = target.with_partners(request.batch, pairing, partner);
  plan.shared = request.shared();
  target.add_masks(plan, masks, request.families());
  target.add_weights(plan, weight, plan.shared);
  const cuda::Sampling sampling = on_device ? sampling_of(target, request, made) : cuda::Sampling{};
  pass.run(on_device ? &sampling : nullptr, plan, targets);
  return {out, dense, made};
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

int32_t device_of(const Tensor& logits) {
  if (!logits.is_cuda()) refuse("logits must be on a GPU");
  return logits.get_device_index();
}

// A loss and its plan.
struct LossLaunch {
  LossTensors tensors;
  Target target;
  cuda::GivenPlan plan;
  cuda::Loss loss{};

  LossLaunch(const LossTensors& t, int64_t pairing, int64_t per, double label_smoothing)
      : tensors(t), target(device_of(t.logits)), plan(target.with_partners(t.batch(), pairing, t.partner)) {
    target.add_weights(plan, t.weight, per == kPerBatch);
    target.check_here("labels", t.labels);
    for (const auto& weights : {t.class_weight, t.pos_weight}) {
      if (weights) target.check_here("the weights of classes", *weights);
    }
    loss.type = element_type(t.logits);
    loss.logits = t.logits.const_data_ptr();
    loss.row_stride = t.logits.stride(0);
    loss.step = t.logits.stride(1);
    loss.labels = t.labels.const_data_ptr();
    loss.label_type = label_type(t.labels);
    loss.soft = t.labels.dim() == 2;
    loss.label_stride = t.labels.stride(0);
    loss.label_step = loss.soft ? t.labels.stride(1) : 0;
    if (t.class_weight) loss.class_weight = t.class_weight->const_data_ptr();
    if (t.pos_weight) loss.pos_weight = t.pos_weight->const_data_ptr();
    loss.batch = t.batch();
    loss.num_classes = t.classes();
    loss.smoothing = label_smoothing;
  }

  // (losses or their sum, statistics, scale)
  std::tuple<Tensor, Tensor, Tensor> forward(int64_t reduction, bool counted, double factor) {
    check_number("reduction", reduction, kNone, kMeanOfAll);
    const Tensor rows = target.tensor("the losses", {tensors.batch()}, tensors.compute());
    const Tensor statistics = target.tensor("the losses", {loss.binary ? 0 : tensors.batch(), 2}, tensors.compute());
    const Tensor scale = target.tensor("a loss", {}, tensors.compute()), sum = target.tensor("a loss", {}, tensors.compute());
    cuda::loss(target, loss, plan, counted, factor,
               {rows.mutable_data_ptr(), statistics.mutable_data_ptr(), sum.mutable_data_ptr(), scale.mutable_data_ptr()});
    return {reduction == kNone ? rows : sum, statistics, scale};
  }

  Tensor gradient(const Tensor& grad, double factor, const void* scale, const void* statistics) {
    target.check_here("grad", grad);
    const int64_t step = tensors.grad_step(grad);
    const Tensor out = target.tensor("the gradient", {tensors.batch(), tensors.classes()}, tensors.logits.scalar_type());
    cuda::loss_gradient(target, loss, plan, {grad.const_data_ptr(), step, factor, scale, statistics}, out.mutable_data_ptr());
    return out;
  }
};

std::tuple<Tensor, Tensor, Tensor> cross_entropy(Tensor logits, Tensor labels, Tensor partner, Tensor weight,
                                                 int64_t pairing, int64_t per, std::optional<Tensor> class_weight,
                                                 double label_smoothing, int64_t ignore_index, int64_t reduction) {
  LossLaunch launch({logits, labels, partner, weight, class_weight, std::nullopt, pairing, per, false}, pairing, per, label_smoothing);
  launch.loss.ignore = ignore_index;
  return launch.forward(reduction, reduction == kMean, 1.0);
}

Tensor cross_entropy_backward(Tensor grad, Tensor logits, Tensor labels, Tensor partner, Tensor weight, int64_t pairing,
                              int64_t per, std::optional<Tensor> class_weight, Tensor statistics, Tensor scale,
                              double label_smoothing, int64_t ignore_index) {
  LossLaunch launch({logits, labels, partner, weight, class_weight, std::nullopt, pairing, per, false}, pairing, per, label_smoothing);
  launch.loss.ignore = ignore_index;
  launch.target.check_here("statistics", statistics);
  launch.target.check_here("scale", scale);
  statistics = packed("statistics", statistics, launch.tensors.compute(), {launch.tensors.batch(), 2});
  scale = packed("scale", scale, launch.tensors.compute(), {});
  return launch.gradient(grad, 1.0, scale.const_data_ptr(), statistics.const_data_ptr());
}

LossLaunch binary_launch(const LossTensors& tensors, int64_t pairing, int64_t per, double label_smoothing,
                         std::optional<double> threshold) {
  LossLaunch launch(tensors, pairing, per, label_smoothing);
  launch.loss.binary = true;
  launch.loss.thresholded = threshold.has_value();
  launch.loss.threshold = threshold.value_or(0);
  return launch;
}

Tensor binary_cross_entropy(Tensor logits, Tensor labels, Tensor partner, Tensor weight, int64_t pairing, int64_t per,
                            std::optional<Tensor> class_weight, std::optional<Tensor> pos_weight, double label_smoothing,
                            std::optional<double> threshold, int64_t reduction) {
  const LossTensors tensors(logits, labels, partner, weight, class_weight, pos_weight, pairing, per, true);
  LossLaunch launch = binary_launch(tensors, pairing, per, label_smoothing, threshold);
  return std::get<0>(launch.forward(reduction, false, tensors.factor(reduction)));
}

Tensor binary_cross_entropy_backward(Tensor grad, Tensor logits, Tensor labels, Tensor partner, Tensor weight, int64_t pairing,
                                     int64_t per, std::optional<Tensor> class_weight, std::optional<Tensor> pos_weight,
                                     double label_smoothing, std::optional<double> threshold, int64_t reduction) {
  const LossTensors tensors(logits, labels, partner, weight, class_weight, pos_weight, pairing, per, true);
  LossLaunch launch = binary_launch(tensors, pairing, per, label_smoothing, threshold);
  return launch.gradient(grad, tensors.factor(reduction), nullptr, nullptr);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fusedmix_cuda, CUDA, m) {
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

// Its tensors may all be on the CPU: a spec and a seed.
STABLE_TORCH_LIBRARY_IMPL(fusedmix_cuda, CompositeExplicitAutograd, m) { m.impl("sample", TORCH_BOX(&sample)); }

}  // namespace fusedmix
