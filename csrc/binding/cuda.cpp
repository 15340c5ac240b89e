// The operators of torch.ops.fusedmix_cuda over csrc/cuda: where memory comes from, on which device and stream things run, and the
// checks of where tensors are.
#include "../cuda/borders.h"
#include "../cuda/grid_cut.h"
#include "../cuda/step.h"

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <string>

#include "borders.h"
#include "finish.h"
#include "gathers.h"
#include "grid_cut.h"
#include "pixel_losses.h"

namespace fusedmix {
namespace {

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
  // tensor() as a function, for what fills a request of either backend.
  auto maker() {
    return [this](const char* what, std::initializer_list<int64_t> sizes, ScalarType dtype) { return tensor(what, sizes, dtype); };
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
  // Refuses what is neither on the host nor on this device.
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
  // The same, which kernels load 16 bytes at a time: one that lies elsewhere, in memory of the caller's making, is copied.
  template <class T>
  cuda::Part<T> records(const char* name, const Tensor& t, std::initializer_list<int64_t> sizes) {
    const cuda::Part<T> its = part<T>(name, t, ScalarType::Int, sizes);
    if (its.on_host || reinterpret_cast<uintptr_t>(its.data) % 16 == 0) return its;
    kept.push_back(torch::stable::clone(kept.back()));
    return {const_data<T>(kept.back()), false};
  }
  // One that has been packed.
  template <class T>
  cuda::Part<T> part(const char* name, const Tensor& t) {
    check_near(name, t);
    return {const_data<T>(t), !t.is_cuda()};
  }
  void add_masks(cuda::GivenPlan& plan, const Tensor& masks, int64_t families) {
    check_number("families", families, 1, kAllFamilies);
    plan.families = static_cast<int32_t>(families);
    plan.masks = records<Record>("masks", masks, {plan.batch, kWords});
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
  // The masks and partners of a batch of images of those sides.
  cuda::GivenPlan plan(int64_t batch, const int64_t* sides, const GivenMasks& given) {
    check_hints(given.pairing, given.per);
    cuda::GivenPlan plan = with_partners(batch, given.pairing, given.partner);
    plan.shared = given.per == kPerBatch;
    add_masks(plan, given.masks, given.families);
    add_pixels(plan, given.pixels, sides, given.per);
    const PlanView view{nullptr, plan.masks.data, plan.families, plan.pairing, plan.shared, plan.pixels};
    if (plan.masks.on_host) check_masks(view, batch, given.ndim > 0);
    return plan;
  }
  void add_weights(cuda::GivenPlan& plan, const Tensor& weight, bool shared) {
    plan.weight = part<double>("weight", weight, ScalarType::Double, {plan.batch});
    plan.weight_shared = shared;
  }
};

// What the sampler of the device is asked for: to draw the plan of a request into `plan`.
Sampling sampling_of(const Target& target, Request& request, const Plan& plan) {
  Sampling s = request.args();
  if (request.lam) target.check_here("lam", *request.lam);
  if (request.classes) target.check_here("labels", *request.classes);
  target.check_near("seed", *request.seed);
  s.seed = request.seed_to_use();
  s.out = plan_out(plan);
  return s;
}

// The GPU that is meant where tensors do not say it.
int32_t index_of(const Device& device) {
  return device.index() >= 0 ? device.index() : torch::stable::accelerator::getCurrentDeviceIndex();
}

int32_t device_of(const Tensor& logits) {
  if (!logits.is_cuda()) refuse("logits must be on a GPU");
  return logits.get_device_index();
}

// Where a loss is computed, and its plan.
struct LossPlan {
  Target target;
  cuda::GivenPlan plan;

  explicit LossPlan(const LossTensors& t)
      : target(device_of(t.logits)), plan(target.with_partners(t.batch(), t.pairing, t.partner)) {
    target.add_weights(plan, t.weight, t.per == kPerBatch);
    target.check_here("labels", t.labels);
    for (const auto& weights : {t.class_weight, t.pos_weight}) {
      if (weights) target.check_here("the weights of classes", *weights);
    }
  }
};

// (losses or their sum, statistics, scale)
std::tuple<Tensor, Tensor, Tensor> forward(const LossTensors& t, int64_t reduction, bool counted, double factor) {
  LossPlan of(t);
  const Tensor rows = of.target.tensor("the losses", {t.batch()}, t.compute());
  const Tensor statistics = of.target.tensor("the losses", {t.loss.binary ? 0 : t.batch(), 2}, t.compute());
  const Tensor scale = of.target.tensor("a loss", {}, t.compute()), sum = of.target.tensor("a loss", {}, t.compute());
  cuda::loss(of.target, t.loss, of.plan, counted, factor,
             {rows.mutable_data_ptr(), statistics.mutable_data_ptr(), sum.mutable_data_ptr(), scale.mutable_data_ptr()});
  return {reduction == kNone ? rows : sum, statistics, scale};
}

// `other`: the batch that partners are of, or null.
Tensor mixed(Way way, const Tensor& src, const GivenMasks& given, const Tensor* other) {
  if (!src.is_cuda()) refuse("images must be on a GPU");
  int64_t sides[3];
  check_images(src, given.ndim, way == Way::kAdjoint, sides);
  Target target(src.get_device_index());
  if (other != nullptr) {
    target.check_here("other", *other);
    check_other(src, *other);
  }
  const cuda::GivenPlan plan = target.plan(src.size(0), sides, given);
  const Tensor dst = way == Way::kInPlace ? src : new_like(src);
  Images images = images_of(src, dst, given.ndim, way == Way::kAdjoint);
  if (other != nullptr) lend(images, *other);
  cuda::apply(target, images, plan, way != Way::kOutOfPlace && other == nullptr);
  return dst;
}

// Where the loss of label maps is computed, and its plan.
struct PixelPlan {
  Target target;
  cuda::GivenPlan plan;

  PixelPlan(const PixelTensors& t, const GivenMasks& given)
      : target(device_of(t.logits)), plan(target.plan(t.loss.batch, t.loss.side, given)) {
    target.check_here("maps", t.maps);
    if (t.class_weight) target.check_here("the weights of classes", *t.class_weight);
  }
};

// Where several samples of x become one.
Target target_of(const Tensor& x) {
  if (!x.is_cuda()) refuse("x must be on a GPU");
  return Target(x.get_device_index());
}

}  // namespace

Tensor apply(Way way, const Tensor& images, const GivenMasks& masks) { return mixed(way, images, masks, nullptr); }
Tensor mix_with(Way way, const Tensor& x, const Tensor& other, const GivenMasks& masks) { return mixed(way, x, masks, &other); }

Tensor paste(const Tensor& x, const PatchTensors& t) {
  Target target = target_of(x);
  const Tensor out = new_like(x);
  cuda::paste(target, images_of(x, out, t.patches.ndim),
              {x.size(0), t.patches.count, t.patches.ndim, t.patches.resize, target.part<int64_t>("partner", t.partner),
               target.part<int32_t>("boxes", t.boxes), target.part<int32_t>("crops", t.crops)});
  return out;
}

Tensor blend(const Tensor& x, const TermTensors& t) {
  Target target = target_of(x);
  const Tensor out = new_like(x);
  cuda::blend_terms(target, images_of(x, out, 0),
                    {x.size(0), t.terms.count, target.part<int64_t>("partner", t.partner), target.part<float>("weight", t.weight)});
  return out;
}

Tensor finished(const Tensor& x, const GivenFinish& how, const GivenMasks* given) {
  if (!x.is_cuda()) refuse("x must be on a GPU");
  Target target(x.get_device_index());
  target.check_here("affine", how.affine);
  if (how.draws) target.check_near("draws", *how.draws);
  FinishTensors t(x, how);
  cuda::GivenPlan plan{};
  plan.batch = t.args.batch;
  if (given != nullptr) {
    plan = target.plan(t.args.batch, t.sides, *given);
    t.args.constant = given->ndim == 0;
  }
  if (how.draws) {
    plan.draws = target.records<int32_t>("draws", t.draws, {t.args.batch, t.args.draw_words});
    plan.draw_words = t.args.draw_words;
  }
  const Tensor out = t.allocate(aoti_torch_device_type_cuda(), target.device);
  cuda::finish(target, t.args, plan, given != nullptr);
  return out;
}

Tensor draw_finish(Tensor chances, int64_t holes, Tensor seed, int64_t batch_size, int64_t height, int64_t width, Device device) {
  Target target(index_of(device));
  target.check_near("seed", seed);
  FinishDraws args = finish_draws(chances, holes, seed, batch_size, height, width);
  const Tensor out = target.tensor("flips and holes", {batch_size, finish_words(holes)}, ScalarType::Int);
  args.records = data<int32_t>(out);
  target.check(cuda::draw_finish(args, target.stream));
  return out;
}

Tensor mask(Tensor masks, int64_t families, std::vector<int64_t> size, int64_t per, Maybe pixels) {
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
  const auto [request, out] = fourier_masks(spec, masks, seed, size, per, draws, soft, target.maker());
  cuda::fourier(target, request);
  return out;
}

std::tuple<Tensor, Tensor> border_costs(Tensor x, Tensor partner, Tensor scale, std::vector<int64_t> cells) {
  Target target = target_of(x);
  target.check_here("partner", partner);
  target.check_here("scale", scale);
  const BorderTensors t(x, partner, scale, cells, target.maker());
  target.check(cuda::border_costs(t.args, target.stream));
  return {t.right, t.down};
}

Tensor label_grid(Tensor unary, Tensor right, Tensor down) {
  if (!unary.is_cuda()) refuse("unary must be on a GPU");
  Target target(unary.get_device_index());
  target.check_here("right", right);
  target.check_here("down", down);
  const GridTensors grids(unary, right, down, target.maker());
  target.check(cuda::label_grid(grids.args, target.stream));
  return grids.labels;
}

Tensor mix_labels(const Tensor& labels, Tensor partner, Tensor weight, int64_t num_classes, double label_smoothing) {
  if (!labels.is_cuda()) refuse("labels must be on a GPU");
  const int64_t batch = rows_of("labels", labels);
  check_labels(labels, batch, num_classes, true);
  Target target(labels.get_device_index());
  cuda::GivenPlan plan = target.with_partners(batch, kRandom, partner);
  target.add_weights(plan, weight, false);
  const auto [targets, out] = targets_of(labels, num_classes, label_smoothing, target.maker());
  target.check(cuda::write_targets(cuda::place(target, plan), targets, target.stream));
  return out;
}

Plan sample(Request request, const Device& device) {
  if (!request.seed) return sample_on_cpu(request);
  const int32_t index = index_of(device);
  Target target(index);
  const Plan plan = empty_plan(request.batch, aoti_torch_device_type_cuda(), index);
  cuda::Pass(target, nullptr, kRandom, 0).sample(sampling_of(target, request, plan));
  return plan;
}

std::tuple<Tensor, Tensor, Plan> step(Way way, const Tensor& x, const Tensor& y, Request request, int64_t num_classes,
                                      double label_smoothing) {
  check_step(x, y, request, way == Way::kInPlace, num_classes);
  if (!x.is_cuda()) refuse("images must be on a GPU");
  label_type(y);
  Target target(x.get_device_index());
  target.check_here("labels", y);
  // Before anything is drawn: memory may be short.
  const Tensor out = way == Way::kInPlace ? x : new_like(x);
  const Images images = images_of(x, out, request.spatial());
  // Partners that were drawn elsewhere need not follow from the pairing.
  const auto pairing = static_cast<int32_t>(request.partner ? int64_t{kRandom} : request.pairing);
  const cuda::Pass pass(target, &images, pairing, static_cast<int32_t>(request.families()));
  const auto [targets, dense] = targets_of(y, num_classes, label_smoothing, target.maker());

  const bool on_device = request.seed.has_value();
  const Plan made =
      on_device ? empty_plan(request.batch, aoti_torch_device_type_cuda(), target.device) : sample_on_cpu(request);
  const auto& [partner, lam, weight, masks] = made;
  cuda::GivenPlan plan = target.with_partners(request.batch, pairing, partner);
  plan.shared = request.shared();
  target.add_masks(plan, masks, request.families());
  target.add_weights(plan, weight, plan.shared);
  const Sampling sampling = on_device ? sampling_of(target, request, made) : Sampling{};
  pass.run(on_device ? &sampling : nullptr, plan, targets);
  return {out, dense, made};
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy(const LossTensors& t, int64_t reduction) {
  return forward(t, reduction, reduction == kMean, 1.0);
}

Tensor binary_cross_entropy(const LossTensors& t, int64_t reduction) {
  return std::get<0>(forward(t, reduction, false, t.factor(reduction)));
}

Tensor loss_gradient(const LossTensors& t, const Tensor& grad, double factor, const Maybe& scale, const Maybe& statistics) {
  LossPlan of(t);
  of.target.check_here("grad", grad);
  if (scale) of.target.check_here("scale", *scale);
  if (statistics) of.target.check_here("statistics", *statistics);
  const LossGrad from = t.gradient(grad, factor, scale, statistics);
  const Tensor out = of.target.tensor("the gradient", {t.batch(), t.classes()}, t.logits.scalar_type());
  cuda::loss_gradient(of.target, t.loss, of.plan, from, out.mutable_data_ptr());
  return out;
}

std::tuple<Tensor, Tensor, Tensor> pixel_cross_entropy(const PixelTensors& t, int64_t reduction, const GivenMasks& given) {
  PixelPlan of(t, given);
  const bool each = reduction == kNone;
  const Tensor logsumexp = t.empty_like_maps("the losses"), losses = each ? t.empty_like_maps("the losses") : logsumexp;
  const Tensor sum = of.target.tensor("a loss", {}, t.compute()), scale = of.target.tensor("a loss", {}, t.compute());
  cuda::pixel_loss(of.target, t.loss, of.plan, reduction == kMean,
                   {each ? losses.mutable_data_ptr() : nullptr, logsumexp.mutable_data_ptr(), sum.mutable_data_ptr(), scale.mutable_data_ptr()});
  return {each ? losses : sum, logsumexp, scale};
}

Tensor pixel_gradient(const PixelTensors& t, const Tensor& grad, const Tensor& logsumexp, const Tensor& scale, const GivenMasks& given) {
  PixelPlan of(t, given);
  of.target.check_here("grad", grad);
  of.target.check_here("logsumexp", logsumexp);
  of.target.check_here("scale", scale);
  const Tensor out = new_like(t.logits);
  cuda::pixel_gradient(of.target, t.loss, of.plan,
                       {grad.const_data_ptr(), grad.dim() != 0, logsumexp.const_data_ptr(), scale.const_data_ptr(), out.mutable_data_ptr(),
                        pixel_steps(out, t.loss.side)});
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fusedmix_cuda, CUDA, m) {
  implement(m);
  implement_gathers(m);
  implement_finish(m);
  implement_pixel_losses(m);
}

// Their tensors may all be on the CPU: a spec, chances, a seed.
STABLE_TORCH_LIBRARY_IMPL(fusedmix_cuda, CompositeExplicitAutograd, m) {
  m.impl("sample", TORCH_BOX(&OfRequest::sample));
  m.impl("draw_finish", TORCH_BOX(&draw_finish));
}

}  // namespace fusedmix
