// See step.h. Host code.
#include "step.h"

#include <algorithm>
#include <vector>

#include "../include/fusedmix/partners.h"

namespace fusedmix::cuda {
namespace {

// The partners that kernels load: none where a formula has them. Those that the host can read are checked; made by hand, they
// need not follow from the pairing that they came with.
Part<int64_t> loaded_partners(const GivenPlan& given) {
  const Part<int64_t>& partner = given.partner;
  if (partner.data == nullptr) return {};
  if (is_formula(given.pairing) && !(partner.on_host && !are_formula(partner.data, given.batch, given.pairing))) return {};
  if (partner.on_host && given.others > 0) check_partners(partner.data, given.batch, given.others, kOtherBatch);
  if (partner.on_host && given.others == 0) check_partners(partner.data, given.batch);
  return partner;
}

// The parts of a plan, or of the like, that are on the host, one behind the other.
class Blob {
 public:
  // Adds a part that is on the host. Returns where it begins.
  template <class T>
  int64_t add(const Part<T>& part, int64_t count) {
    const auto at = static_cast<int64_t>(bytes.size());
    if (part.data == nullptr) return at;
    (part.on_host ? any_on_host : any_on_device) = true;
    const auto* from = reinterpret_cast<const char*>(part.data);
    if (part.on_host) bytes.insert(bytes.end(), from, from + count * static_cast<int64_t>(sizeof(T)));
    return at;
  }
  // Brings them to where kernels can read them: into a launch's arguments, or up. Returns where they are then, of those in the
  // arguments nothing.
  template <class Launched>
  const char* send(Memory& memory, Launched& launched) const {
    if (any_on_host && any_on_device) throw std::invalid_argument("fusedmix: the tensors of a plan must be on one device.");
    if (!any_on_host) return nullptr;
    const auto size = static_cast<int64_t>(bytes.size());
    launched.travels = size <= kInlineBytes;
    if (!launched.travels) return static_cast<const char*>(memory.upload("a plan", bytes.data(), size));
    std::copy(bytes.begin(), bytes.end(), launched.bytes);
    return nullptr;
  }

 private:
  std::vector<char> bytes;
  bool any_on_host = false, any_on_device = false;
};

template <class T>
const T* at(const char* base, int64_t offset) {
  return reinterpret_cast<const T*>(base + offset);
}

// Where there are more maps than samples to mix, partners are among all of them.
GivenPlan of_maps(GivenPlan given, const PixelLoss& loss) {
  if (loss.samples > loss.batch) given.pairing = kRandom, given.others = loss.samples;
  return given;
}

bool has_elements(const Images& images) { return images.layout.batch * images.layout.elements > 0; }

}  // namespace

LaunchPlan place(Memory& memory, const GivenPlan& given) {
  const Part<int64_t> partner = loaded_partners(given);
  LaunchPlan plan{};
  plan.view = {partner.data, given.masks.data, given.families,
               partner.data == nullptr ? given.pairing : static_cast<int32_t>(kRandom), given.shared, given.pixels};
  plan.weight = given.weight.data;
  plan.weight_shared = given.weight_shared;
  plan.draws = given.draws.data;
  const int64_t one = std::min<int64_t>(1, given.batch);
  Blob blob;  // by falling alignment
  const int64_t masks_at = blob.add(given.masks, given.shared ? one : given.batch);
  const int64_t draws_at = blob.add(given.draws, given.batch * given.draw_words);
  const int64_t partner_at = blob.add(partner, given.batch);
  const int64_t weight_at = blob.add(given.weight, given.weight_shared ? one : given.batch);
  if (const char* base = blob.send(memory, plan); base != nullptr) {
    plan.view.masks = at<Record>(base, masks_at);
    plan.draws = at<int32_t>(base, draws_at);
    plan.view.partner = at<int64_t>(base, partner_at);
    plan.weight = at<double>(base, weight_at);
  }
  plan.offset = {static_cast<int32_t>(masks_at), static_cast<int32_t>(draws_at), static_cast<int32_t>(partner_at), static_cast<int32_t>(weight_at)};
  if (given.pixels_on_host) {
    Pixels& pixels = plan.view.pixels;
    const int64_t count = pixels.stride * mask_rows(pixels.per, pixels.batch);
    const auto there = [&](const auto* from) -> decltype(from) {
      if (from == nullptr) return nullptr;
      return static_cast<decltype(from)>(memory.upload("the pixels of a plan", from, count * static_cast<int64_t>(sizeof(*from))));
    };
    pixels.bits = there(pixels.bits);
    pixels.levels = there(pixels.levels);
  }
  return plan;
}

Pass::Pass(Memory& memory, const Images* images, int32_t pairing, int32_t families)
    : Pass(memory, images,
           images != nullptr && has_elements(*images) ? shape_of(*images, pairing, families, memory.limits()) : Shape{}) {}

Pass::Pass(Memory& memory, const Images* images, const Shape& chosen)
    : shape(chosen),
      memory_(memory),
      images_(images != nullptr && has_elements(*images) ? images : nullptr),
      scratch_(shape.way == Way::kSlices ? memory.empty("a part of the images", scratch_bytes(*images, shape)) : nullptr) {}

void Pass::sample(const Sampling& s) const {
  const void* rows = nullptr;
  if (s.methods > kInlineRows) {
    rows = memory_.upload("the rows of a spec", s.rows, s.methods * static_cast<int64_t>(sizeof(MethodRow)));
  }
  void* scratch = nullptr;
  if (s.pairing == kCrossClass) {
    scratch = memory_.empty("the partners of a batch", s.batch * static_cast<int64_t>(sizeof(int32_t)));
  }
  memory_.check(cuda::sample(s, static_cast<const MethodRow*>(rows), static_cast<int32_t*>(scratch), memory_.stream));
}

void Pass::mix(const LaunchPlan& plan, const Targets& targets, bool after_sampler) const {
  const bool beside = images_ != nullptr && shape.way != Way::kNone && beside_images(targets);
  if (images_ != nullptr) {
    const int32_t* inverse = nullptr;
    if (images_->adjoint && !is_formula(plan.view.pairing)) {
      const int64_t batch = images_->layout.batch;
      auto* made = static_cast<int32_t*>(memory_.empty("the inverse of the partners", batch * static_cast<int64_t>(sizeof(int32_t))));
      memory_.check(invert(plan, batch, made, memory_.stream));
      inverse = made;
      after_sampler = false;
    }
    memory_.check(
        cuda::mix(*images_, plan, shape, inverse, scratch_, beside ? targets : Targets{}, after_sampler, memory_.stream));
  }
  if (!beside) memory_.check(write_targets(plan, targets, memory_.stream));
}

void Pass::run(const Sampling* sampling, const GivenPlan& made, const Targets& targets) const {
  const LaunchPlan plan = place(memory_, made);
  if (sampling != nullptr) sample(*sampling);
  mix(plan, targets, sampling != nullptr);
}

Shape apply(Memory& memory, const Images& images, const GivenPlan& of, bool permutation) {
  GivenPlan given = of;
  if (images.others > 0) given.pairing = kRandom, given.others = images.others;
  const Part<int64_t> partner = loaded_partners(given);
  if (permutation && partner.on_host && !is_permutation(partner.data, given.batch)) refuse_repeated_partners();
  if (!has_elements(images)) return {};
  const LaunchPlan plan = place(memory, given);
  const Pass pass(memory, &images, plan.view.pairing, given.families);
  pass.mix(plan, Targets{});
  return pass.shape;
}

Shape paste(Memory& memory, const Images& images, const GivenPatches& given) {
  const int64_t patches = given.batch * given.count;
  LaunchPatches its{{given.partner.data, given.boxes.data, given.crops.data, given.count, given.ndim, given.resize}, false, {}, {}};
  Blob blob;
  const int64_t boxes_at = blob.add(given.boxes, patches * 2 * given.ndim), crops_at = blob.add(given.crops, patches * 2 * given.ndim);
  const int64_t partner_at = blob.add(given.partner, patches);
  if (const char* base = blob.send(memory, its); base != nullptr) {
    its.view.boxes = at<int32_t>(base, boxes_at);
    its.view.crops = at<int32_t>(base, crops_at);
    its.view.partner = at<int64_t>(base, partner_at);
  }
  its.offset = {static_cast<int32_t>(boxes_at), static_cast<int32_t>(crops_at), static_cast<int32_t>(partner_at)};
  const Shape shape = gather_shape(images, false);
  memory.check(paste(images, its, shape, memory.stream));
  return shape;
}

Shape blend_terms(Memory& memory, const Images& images, const GivenTerms& given) {
  const int64_t terms = given.batch * given.count;
  LaunchTerms its{{given.partner.data, given.weight.data, given.count}, false, {}, {}};
  Blob blob;
  const int64_t partner_at = blob.add(given.partner, terms), weight_at = blob.add(given.weight, terms);
  if (const char* base = blob.send(memory, its); base != nullptr) {
    its.view.partner = at<int64_t>(base, partner_at);
    its.view.weight = at<float>(base, weight_at);
  }
  its.offset = {static_cast<int32_t>(partner_at), static_cast<int32_t>(weight_at)};
  const Shape shape = gather_shape(images, true);
  memory.check(blend_terms(images, its, shape, memory.stream));
  return shape;
}

FinishShape finish(Memory& memory, const Finishing& finishing, const GivenPlan& given, bool mixes) {
  GivenPlan its = given;
  if (finishing.constant) its.families &= kConstants;
  const LaunchPlan plan = place(memory, its);
  const FinishShape shape = shape_of(finishing, mixes, plan.view.pairing, its.families);
  memory.check(finish(finishing, plan, mixes, shape, memory.stream));
  return shape;
}

void masks(Memory& memory, const GivenPlan& given, const int64_t* size, float* out) {
  memory.check(masks(place(memory, given).view, given.batch, size, out, memory.stream));
}

void fourier(Memory& memory, const FourierMasks& request, int64_t most_scratch) {
  void* scratch = memory.empty("the grey images of FMix", fourier_scratch(request, most_scratch));
  memory.check(fourier(request, static_cast<char*>(scratch), most_scratch, memory.stream));
}

void loss(Memory& memory, const Loss& loss, const GivenPlan& given, bool counted, double factor, const LossOut& out) {
  const LossShape shape = forward_shape(loss, memory.limits().multiprocessors);
  const int64_t bytes = partial_bytes(loss, shape);
  void* partial = bytes == 0 ? nullptr : memory.empty("the sums of parts of rows", bytes);
  memory.check(loss_rows(loss, place(memory, given), shape, out, partial, memory.stream));
  memory.check(finish_loss(loss, shape, partial, counted, factor, out, memory.stream));
}

void loss_gradient(Memory& memory, const Loss& loss, const GivenPlan& given, const LossGrad& grad, void* out) {
  const LossShape shape = backward_shape(loss, out, memory.limits().multiprocessors);
  memory.check(loss_gradient(loss, place(memory, given), shape, grad, out, memory.stream));
}

void pixel_loss(Memory& memory, const PixelLoss& loss, const GivenPlan& given, bool mean, const PixelOut& out) {
  const PixelShape shape = pixel_shape(loss, nullptr);
  auto* partial = static_cast<double*>(memory.empty("the sums of parts of a batch", partial_bytes(shape)));
  memory.check(pixel_losses(loss, place(memory, of_maps(given, loss)), shape, out, partial, memory.stream));
  memory.check(finish_pixel_losses(loss, shape, partial, mean, out, memory.stream));
}

void pixel_gradient(Memory& memory, const PixelLoss& loss, const GivenPlan& given, const PixelGrad& grad) {
  const PixelShape shape = pixel_shape(loss, &grad);
  memory.check(pixel_gradient(loss, place(memory, of_maps(given, loss)), shape, grad, memory.stream));
}

}  // namespace fusedmix::cuda
