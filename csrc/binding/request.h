// What is asked of a sampler, as tensors.
#pragma once

#include <numeric>
#include <optional>
#include <vector>

#include "../host/sample.h"
#include "../include/fusedmix/partners.h"
#include "host_draws.h"
#include "plan.h"

namespace fusedmix {

inline Seed seed_of(const Tensor& seed) {
  if (seed.is_cuda()) return {const_data<int64_t>(seed), 0};
  return {nullptr, seed.numel() > 0 ? static_cast<uint64_t>(*const_data<int64_t>(seed)) : 0};
}

// A Request and a Source of fusedmix/draws.py. Its tensors live as long as its arguments are used.
struct Request {
  Tensor spec;
  int64_t batch;
  std::vector<int64_t> size;
  int64_t pairing, per;
  double p;
  std::optional<Tensor> lam, classes, seed, drawn, partner;

  // All is checked but what the tensors hold, the spec's rows excepted: check_drawn() does that on the host. The seed is left out.
  Sampling args() {
    Sampling a{};
    spec = packed_spec(spec);
    a.rows = const_data<MethodRow>(spec);
    a.methods = static_cast<int32_t>(spec.size(0));
    check_number("the batch size", batch, 0, INT64_MAX);
    a.batch = batch;
    a.extent = extent_of(size, 1);
    if (stored()) stored_pixels(a.extent.size);
    check_hints(pairing, per);
    a.pairing = static_cast<int32_t>(pairing);
    a.per = static_cast<int32_t>(per);
    a.p = p;
    if (lam) {
      a.lam_each = lam->dim() == 1;
      a.lam_each ? pack("lam", *lam, ScalarType::Float, {batch}) : pack("lam", *lam, ScalarType::Float, {});
      a.lam = const_data<float>(*lam);
    }
    if (classes) {
      pack("labels", *classes, ScalarType::Long, {batch});
      a.classes = const_data<int64_t>(*classes);
    }
    if (drawn) {
      const int64_t draws = per == kPerBatch ? 1 : mask_rows(per, batch);
      pack("drawn", *drawn, ScalarType::Double, {draws, kDrawnWidth});
      a.drawn = const_data<double>(*drawn);
    }
    if (partner) {
      pack("partner", *partner, ScalarType::Long, {batch});
      a.partner = const_data<int64_t>(*partner);
    }
    if (seed) packed_number("seed", *seed, ScalarType::Long, false);  // one that is to be drawn has none
    if (!is_formula(a.pairing) && drawn && !partner) refuse("partner is missing: where numbers were drawn elsewhere, so were partners");
    if ((pairing == kCrossClass || pairing == kSameClass) && !partner && !classes) refuse("labels are missing: the partners depend on them");
    return a;
  }

  // One without elements stands for a seed that is drawn now.
  Seed seed_to_use() const {
    if (seed->is_cuda() && seed->numel() == 0) refuse("seed must be one number, but is empty");
    return seed->numel() > 0 ? seed_of(*seed) : Seed{nullptr, drawn_seed()};
  }

  // Refuses numbers that were drawn elsewhere and are not what the host's sampler takes for granted.
  void check_drawn(const Sampling& a) const {
    for (int64_t i = 0; a.drawn != nullptr && i < drawn->size(0); ++i) {
      const double* row = a.drawn + kDrawnWidth * i;
      const double choice = row[kNumberChoice], *centre = row + kNumberCentre;
      bool fits = choice >= 0 && choice < a.methods;
      for (int axis = 0; axis < 3; ++axis) {
        fits = fits && centre[axis] >= 0 && centre[axis] < static_cast<double>(a.extent.size[axis]);
      }
      for (int number = kNumberPlace; number < kNumberRatio; ++number) fits = fits && row[number] >= 0 && row[number] < 0x1p32;
      fits = fits && row[kNumberNoise] >= 0 && row[kNumberNoise] < 0x1p52 && row[kNumberRatio] >= 0 && row[kNumberRatio] <= 1;
      if (!fits) {
        refuse("row " + std::to_string(i) + " of drawn has no such method, a centre outside of the image, a seed outside of " +
               "[0, 2^52), a place, sides or an aspect outside of [0, 2^32), or a ratio outside of [0, 1]");
      }
    }
    if (a.partner == nullptr) return;
    check_partners(a.partner, batch);
    if (!is_permutation(a.partner, batch)) refuse_repeated_partners();
  }

  // Whether one draw serves the whole batch. One λ for each sample makes the masks differ, whatever the draws were.
  bool shared() const { return per == kPerBatch && !(lam && lam->dim() == 1); }

  // Which masks the plan may have.
  int64_t families() const {
    const auto* row = const_data<MethodRow>(spec);  // packed by args()
    return std::accumulate(row, row + spec.size(0), int64_t{0},
                           [](int64_t all, const MethodRow& r) { return all | static_cast<int64_t>(r.families); });
  }
  // How many spatial dims these masks depend on.
  int64_t spatial() const { return families() == kConstants ? 0 : static_cast<int64_t>(size.size()); }
  // Whether some of the masks are made between the plan and the images.
  bool stored() const { return (families() & (kStored | kLevels | kLargeCells)) != 0; }
};

// The plan of a request on the CPU, whose args() are given: from a seed, from numbers drawn elsewhere, or drawn here.
inline Plan sample_on_cpu(const Request& request, Sampling args, const Parallel& parallel = {nullptr, 1}) {
  request.check_drawn(args);
  double drawn[kDrawnWidth];
  if (request.seed) {
    args.seed = request.seed_to_use();
  } else if (!request.drawn) {
    draw_as_torchvision(args, drawn);
    args.drawn = drawn;
  }
  Plan plan = empty_plan(request.batch, aoti_torch_device_type_cpu(), 0);
  args.out = plan_out(plan);
  host::sample(args, parallel);
  return plan;
}
inline Plan sample_on_cpu(Request& request) { return sample_on_cpu(request, request.args()); }

// Everything that fusedmix/checks.py refuses, for an operator that draws: nothing may be drawn for a batch that cannot be
// mixed. The binding checks what the labels hold. Returns the args() of the request.
inline Sampling check_step(const Tensor& x, const Tensor& y, Request& request, bool in_place, int64_t num_classes) {
  const Sampling args = request.args();
  if (request.stored()) refuse("FMix cannot be mixed in one call");
  int64_t sides[3];
  const auto spatial = static_cast<int64_t>(request.size.size());
  check_images(x, spatial, false, sides);
  if (x.size(0) != request.batch) check_number("the batch size", request.batch, x.size(0), x.size(0));
  for (int axis = 0; axis < 3; ++axis) check_number("a spatial side", sides[axis], args.extent.size[axis], args.extent.size[axis]);
  check_labels(y, request.batch, num_classes, true);
  if (in_place) check_apart(x);
  return args;
}

// The masks to make for a plan, and the tensor that is to hold them, which make(what, sizes, dtype) allocates. The spec and the
// plan's masks become the tensors that the request points to.
template <class Make>
std::pair<FourierMasks, Tensor> fourier_masks(Tensor& spec, Tensor& masks, const Tensor& seed, const std::vector<int64_t>& size,
                                              int64_t per, int64_t draws, bool soft, const Make& make) {
  FourierMasks f{};
  spec = packed_spec(spec);
  f.rows = const_data<MethodRow>(spec);
  f.methods = static_cast<int32_t>(spec.size(0));
  f.extent = extent_of(size, 1);
  f.batch = rows_of("masks", masks);
  check_hints(kRandom, per);
  check_hints(kRandom, draws);
  f.per = static_cast<int32_t>(per);
  f.draws = static_cast<int32_t>(draws);
  masks = packed("masks", masks, ScalarType::Int, {f.batch, kWords});
  f.masks = const_data<Record>(masks);
  f.seed = seed_of(packed_number("seed", seed, ScalarType::Long, f.batch > 0));
  const int64_t pixels = stored_pixels(f.extent.size), columns = soft ? pixels : (pixels + 31) / 32;
  const Tensor out =
      make("the pixels of FMix's masks", {mask_rows(per, f.batch), columns}, soft ? ScalarType::Short : ScalarType::Int);
  if (soft) {
    f.levels = data<uint16_t>(out);
  } else {
    f.bits = data<uint32_t>(out);
  }
  return {f, out};
}

}  // namespace fusedmix
