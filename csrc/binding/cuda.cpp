// The operators of torch.ops.fusedmix_cuda (schemas: fusedmix/ops.py) over csrc/cuda: where memory comes from, on which
// device and stream things run, and how plans that are on the host get there.
#include "../cuda/kernels.h"
#include "../cuda/losses.h"

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

void check(int error) {
  if (error == 0) return;
  throw std::runtime_error(std::string("fusedmix: CUDA error: ") + cudaGetErrorString(static_cast<cudaError_t>(error)));
}

// While it lives, a device is the current one; its stream is the caller's current stream there.
struct Target {
  int32_t device;
  DeviceGuard guard;
  void* stream = nullptr;

  explicit Target(int32_t index) : device(index), guard(index) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
  }

  Tensor empty(const char* what, std::initializer_list<int64_t> sizes, ScalarType dtype) const {
    try {
      return fusedmix::empty(what, sizes, dtype, aoti_torch_device_type_cuda(), device);
    } catch (const std::runtime_error&) {
      check(cudaPeekAtLastError());  // after an error of a kernel memory cannot be had either
      throw;
    }
  }

  bool has(const Tensor& t) const { return t.is_cuda() && t.get_device_index() == device; }
  void check_here(const char* name, const Tensor& t) const {
    if (!has(t)) refuse(std::string(name) + " must be on the GPU of the images or logits");
  }
  // What may also be on the host.
  void check_near(const char* name, const Tensor& t) const {
    if (t.is_cuda()) check_here(name, t);
  }

  int multiprocessors() const {
    static std::array<int, 64> known{};  // two threads may both ask: they write the same number
    int count = device < 64 ? known[device] : 0;
    if (count == 0) {
      check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
      if (device < 64) known[device] = count;
    }
    return count;
  }

  // Host memory on the device, in stream order. The driver takes a copy of pageable memory before it returns.
  Tensor upload(const void* bytes, int64_t size) const {
    cudaStreamCaptureStatus capturing;
    check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &capturing));
    if (capturing != cudaStreamCaptureStatusNone) {
      throw std::runtime_error(
          "fusedmix: a plan of " + std::to_string(size) + " bytes on the CPU cannot be captured in a CUDA graph: more than " +
          std::to_string(cuda::kInlineBytes) + " do not fit a kernel's arguments. Move it first: plan.to(device).");
    }
    Tensor there = empty("a plan", {size}, ScalarType::Byte);
    check(cudaMemcpyAsync(there.mutable_data_ptr(), bytes, size, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)));
    return there;
  }
};

// A plan where a kernel can read it: the tensors themselves, or those on the host packed into the kernel's arguments, or
// into one copy if they are too large for that.
class LaunchPlan {
 public:
  PlanView view{};
  const double* weight = nullptr;
  bool weight_shared = false;
  // Where the host can read them; partners only if they follow from no formula.
  const int64_t* host_partners = nullptr;
  const int32_t* host_kinds = nullptr;
  const cuda::InlinePlan* inline_plan() const { return travels_ ? &inline_ : nullptr; }

  // Masks that are stored. On the host they take a copy: a bit for each pixel exceeds a kernel's arguments.
  void add_pixels(const Target& target, const Tensor& pixels, const int64_t* sides, int64_t per, int64_t batch) {
    target.check_near("pixels", pixels);
    Tensor kept = pixels;
    view.pixels = pixels_of(pixels, sides, per, batch, kept);
    kept_.push_back(kept);
    if (kept.is_cuda()) return;
    kept_.push_back(target.upload(kept.const_data_ptr(), kept.numel() * static_cast<int64_t>(kept.element_size())));
    const Tensor& there = kept_.back();
    if (view.pixels.bits != nullptr) {
      view.pixels.bits = const_data<uint32_t>(there);
    } else {
      view.pixels.levels = const_data<uint16_t>(there);
    }
  }

  // Of `batch` samples. Any of the tensors may be null: not read. Partners are loaded but where a formula has them.
  LaunchPlan(const Target& target, int64_t batch, const Tensor* partner, const Tensor* kind, const Tensor* geometry,
             const Tensor* value, const Tensor* weight_tensor, int64_t pairing, bool shared, bool one_weight) {
    view.shared = shared;
    weight_shared = one_weight;
    Tensor partners = partner == nullptr ? empty_cpu("a plan", {0}, ScalarType::Long) : *partner;
    if (partner != nullptr) {
      target.check_near("partner", *partner);
      partners = packed("partner", *partner, ScalarType::Long, {batch});
      const auto* numbers = const_data<int64_t>(partners);
      if (!partners.is_cuda() && !(pairing <= kFlip && are_formula(numbers, batch, static_cast<int32_t>(pairing)))) {
        check_partners(numbers, batch);
        host_partners = numbers;
        pairing = kRandom;  // hand-made partners need not follow from the pairing that they came with
      }
    }
    view.pairing = static_cast<int32_t>(pairing);
    Field fields[] = {{"weight", weight_tensor, ScalarType::Double, 0, one_weight},
                      {"partner", pairing <= kFlip || partner == nullptr ? nullptr : &partners, ScalarType::Long, 0, false},
                      {"value", value, ScalarType::Float, 2, shared},
                      {"geometry", geometry, ScalarType::Int, 6, shared},
                      {"kind", kind, ScalarType::Int, 0, shared}};
    const void** pointers[] = {reinterpret_cast<const void**>(&weight), reinterpret_cast<const void**>(&view.partner),
                               reinterpret_cast<const void**>(&view.value), reinterpret_cast<const void**>(&view.geometry),
                               reinterpret_cast<const void**>(&view.kind)};
    std::vector<char> blob;
    bool on_host = false;
    for (int f = 0; f < 5; ++f) {
      const Field& field = fields[f];
      if (field.tensor == nullptr) continue;
      target.check_near(field.name, *field.tensor);
      kept_.push_back(field.columns == 0 ? packed(field.name, *field.tensor, field.dtype, {batch})
                                         : packed(field.name, *field.tensor, field.dtype, {batch, field.columns}));
      const Tensor& t = kept_.back();
      if (t.is_cuda()) {
        *pointers[f] = t.const_data_ptr();
        continue;
      }
      on_host = true;
      const int64_t bytes = t.numel() * bytes_of(field.dtype) / (field.one_row && batch > 0 ? batch : 1);
      if (field.tensor == kind) host_kinds = const_data<int32_t>(t);
      *pointers[f] = reinterpret_cast<const void*>(blob.size());
      const char* from = static_cast<const char*>(t.const_data_ptr());
      blob.insert(blob.end(), from, from + bytes);
    }
    if (!on_host) return;
    for (const Tensor& t : kept_) {
      if (t.is_cuda()) refuse("the tensors of a plan must be on one device");
    }
    if (static_cast<int64_t>(blob.size()) <= cuda::kInlineBytes) {
      travels_ = true;
      std::copy(blob.begin(), blob.end(), inline_.bytes);
      return;
    }
    kept_.push_back(target.upload(blob.data(), static_cast<int64_t>(blob.size())));
    const char* base = static_cast<const char*>(kept_.back().const_data_ptr());
    for (int f = 0; f < 5; ++f) {
      if (fields[f].tensor != nullptr) *pointers[f] = base + reinterpret_cast<uintptr_t>(*pointers[f]);
    }
  }

 private:
  struct Field {
    const char* name;
    const Tensor* tensor;
    ScalarType dtype;
    int64_t columns;  // 0: one dim
    bool one_row;
  };

  std::vector<Tensor> kept_;
  cuda::InlinePlan inline_;
  bool travels_ = false;
};

cuda::Images images_of(const Tensor& src, const Tensor& dst, int64_t spatial, bool adjoint = false) {
  return {element_type(src), src.const_data_ptr(), dst.mutable_data_ptr(), layout_of(src, dst, spatial), adjoint};
}

Tensor scratch(const Target& target, const cuda::Walk& walk) {
  return target.empty("the heads of a batch", {walk.staged_bytes}, ScalarType::Byte);
}

// ---- applying a plan ----

enum class Way { kOutOfPlace, kInPlace, kAdjoint };

Tensor apply(Way way, const Tensor& src, const Tensor& partner, const Tensor& kind, const Tensor& geometry, const Tensor& value,
             int64_t ndim, int64_t pairing, int64_t per, const std::optional<Tensor>& pixels) {
  if (!src.is_cuda()) refuse("images must be on a GPU");
  int64_t sides[3];
  check_images(src, ndim, way == Way::kAdjoint, sides);
  check_hints(pairing, per);
  const int64_t batch = src.size(0);
  const Target target(src.get_device_index());
  LaunchPlan plan(target, batch, &partner, &kind, &geometry, &value, nullptr, pairing, per == kPerBatch, false);
  if (pixels) plan.add_pixels(target, *pixels, sides, per, batch);
  if (plan.host_kinds != nullptr) check_kinds(plan.host_kinds, batch, ndim > 0, pixels.has_value());
  const bool repeated = plan.host_partners != nullptr && !is_permutation(plan.host_partners, batch);
  if (repeated && way != Way::kOutOfPlace) refuse_repeated_partners();
  const Tensor dst = way == Way::kInPlace ? src : new_like(src);
  if (src.numel() == 0) return dst;
  const cuda::Images images = images_of(src, dst, ndim, way == Way::kAdjoint);
  cuda::Walk walk = cuda::plan_walk(images, plan.view.pairing, target.multiprocessors());
  if (repeated) walk = cuda::walk_each(walk, batch);
  const Tensor staged = scratch(target, walk);
  if (walk.staged_bytes > 0) check(cuda::stage(images, walk, staged.mutable_data_ptr(), target.stream));
  const void* heads = walk.staged_bytes > 0 ? staged.const_data_ptr() : nullptr;
  check(cuda::mix(&images, plan.view, plan.inline_plan(), walk, heads, cuda::Targets{}, target.stream));
  return dst;
}

Tensor mix(Tensor x, Tensor partner, Tensor kind, Tensor geometry, Tensor value, int64_t ndim, int64_t pairing,
           int64_t per, std::optional<Tensor> pixels) {
  return apply(Way::kOutOfPlace, x, partner, kind, geometry, value, ndim, pairing, per, pixels);
}

void mix_(Tensor x, Tensor partner, Tensor kind, Tensor geometry, Tensor value, int64_t ndim, int64_t pairing,
          int64_t per, std::optional<Tensor> pixels) {
  apply(Way::kInPlace, x, partner, kind, geometry, value, ndim, pairing, per, pixels);
}

Tensor mix_adjoint(Tensor grad, Tensor partner, Tensor kind, Tensor geometry, Tensor value, int64_t ndim, int64_t pairing,
                   int64_t per, std::optional<Tensor> pixels) {
  return apply(Way::kAdjoint, grad, partner, kind, geometry, value, ndim, pairing, per, pixels);
}

Tensor mask(Tensor kind, Tensor geometry, Tensor value, std::vector<int64_t> size, int64_t per, std::optional<Tensor> pixels) {
  if (!kind.is_cuda()) refuse("kind must be on a GPU");
  int64_t sides[3];
  to_sides(size, sides, 0);
  check_hints(kRandom, per);
  const Target target(kind.get_device_index());
  const int64_t n = rows_of("kind", kind);
  target.check_here("geometry", geometry);
  target.check_here("value", value);
  LaunchPlan plan(target, n, nullptr, &kind, &geometry, &value, nullptr, kRoll, false, false);
  if (pixels) plan.add_pixels(target, *pixels, sides, per, n);
  Tensor out = new_masks(value, n, size);
  check(cuda::masks(plan.view, n, sides, data<float>(out), target.stream));
  return out;
}

// On the GPU that the plan is on. The seed may be on the host.
Tensor fourier(Tensor spec, Tensor kind, Tensor geometry, Tensor value, Tensor seed, std::vector<int64_t> size, int64_t per,
               int64_t draws, bool soft) {
  if (!kind.is_cuda()) refuse("kind must be on a GPU");
  const Target target(kind.get_device_index());
  target.check_here("geometry", geometry);
  target.check_here("value", value);
  target.check_near("seed", seed);
  const Tensor rows = packed_spec(spec);
  cuda::Fourier f{};
  f.rows = reinterpret_cast<const MethodRow*>(rows.const_data_ptr());
  f.methods = static_cast<int32_t>(rows.size(0));
  f.ndim = static_cast<int32_t>(size.size());
  to_sides(size, f.size, 1);
  f.batch = rows_of("kind", kind);
  check_hints(kRandom, per);
  check_hints(kRandom, draws);
  kind = packed("kind", kind, ScalarType::Int, {f.batch});
  geometry = packed("geometry", geometry, ScalarType::Int, {f.batch, 6});
  value = packed("value", value, ScalarType::Float, {f.batch, 2});
  packed_number("seed", seed, ScalarType::Long, f.batch > 0);
  f.per = static_cast<int32_t>(per);
  f.draws = static_cast<int32_t>(draws);
  if (seed.is_cuda()) {
    f.seed = const_data<int64_t>(seed);
  } else if (seed.numel() > 0) {
    f.seed_value = static_cast<uint64_t>(*const_data<int64_t>(seed));
  }
  f.kind = const_data<int32_t>(kind);
  f.geometry = const_data<int32_t>(geometry);
  f.value = const_data<float>(value);
  const int64_t pixels = stored_pixels(f.size), n = mask_rows(per, f.batch);
  const Tensor out = soft ? target.empty("the pixels of FMix's masks", {n, pixels}, ScalarType::Short)
                          : target.empty("the pixels of FMix's masks", {n, (pixels + 31) / 32}, ScalarType::Int);
  if (soft) {
    f.levels = data<uint16_t>(out);
  } else {
    f.bits = data<uint32_t>(out);
  }
  const Tensor memory = target.empty("the grey images of FMix", {cuda::fourier_scratch(f)}, ScalarType::Byte);
  f.scratch = data<char>(memory);
  check(cuda::fourier(f, target.stream));
  return out;
}

// ---- labels ----

int32_t label_type(ScalarType type) {
  switch (type) {
    case ScalarType::Long: return cuda::kLabelInt64;
    case ScalarType::Int: return cuda::kLabelInt32;
    case ScalarType::Short: return cuda::kLabelInt16;
    case ScalarType::Char: return cuda::kLabelInt8;
    case ScalarType::Byte: return cuda::kLabelUInt8;
    case ScalarType::Bool: return cuda::kLabelUInt8;
    case ScalarType::UInt16: return cuda::kLabelUInt16;
    case ScalarType::UInt32: return cuda::kLabelUInt32;
    case ScalarType::UInt64: return cuda::kLabelUInt64;
    case ScalarType::Float: return cuda::kLabelFloat;
    case ScalarType::Half: return cuda::kLabelHalf;
    case ScalarType::BFloat16: return cuda::kLabelBFloat16;
    case ScalarType::Double: return cuda::kLabelDouble;
    default: refuse("labels of " + name_of(type) + " cannot be mixed");
  }
}

// Targets to write, and the tensor that will hold them.
std::pair<cuda::Targets, Tensor> targets_of(const Target& target, const Tensor& y, const LaunchPlan& plan,
                                            int64_t num_classes, double label_smoothing) {
  cuda::Targets t{};
  t.label_type = label_type(y.scalar_type());
  t.soft = y.dim() == 2;
  t.row_stride = y.stride(0);
  t.step = t.soft ? y.stride(1) : 0;
  t.weight = plan.weight;
  t.weight_shared = plan.weight_shared;
  t.batch = y.size(0);
  t.num_classes = num_classes;
  t.smoothing = label_smoothing;
  const bool floating = t.soft && t.label_type >= cuda::kLabelFloat;
  const Tensor out = target.empty("the targets", {t.batch, num_classes}, floating ? y.scalar_type() : ScalarType::Float);
  t.out_type = element_type(out);
  t.out = out.mutable_data_ptr();
  t.labels = out.numel() > 0 ? y.const_data_ptr() : nullptr;
  return {t, out};
}

Tensor mix_labels(Tensor labels, Tensor partner, Tensor weight, int64_t num_classes, double label_smoothing) {
  if (!labels.is_cuda()) refuse("labels must be on a GPU");
  const int64_t batch = rows_of("labels", labels);
  check_labels(labels, batch, num_classes, true);
  const Target target(labels.get_device_index());
  const LaunchPlan plan(target, batch, &partner, nullptr, nullptr, nullptr, &weight, kRandom, false, false);
  const auto [targets, out] = targets_of(target, labels, plan, num_classes, label_smoothing);
  check(cuda::mix(nullptr, plan.view, plan.inline_plan(), cuda::Walk{}, nullptr, targets, target.stream));
  return out;
}

// ---- sampling ----

// The request of a device plan. What it points to is kept in `kept`.
cuda::Sampling sampling_of(const Target& target, Request& request, const Plan& plan, std::vector<Tensor>& kept) {
  const cpu::SampleArgs args = request.args();
  cuda::Sampling s{};
  s.rows = args.rows;
  s.methods = args.methods;
  if (args.methods > cuda::kInlineRows) {
    kept.push_back(target.upload(args.rows, args.methods * static_cast<int64_t>(sizeof(MethodRow))));
    s.device_rows = static_cast<const MethodRow*>(kept.back().const_data_ptr());
  }
  s.batch = args.batch;
  s.ndim = args.ndim;
  std::copy(args.size, args.size + 3, s.size);
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
  if (args.pairing == kCrossClass) {
    kept.push_back(target.empty("the partners of a batch", {args.batch}, ScalarType::Int));
    s.scratch = data<int32_t>(kept.back());
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
  const Target target(index);
  const Plan plan = empty_plan(batch_size, aoti_torch_device_type_cuda(), index);
  std::vector<Tensor> kept;
  check(cuda::sample(sampling_of(target, request, plan, kept), nullptr, cuda::Walk{}, nullptr, target.stream));
  return plan;
}

// ---- a whole step ----

std::tuple<Tensor, Tensor, Plan> step(Way way, const Tensor& x, const Tensor& y, Request request, int64_t num_classes,
                                      double label_smoothing) {
  check_step(x, y, request, way == Way::kInPlace, num_classes);
  if (!x.is_cuda()) refuse("images must be on a GPU");
  label_type(y.scalar_type());
  const Target target(x.get_device_index());
  target.check_here("labels", y);
  const Tensor out = way == Way::kInPlace ? x : new_like(x);  // before anything is drawn: memory may be short
  const cuda::Images images = images_of(x, out, request.spatial());
  const bool some = x.numel() > 0;
  const cuda::Walk walk =
      some ? cuda::plan_walk(images, static_cast<int32_t>(request.pairing), target.multiprocessors()) : cuda::Walk{};
  const Tensor staged = scratch(target, walk);
  void* heads = walk.staged_bytes > 0 ? staged.mutable_data_ptr() : nullptr;

  Plan made = empty_plan(0, aoti_torch_device_type_cpu(), 0);
  std::vector<Tensor> kept;
  if (request.seed) {
    made = empty_plan(request.batch, aoti_torch_device_type_cuda(), target.device);
    check(cuda::sample(sampling_of(target, request, made, kept), some ? &images : nullptr, walk, heads, target.stream));
  } else {
    made = sample_on_cpu(request);
    if (heads != nullptr) check(cuda::stage(images, walk, heads, target.stream));
  }
  const auto& [partner, lam, weight, kind, geometry, value] = made;
  const bool shared = request.shared();
  const LaunchPlan plan(target, request.batch, &partner, &kind, &geometry, &value, &weight, request.pairing, shared, shared);
  const auto [targets, dense] = targets_of(target, y, plan, num_classes, label_smoothing);
  check(cuda::mix(some ? &images : nullptr, plan.view, plan.inline_plan(), walk, heads, targets, target.stream));
  return {out, dense, made};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mix_batch(
    Tensor x, Tensor y, Tensor spec, int64_t batch_size, std::vector<int64_t> size, int64_t pairing, int64_t per, double p,
    std::optional<Tensor> lam, std::optional<Tensor> labels, std::optional<Tensor> seed, std::optional<Tensor> drawn,
    std::optional<Tensor> partner, int64_t num_classes, double label_smoothing) {
  auto [mixed, targets, plan] = step(Way::kOutOfPlace, x, y, {spec, batch_size, size, pairing, per, p, lam, labels, seed, drawn, partner},
                                     num_classes, label_smoothing);
  return std::tuple_cat(std::make_tuple(mixed, targets), plan);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mix_batch_(
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

// A loss and its plan where kernels can read them.
struct LossLaunch {
  LossTensors tensors;
  Target target;
  LaunchPlan plan;
  cuda::Loss loss{};

  LossLaunch(const LossTensors& t, int64_t pairing, int64_t per, double label_smoothing)
      : tensors(t),
        target(device_of(t.logits)),
        plan(target, t.batch(), &tensors.partner, nullptr, nullptr, nullptr, &tensors.weight, pairing, false, per == kPerBatch) {
    target.check_here("labels", t.labels);
    for (const auto& weights : {t.class_weight, t.pos_weight}) {
      if (weights) target.check_here("the weights of classes", *weights);
    }
    loss.type = element_type(t.logits);
    loss.logits = t.logits.const_data_ptr();
    loss.row_stride = t.logits.stride(0);
    loss.step = t.logits.stride(1);
    loss.labels = t.labels.const_data_ptr();
    loss.label_type = label_type(t.labels.scalar_type());
    loss.soft = t.labels.dim() == 2;
    loss.label_stride = t.labels.stride(0);
    loss.label_step = loss.soft ? t.labels.stride(1) : 0;
    loss.weight = plan.weight;
    loss.weight_shared = plan.weight_shared;
    if (t.class_weight) loss.class_weight = t.class_weight->const_data_ptr();
    if (t.pos_weight) loss.pos_weight = t.pos_weight->const_data_ptr();
    loss.batch = t.batch();
    loss.num_classes = t.classes();
    loss.smoothing = label_smoothing;
  }

  // (losses or their sum, statistics, scale)
  std::tuple<Tensor, Tensor, Tensor> forward(int64_t reduction, bool counted, double factor) const {
    check_number("reduction", reduction, kNone, kMeanOfAll);
    const Tensor rows = target.empty("the losses", {tensors.batch()}, tensors.compute());
    const Tensor statistics = target.empty("the losses", {loss.binary ? 0 : tensors.batch(), 2}, tensors.compute());
    const Tensor scale = target.empty("a loss", {}, tensors.compute());
    check(cuda::loss_rows(loss, plan.view, plan.inline_plan(), rows.mutable_data_ptr(), statistics.mutable_data_ptr(),
                          target.stream));
    const Tensor out = target.empty("a loss", {}, tensors.compute());
    check(cuda::finish_loss(loss, rows.const_data_ptr(), counted, factor, out.mutable_data_ptr(), scale.mutable_data_ptr(),
                            target.stream));
    return {reduction == kNone ? rows : out, statistics, scale};
  }

  Tensor gradient(const Tensor& grad, double factor, const void* scale, const void* statistics) const {
    target.check_here("grad", grad);
    const int64_t step = tensors.grad_step(grad);
    const Tensor out = target.empty("the gradient", {tensors.batch(), tensors.classes()}, tensors.logits.scalar_type());
    check(cuda::loss_gradient(loss, plan.view, plan.inline_plan(), grad.const_data_ptr(), step, factor, scale,
                              statistics, out.mutable_data_ptr(), target.stream));
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
  const LossLaunch launch = binary_launch(tensors, pairing, per, label_smoothing, threshold);
  return std::get<0>(launch.forward(reduction, false, tensors.factor(reduction)));
}

Tensor binary_cross_entropy_backward(Tensor grad, Tensor logits, Tensor labels, Tensor partner, Tensor weight, int64_t pairing,
                                     int64_t per, std::optional<Tensor> class_weight, std::optional<Tensor> pos_weight,
                                     double label_smoothing, std::optional<double> threshold, int64_t reduction) {
  const LossTensors tensors(logits, labels, partner, weight, class_weight, pos_weight, pairing, per, true);
  const LossLaunch launch = binary_launch(tensors, pairing, per, label_smoothing, threshold);
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
