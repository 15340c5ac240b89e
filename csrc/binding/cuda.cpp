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

  Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) const {
    return fusedmix::empty(sizes, dtype, aoti_torch_device_type_cuda(), device);
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
    Tensor there = empty({size}, ScalarType::Byte);
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
  const cuda::InlinePlan* inline_plan() const { return travels_ ? &inline_ : nullptr; }

  // Masks that are stored. On the host they take a copy: a bit for each pixel exceeds a kernel's arguments.
  void add_pixels(const Target& target, const Tensor& pixels, const int64_t* sides, int64_t per, int64_t batch) {
    const Tensor kept = pixels.is_contiguous() ? pixels : torch::stable::contiguous(pixels);
    view.pixels = pixels_of(kept, sides, per, batch);
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

  // Any of the tensors may be null: not read.
  LaunchPlan(const Target& target, const Tensor* partner, const Tensor* kind, const Tensor* geometry, const Tensor* value,
              const Tensor* weight_tensor, int64_t pairing, bool shared, bool one_weight) {
    view.pairing = static_cast<int32_t>(pairing);
    view.shared = shared;
    weight_shared = one_weight;
    Field fields[] = {{weight_tensor, ScalarType::Double, one_weight},
                      {pairing <= kFlip ? nullptr : partner, ScalarType::Long, false},
                      {value, ScalarType::Float, shared},
                      {geometry, ScalarType::Int, shared},
                      {kind, ScalarType::Int, shared}};
    const void** pointers[] = {reinterpret_cast<const void**>(&weight), reinterpret_cast<const void**>(&view.partner),
                               reinterpret_cast<const void**>(&view.value), reinterpret_cast<const void**>(&view.geometry),
                               reinterpret_cast<const void**>(&view.kind)};
    std::vector<char> blob;
    bool on_host = false;
    for (int f = 0; f < 5; ++f) {
      if (fields[f].tensor == nullptr) continue;
      kept_.push_back(packed(*fields[f].tensor, fields[f].dtype));
      const Tensor& t = kept_.back();
      if (t.is_cuda()) {
        *pointers[f] = t.const_data_ptr();
        continue;
      }
      on_host = true;
      const int64_t rows = t.dim() > 0 ? t.size(0) : 1;
      const int64_t bytes = t.numel() * static_cast<int64_t>(t.element_size()) / (fields[f].one_row && rows > 0 ? rows : 1);
      if (f == 1) check_partners(t);
      *pointers[f] = reinterpret_cast<const void*>(blob.size());
      const char* from = static_cast<const char*>(t.const_data_ptr());
      blob.insert(blob.end(), from, from + bytes);
    }
    if (!on_host) return;
    for (const Tensor& t : kept_) {
      if (t.is_cuda()) throw std::invalid_argument("fusedmix: the tensors of a plan must be on one device");
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
    const Tensor* tensor;
    ScalarType dtype;
    bool one_row;
  };

  static void check_partners(const Tensor& t) {
    const int64_t* partner = const_data<int64_t>(t);
    for (int64_t i = 0; i < t.size(0); ++i) {
      if (partner[i] < 0 || partner[i] >= t.size(0)) throw std::out_of_range("fusedmix: partner is not a permutation");
    }
  }

  std::vector<Tensor> kept_;
  cuda::InlinePlan inline_;
  bool travels_ = false;
};

cuda::Images images_of(const Tensor& src, const Tensor& dst, int64_t spatial, bool adjoint = false) {
  return {element_type(src), src.const_data_ptr(), dst.mutable_data_ptr(), layout_of(src, dst, spatial), adjoint};
}

Tensor scratch(const Target& target, const cuda::Walk& walk) { return target.empty({walk.staged_bytes}, ScalarType::Byte); }

// ---- applying a plan ----

void apply(const Tensor& src, const Tensor& dst, const Tensor& partner, const Tensor& kind, const Tensor& geometry,
           const Tensor& value, int64_t ndim, int64_t pairing, int64_t per, const std::optional<Tensor>& pixels,
           bool adjoint = false) {
  if (src.numel() == 0) return;
  const Target target(src.get_device_index());
  LaunchPlan plan(target, &partner, &kind, &geometry, &value, nullptr, pairing, per == kPerBatch, false);
  if (pixels) {
    int64_t sides[3];
    to_sides(src.sizes(), src.dim() - ndim, ndim, sides);
    plan.add_pixels(target, *pixels, sides, per, kind.size(0));
  }
  const cuda::Images images = images_of(src, dst, ndim, adjoint);
  const cuda::Walk walk = cuda::plan_walk(images, static_cast<int32_t>(pairing), target.multiprocessors());
  const Tensor staged = scratch(target, walk);
  if (walk.staged_bytes > 0) check(cuda::stage(images, walk, staged.mutable_data_ptr(), target.stream));
  const void* heads = walk.staged_bytes > 0 ? staged.const_data_ptr() : nullptr;
  check(cuda::mix(&images, plan.view, plan.inline_plan(), walk, heads, cuda::Targets{}, target.stream));
}

Tensor mix(Tensor x, Tensor partner, Tensor kind, Tensor geometry, Tensor value, int64_t ndim, int64_t pairing,
           int64_t per, std::optional<Tensor> pixels) {
  Tensor out = new_like(x);
  apply(x, out, partner, kind, geometry, value, ndim, pairing, per, pixels);
  return out;
}

void mix_(Tensor x, Tensor partner, Tensor kind, Tensor geometry, Tensor value, int64_t ndim, int64_t pairing,
          int64_t per, std::optional<Tensor> pixels) {
  apply(x, x, partner, kind, geometry, value, ndim, pairing, per, pixels);
}

Tensor mix_adjoint(Tensor grad, Tensor partner, Tensor kind, Tensor geometry, Tensor value, int64_t ndim, int64_t pairing,
                   int64_t per, std::optional<Tensor> pixels) {
  Tensor out = new_like(grad);
  apply(grad, out, partner, kind, geometry, value, ndim, pairing, per, pixels, true);
  return out;
}

Tensor mask(Tensor kind, Tensor geometry, Tensor value, std::vector<int64_t> size, int64_t per, std::optional<Tensor> pixels) {
  const Target target(kind.get_device_index());
  LaunchPlan plan(target, nullptr, &kind, &geometry, &value, nullptr, kRoll, false, false);
  int64_t sides[3];
  to_sides(size, 0, static_cast<int64_t>(size.size()), sides);
  if (pixels) plan.add_pixels(target, *pixels, sides, per, kind.size(0));
  std::vector<int64_t> shape{kind.size(0)};
  shape.insert(shape.end(), size.begin(), size.end());
  Tensor out = torch::stable::new_empty(value, torch::headeronly::IntHeaderOnlyArrayRef(shape));
  check(cuda::masks(plan.view, kind.size(0), sides, data<float>(out), target.stream));
  return out;
}

// On the GPU that the plan is on. The seed may be on the host.
Tensor fourier(Tensor spec, Tensor kind, Tensor geometry, Tensor value, Tensor seed, std::vector<int64_t> size, int64_t per,
               int64_t draws, bool soft) {
  if (!kind.is_cuda()) throw std::invalid_argument("fusedmix: the plan is not on a GPU");
  const Target target(kind.get_device_index());
  kind = packed(kind, ScalarType::Int);
  geometry = packed(geometry, ScalarType::Int);
  value = packed(value, ScalarType::Float);
  seed = packed(seed, ScalarType::Long);
  const Tensor rows = packed(spec, ScalarType::Double);
  cuda::Fourier f{};
  f.rows = reinterpret_cast<const MethodRow*>(rows.const_data_ptr());
  f.methods = static_cast<int32_t>(rows.size(0));
  f.ndim = static_cast<int32_t>(size.size());
  to_sides(size, 0, f.ndim, f.size);
  f.batch = kind.size(0);
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
  const int64_t pixels = f.size[0] * f.size[1] * f.size[2], n = mask_rows(per, f.batch);
  const Tensor out = soft ? target.empty({n, pixels}, ScalarType::Short) : target.empty({n, (pixels + 31) / 32}, ScalarType::Int);
  if (soft) {
    f.levels = data<uint16_t>(out);
  } else {
    f.bits = data<uint32_t>(out);
  }
  const Tensor memory = target.empty({cuda::fourier_scratch(f)}, ScalarType::Byte);
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
    default: throw std::invalid_argument("fusedmix: labels of this dtype cannot be mixed");
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
  const Tensor out = target.empty({t.batch, num_classes}, floating ? y.scalar_type() : ScalarType::Float);
  t.out_type = element_type(out);
  t.out = out.mutable_data_ptr();
  t.labels = out.numel() > 0 ? y.const_data_ptr() : nullptr;
  return {t, out};
}

Tensor mix_labels(Tensor labels, Tensor partner, Tensor weight, int64_t num_classes, double label_smoothing) {
  const Target target(labels.get_device_index());
  const LaunchPlan plan(target, &partner, nullptr, nullptr, nullptr, &weight, kRandom, false, false);
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
  for (const auto& t : {request.lam, request.classes}) {
    if (t && !t->is_cuda()) throw std::invalid_argument("fusedmix: lam and classes must be on the device of the plan");
  }
  if (request.seed->is_cuda()) {
    s.seed = const_data<int64_t>(*request.seed);
  } else {
    s.seed_value = seed_value(*request.seed);
  }
  if (args.pairing == kCrossClass) {
    kept.push_back(target.empty({args.batch}, ScalarType::Int));
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

// The masks of FMix are made between the plan and the images.
bool has_fourier(Request& request) {
  const cpu::SampleArgs args = request.args();
  return std::any_of(args.rows, args.rows + args.methods, [](const MethodRow& row) { return is_fourier_method(row.method); });
}

std::tuple<Tensor, Plan> step(const Tensor& x, const Tensor& out, const Tensor& y, Request request, int64_t num_classes,
                              double label_smoothing) {
  check_step(x, y, request, x.get() == out.get(), num_classes);
  const bool here = y.is_cuda() && y.get_device_index() == x.get_device_index();
  if (!here || (y.dim() == 1 && y.scalar_type() == ScalarType::Bool) || has_fourier(request)) {
    throw std::invalid_argument("fusedmix: this batch cannot be mixed in one call");
  }
  label_type(y.scalar_type());
  const Target target(x.get_device_index());
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
  const LaunchPlan plan(target, &partner, &kind, &geometry, &value, &weight, request.pairing, shared, shared);
  const auto [targets, dense] = targets_of(target, y, plan, num_classes, label_smoothing);
  check(cuda::mix(some ? &images : nullptr, plan.view, plan.inline_plan(), walk, heads, targets, target.stream));
  return {dense, made};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mix_batch(
    Tensor x, Tensor y, Tensor spec, int64_t batch_size, std::vector<int64_t> size, int64_t pairing, int64_t per, double p,
    std::optional<Tensor> lam, std::optional<Tensor> labels, std::optional<Tensor> seed, std::optional<Tensor> drawn,
    std::optional<Tensor> partner, int64_t num_classes, double label_smoothing) {
  Tensor out = new_like(x);
  auto [targets, plan] = step(x, out, y, {spec, batch_size, size, pairing, per, p, lam, labels, seed, drawn, partner},
                              num_classes, label_smoothing);
  return std::tuple_cat(std::make_tuple(out, targets), plan);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mix_batch_(
    Tensor x, Tensor y, Tensor spec, int64_t batch_size, std::vector<int64_t> size, int64_t pairing, int64_t per, double p,
    std::optional<Tensor> lam, std::optional<Tensor> labels, std::optional<Tensor> seed, std::optional<Tensor> drawn,
    std::optional<Tensor> partner, int64_t num_classes, double label_smoothing) {
  auto [targets, plan] = step(x, x, y, {spec, batch_size, size, pairing, per, p, lam, labels, seed, drawn, partner},
                              num_classes, label_smoothing);
  return std::tuple_cat(std::make_tuple(targets), plan);
}

// ---- label losses ----

// A loss and its plan where kernels can read them.
struct LossLaunch {
  LossTensors tensors;
  Target target;
  LaunchPlan plan;
  cuda::Loss loss{};

  LossLaunch(const LossTensors& t, int64_t pairing, int64_t per, double label_smoothing)
      : tensors(t),
        target(t.logits.get_device_index()),
        plan(target, &tensors.partner, nullptr, nullptr, nullptr, &tensors.weight, pairing, false, per == kPerBatch) {
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
    const Tensor rows = target.empty({tensors.batch()}, tensors.compute());
    const Tensor statistics = target.empty({loss.binary ? 0 : tensors.batch(), 2}, tensors.compute());
    const Tensor scale = target.empty({}, tensors.compute());
    check(cuda::loss_rows(loss, plan.view, plan.inline_plan(), rows.mutable_data_ptr(), statistics.mutable_data_ptr(),
                          target.stream));
    const Tensor out = target.empty({}, tensors.compute());
    check(cuda::finish_loss(loss, rows.const_data_ptr(), counted, factor, out.mutable_data_ptr(), scale.mutable_data_ptr(),
                            target.stream));
    return {reduction == kNone ? rows : out, statistics, scale};
  }

  Tensor gradient(const Tensor& grad, double factor, const void* scale, const void* statistics) const {
    if (!grad.is_cuda()) throw std::invalid_argument("fusedmix: the gradient must be on the device of the logits");
    const Tensor out = target.empty({tensors.batch(), tensors.classes()}, tensors.logits.scalar_type());
    check(cuda::loss_gradient(loss, plan.view, plan.inline_plan(), grad.const_data_ptr(), tensors.grad_step(grad), factor, scale,
                              statistics, out.mutable_data_ptr(), target.stream));
    return out;
  }
};

std::tuple<Tensor, Tensor, Tensor> cross_entropy(Tensor logits, Tensor labels, Tensor partner, Tensor weight,
                                                 int64_t pairing, int64_t per, std::optional<Tensor> class_weight,
                                                 double label_smoothing, int64_t ignore_index, int64_t reduction) {
  LossLaunch launch({logits, labels, partner, weight, class_weight, std::nullopt}, pairing, per, label_smoothing);
  launch.loss.ignore = ignore_index;
  return launch.forward(reduction, reduction == kMean, 1.0);
}

Tensor cross_entropy_backward(Tensor grad, Tensor logits, Tensor labels, Tensor partner, Tensor weight, int64_t pairing,
                              int64_t per, std::optional<Tensor> class_weight, Tensor statistics, Tensor scale,
                              double label_smoothing, int64_t ignore_index) {
  LossLaunch launch({logits, labels, partner, weight, class_weight, std::nullopt}, pairing, per, label_smoothing);
  launch.loss.ignore = ignore_index;
  statistics = packed(statistics, launch.tensors.compute());
  return launch.gradient(grad, 1.0, packed(scale, launch.tensors.compute()).const_data_ptr(), statistics.const_data_ptr());
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
  const LossTensors tensors(logits, labels, partner, weight, class_weight, pos_weight);
  const LossLaunch launch = binary_launch(tensors, pairing, per, label_smoothing, threshold);
  return std::get<0>(launch.forward(reduction, false, tensors.factor(reduction)));
}

Tensor binary_cross_entropy_backward(Tensor grad, Tensor logits, Tensor labels, Tensor partner, Tensor weight, int64_t pairing,
                                     int64_t per, std::optional<Tensor> class_weight, std::optional<Tensor> pos_weight,
                                     double label_smoothing, std::optional<double> threshold, int64_t reduction) {
  const LossTensors tensors(logits, labels, partner, weight, class_weight, pos_weight);
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
