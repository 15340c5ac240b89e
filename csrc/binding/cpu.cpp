// The operators of torch.ops.fusedmix_cpp over csrc/cpu.
#include "../cpu/arrangement.h"
#include "../cpu/borders.h"
#include "../cpu/finish.h"
#include "../cpu/gather.h"
#include "../cpu/grid_cut.h"
#include "../cpu/losses.h"
#include "../cpu/pixel_losses.h"
#include "borders.h"
#include "finish.h"
#include "gathers.h"
#include "grid_cut.h"
#include "operators.h"
#include "pixel_losses.h"

namespace fusedmix {
namespace {

Parallel parallel() {
  const auto run = [](int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
    TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, n, grain, body, context));
  };
  return {run, static_cast<int>(torch::stable::get_num_threads())};
}

// The masks of a plan, and the tensors that the view points to, in the types and layouts that kernels read. All is checked, also what
// the tensors hold.
struct MaskTensors {
  Tensor masks;
  Maybe pixels;
  PlanView view{};

  // `ndim`: on how many spatial dims the masks depend. `given`: the pixels.
  MaskTensors(const Tensor& records, int64_t families, int64_t batch, const int64_t* sides, int64_t ndim, int64_t pairing,
              int64_t per, const Maybe& given)
      : masks(packed("masks", records, ScalarType::Int, {batch, kWords})), pixels(given) {
    check_hints(pairing, per);
    check_number("families", families, 1, kAllFamilies);
    view = {nullptr, const_data<Record>(masks), static_cast<int32_t>(families), static_cast<int32_t>(pairing), per == kPerBatch, {}};
    if (given) view.pixels = pixels_of(*given, view.families, sides, per, batch, *pixels);
    check_masks(view, batch, ndim > 0);
  }
};

// Mixes into `out`, in place the images themselves, or, without one, into a new tensor. `other`: the batch that partners are of.
Tensor mixed(Way way, const Tensor& src, const Tensor* out, const GivenMasks& given, const Tensor* other = nullptr) {
  int64_t sides[3];
  check_images(src, given.ndim, way == Way::kAdjoint, sides);
  if (other != nullptr) check_other(src, *other);
  const int64_t batch = src.size(0);
  const Tensor partners = packed("partner", given.partner, ScalarType::Long, {batch});
  MaskTensors masks(given.masks, given.families, batch, sides, given.ndim, given.pairing, given.per, given.pixels);
  masks.view.partner = const_data<int64_t>(partners);
  const Tensor dst = out == nullptr ? new_like(src) : *out;
  Images images = images_of(src, dst, given.ndim, way == Way::kAdjoint);
  if (other != nullptr) lend(images, *other);
  cpu::mix(images, masks.view, parallel());
  return dst;
}

// What labels are mixed by: tensors that have been packed.
LabelPlan label_plan(const Tensor& partner, const Tensor& weight) {
  check_partners(const_data<int64_t>(partner), partner.size(0));
  return {const_data<int64_t>(partner), const_data<double>(weight)};
}

template <class C>
void total(const Tensor& losses, double factor, const Tensor& out) {
  const C* loss = const_data<C>(losses);
  double sum = 0;
  for (int64_t i = 0, rows = losses.size(0); i < rows; ++i) sum += static_cast<double>(loss[i]);
  *data<C>(out) = static_cast<C>(sum * factor);
}

// The losses of rows times a factor, summed; or as they are.
Tensor reduced(const Tensor& losses, int64_t reduction, double factor) {
  if (reduction == kNone) return losses;
  Tensor out = empty_cpu("a loss", {}, losses.scalar_type());
  losses.scalar_type() == ScalarType::Double ? total<double>(losses, factor, out) : total<float>(losses, factor, out);
  return out;
}

}  // namespace

Plan sample(Request request, const Device&) { return sample_on_cpu(request, request.args(), parallel()); }

Tensor mask(Tensor records, int64_t families, std::vector<int64_t> size, int64_t per, Maybe pixels) {
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
  const auto [request, out] = fourier_masks(spec, masks, seed, size, per, draws, soft, empty_cpu);
  cpu::fourier(request, parallel());
  return out;
}

std::tuple<Tensor, Tensor> border_costs(Tensor x, Tensor partner, Tensor scale, std::vector<int64_t> cells) {
  const BorderTensors t(x, partner, scale, cells, empty_cpu);
  cpu::border_costs(t.args, parallel());
  return {t.right, t.down};
}

Tensor label_grid(Tensor unary, Tensor right, Tensor down) {
  const GridTensors grids(unary, right, down, empty_cpu);
  cpu::label_grid(grids.args, parallel());
  return grids.labels;
}

// On a GPU PyTorch's operations serve (fusedmix/ops.py).
Tensor arrange_blocks(Tensor seen, Tensor maps, double distance_cost) {
  pack("seen", seen, ScalarType::Bool, {kAny, kAny, kAny});
  const int64_t batch = seen.size(0), height = seen.size(1), width = seen.size(2);
  check_number("the blocks along a side", height, 1, kMostBlocks);
  check_number("the blocks along a side", width, 1, kMostBlocks);
  pack("maps", maps, ScalarType::Float, {batch, height, width});
  if (!(distance_cost > 0 && std::isfinite(distance_cost))) {
    refuse("distance_cost must be finite and > 0, but got " + std::to_string(distance_cost));
  }
  const auto* map = const_data<float>(maps);
  if (!std::all_of(map, map + maps.numel(), [](float share) { return share >= 0 && share <= 1; })) {
    refuse("maps must be in [0, 1] everywhere, but holds other numbers");
  }
  const Tensor out = empty_cpu("the moves of blocks", {batch, height * width}, ScalarType::Long);
  cpu::arrange_blocks({const_data<uint8_t>(seen), map, data<int64_t>(out), batch, static_cast<int32_t>(height), static_cast<int32_t>(width),
                       distance_cost},
                      parallel());
  return out;
}

Tensor apply(Way way, const Tensor& images, const GivenMasks& masks) {
  return mixed(way, images, way == Way::kInPlace ? &images : nullptr, masks);
}

Tensor mix_with(Way way, const Tensor& x, const Tensor& other, const GivenMasks& masks) {
  return mixed(way, x, way == Way::kInPlace ? &x : nullptr, masks, &other);
}

Tensor paste(const Tensor& x, const PatchTensors& t) {
  const Tensor out = new_like(x);
  cpu::paste(images_of(x, out, t.patches.ndim), t.patches, parallel());
  return out;
}

Tensor blend(const Tensor& x, const TermTensors& t) {
  const Tensor out = new_like(x);
  cpu::sum_terms(images_of(x, out, 0), t.terms, parallel());
  return out;
}

Tensor mix_labels(const Tensor& labels, Tensor partner, Tensor weight, int64_t num_classes, double label_smoothing) {
  const int64_t batch = rows_of("labels", labels);
  check_labels(labels, batch, num_classes, true);
  pack("partner", partner, ScalarType::Long, {batch});
  pack("weight", weight, ScalarType::Double, {batch});
  const LabelPlan plan = label_plan(partner, weight);
  if (labels.dim() == 1) check_classes(labels, num_classes);
  const auto [targets, out] = targets_of(labels, num_classes, label_smoothing, empty_cpu);
  cpu::mix_labels(targets, plan, parallel());
  return out;
}

// The labels first: one out of range must leave the images as they were. What has just been drawn is as kernels want it.
std::tuple<Tensor, Tensor, Plan> step(Way way, const Tensor& x, const Tensor& y, Request request, int64_t num_classes,
                                      double label_smoothing) {
  const Sampling sampling = check_step(x, y, request, way == Way::kInPlace, num_classes);
  label_type(y);
  if (y.dim() == 1) check_classes(y, num_classes);
  Tensor out = way == Way::kInPlace ? x : new_like(x);  // before anything is drawn: memory may be short
  auto [targets, dense] = targets_of(y, num_classes, label_smoothing, empty_cpu);
  const Parallel threads = parallel();
  Plan plan = sample_on_cpu(request, sampling, threads);
  const PlanOut made = plan_out(plan);
  cpu::mix_labels(targets, {made.partner, made.weight}, threads);
  const PlanView view{made.partner, made.masks, static_cast<int32_t>(request.families()), sampling.pairing, request.shared(), {}};
  cpu::mix(images_of(x, out, request.spatial()), view, threads);
  return {std::move(out), std::move(dense), std::move(plan)};
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy(const LossTensors& t, int64_t reduction) {
  const Tensor losses = empty_cpu("the losses", {t.batch()}, t.compute());
  const Tensor statistics = empty_cpu("the losses", {t.batch(), 2}, t.compute());
  cpu::loss_rows(t.loss, label_plan(t.partner, t.weight), losses.mutable_data_ptr(), statistics.mutable_data_ptr(), parallel());
  double scale = 1;
  if (reduction == kMean) {
    const auto* label = const_data<int64_t>(t.labels);
    const auto ignored = std::count(label, label + t.batch(), t.loss.ignore);
    scale = 1 / static_cast<double>(t.batch() - ignored);
  }
  const Tensor factor = empty_cpu("a loss", {}, t.compute());
  t.compute() == ScalarType::Double ? void(*data<double>(factor) = scale) : void(*data<float>(factor) = static_cast<float>(scale));
  return {reduced(losses, reduction, scale), statistics, factor};
}

Tensor binary_cross_entropy(const LossTensors& t, int64_t reduction) {
  const LabelPlan plan = label_plan(t.partner, t.weight);
  if (t.labels.dim() == 1) check_classes(t.labels, t.classes());  // there is no logit for a class out of range
  const Tensor losses = empty_cpu("the losses", {t.batch()}, t.compute());
  cpu::loss_rows(t.loss, plan, losses.mutable_data_ptr(), nullptr, parallel());
  return reduced(losses, reduction, t.factor(reduction));
}

Tensor loss_gradient(const LossTensors& t, const Tensor& grad, double factor, const Maybe& scale, const Maybe& statistics) {
  const LabelPlan plan = label_plan(t.partner, t.weight);
  if (t.loss.binary && t.labels.dim() == 1) check_classes(t.labels, t.classes());
  const LossGrad from = t.gradient(grad, factor, scale, statistics);
  const Tensor out = empty_cpu("the gradient", {t.batch(), t.classes()}, t.logits.scalar_type());
  cpu::loss_gradient(t.loss, plan, from, out.mutable_data_ptr(), parallel());
  return out;
}

// The masks of a plan that label maps are mixed by, and its partners among them.
struct PixelPlan {
  Tensor partners;
  MaskTensors masks;

  PixelPlan(const PixelLoss& loss, const GivenMasks& given)
      : partners(packed("partner", given.partner, ScalarType::Long, {loss.batch})),
        masks(given.masks, given.families, loss.batch, loss.side, given.ndim, given.pairing, given.per, given.pixels) {
    check_partners(const_data<int64_t>(partners), loss.batch, loss.samples, loss.samples == loss.batch ? kWholeBatch : kOtherBatch);
    masks.view.partner = const_data<int64_t>(partners);
  }
};

std::tuple<Tensor, Tensor, Tensor> pixel_cross_entropy(const PixelTensors& t, int64_t reduction, const GivenMasks& given) {
  const PixelPlan plan(t.loss, given);
  const bool each = reduction == kNone;
  Tensor loss = each ? t.empty_like_maps("the losses") : empty_cpu("a loss", {}, t.compute());
  Tensor logsumexp = t.empty_like_maps("the losses"), scale = empty_cpu("a loss", {}, t.compute());
  void* to = loss.mutable_data_ptr();
  cpu::pixel_loss(t.loss, plan.masks.view, reduction == kMean,
                  {each ? to : nullptr, logsumexp.mutable_data_ptr(), each ? nullptr : to, scale.mutable_data_ptr()}, parallel());
  return {std::move(loss), std::move(logsumexp), std::move(scale)};
}

Tensor pixel_gradient(const PixelTensors& t, const Tensor& grad, const Tensor& logsumexp, const Tensor& scale, const GivenMasks& given) {
  const PixelPlan plan(t.loss, given);
  const Tensor out = new_like(t.logits);
  cpu::pixel_gradient(t.loss, plan.masks.view,
                      {grad.const_data_ptr(), grad.dim() != 0, logsumexp.const_data_ptr(), scale.const_data_ptr(), out.mutable_data_ptr(),
                       pixel_steps(out, t.loss.side)},
                      parallel());
  return out;
}

Tensor finished(const Tensor& x, const GivenFinish& how, const GivenMasks* given) {
  FinishTensors t(x, how);
  std::optional<MaskTensors> masks;
  Tensor partners;
  if (given != nullptr) {
    masks.emplace(given->masks, given->families, t.args.batch, t.sides, given->ndim, given->pairing, given->per, given->pixels);
    partners = packed("partner", given->partner, ScalarType::Long, {t.args.batch});
    masks->view.partner = const_data<int64_t>(partners);
    t.args.constant = given->ndim == 0;
  }
  const Tensor out = t.allocate(aoti_torch_device_type_cpu(), 0);
  cpu::finish(t.args, masks ? &masks->view : nullptr, parallel());
  return out;
}

Tensor draw_finish(Tensor chances, int64_t holes, Tensor seed, int64_t batch_size, int64_t height, int64_t width, Device) {
  FinishDraws args = finish_draws(chances, holes, seed, batch_size, height, width);
  const Tensor out = empty_cpu("flips and holes", {batch_size, finish_words(holes)}, ScalarType::Int);
  args.records = data<int32_t>(out);
  cpu::draw_finish(args, parallel());
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fusedmix_cpp, CPU, m) {
  implement(m);
  implement_gathers(m);
  implement_finish(m);
  implement_pixel_losses(m);
  m.impl("arrange_blocks", TORCH_BOX(&arrange_blocks));
  m.impl("draw_finish", TORCH_BOX(&draw_finish));
  m.impl("sample", TORCH_BOX(&OfRequest::sample));
}

}  // namespace fusedmix
