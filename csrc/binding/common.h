// Between tensors and the torch-free code, for both bindings. Only torch's stable ABI: one binary serves every torch from
// 2.10 on.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "../cpu/mix.h"
#include "../include/fusedmix/partners.h"
#include "checks.h"

namespace fusedmix {

using Plan = std::tuple<Tensor, Tensor, Tensor, Tensor>;
constexpr int64_t kWords = sizeof(Record) / sizeof(int32_t);

// Memory straight from the allocator: a dispatched aten::empty costs twice as much. torch keeps the allocator's reason to
// itself (it has printed it).
inline Tensor allocate(const char* what, int64_t rank, const int64_t* sizes, const int64_t* strides, ScalarType dtype,
                       int32_t device_type, int32_t device_index) {
  AtenTensorHandle handle;
  const auto scalar = static_cast<int32_t>(dtype);
  if (aoti_torch_empty_strided(rank, sizes, strides, scalar, device_type, device_index, &handle) != AOTI_TORCH_SUCCESS) {
    double bytes = static_cast<double>(bytes_of(dtype));
    for (int64_t d = 0; d < rank; ++d) bytes *= static_cast<double>(sizes[d]);
    out_of_memory(what, bytes);
  }
  return Tensor(handle);
}

// What `make` allocates through the dispatcher, elements of x's dtype.
template <class Make>
Tensor allocated(const char* what, const Tensor& x, double elements, const Make& make) {
  try {
    return make();
  } catch (const std::exception&) {
    out_of_memory(what, elements * static_cast<double>(bytes_of(x.scalar_type())));
  }
}

// Contiguous memory of one dtype on a device.
inline Tensor empty(const char* what, std::initializer_list<int64_t> sizes, ScalarType dtype, int32_t device_type,
                    int32_t device_index) {
  int64_t strides[4], step = 1;
  for (int d = static_cast<int>(sizes.size()) - 1; d >= 0; --d) {
    strides[d] = step;
    step *= std::max<int64_t>(1, sizes.begin()[d]);
  }
  return allocate(what, static_cast<int64_t>(sizes.size()), sizes.begin(), strides, dtype, device_type, device_index);
}

inline Tensor empty_cpu(const char* what, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return empty(what, sizes, dtype, aoti_torch_device_type_cpu(), 0);
}

// torch.empty_like(x), for the mixed images. Where x fills its memory, without the dispatcher, which takes most of the time
// of a small one.
inline Tensor new_like(const Tensor& x) {
  constexpr char kWhat[] = "the mixed images";
  const auto sizes = x.sizes(), strides = x.strides();
  const int64_t rank = x.dim();
  int64_t filled = 1;
  for (int64_t found = 0, d = 0; d < rank; ++d) {  // the dim that continues where the smaller ones end
    if (sizes[d] == 1 || strides[d] != filled) continue;
    filled *= sizes[d];
    d = ++found < rank ? -1 : rank;
  }
  if (filled != x.numel() || filled == 0) {
    return allocated(kWhat, x, static_cast<double>(x.numel()), [&] { return torch::stable::empty_like(x); });
  }
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device_type));
  return allocate(kWhat, rank, sizes.data(), strides.data(), x.scalar_type(), device_type, x.get_device_index());
}

// (n, *size) float32 masks beside a tensor.
inline Tensor new_masks(const Tensor& beside, int64_t n, const std::vector<int64_t>& size) {
  std::vector<int64_t> shape{n};
  shape.insert(shape.end(), size.begin(), size.end());
  double elements = 1;
  for (const int64_t side : shape) elements *= static_cast<double>(side);
  return allocated("the masks", beside, elements, [&] {
    return torch::stable::new_empty(beside, torch::headeronly::IntHeaderOnlyArrayRef(shape), ScalarType::Float);
  });
}

inline Plan empty_plan(int64_t batch, int32_t device_type, int32_t device_index) {
  const auto make = [&](std::initializer_list<int64_t> sizes, ScalarType dtype) {
    return empty("the plan", sizes, dtype, device_type, device_index);
  };
  return {make({batch}, ScalarType::Long), make({batch}, ScalarType::Float), make({batch}, ScalarType::Double),
          make({batch, kWords}, ScalarType::Int)};
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <class T>
const T* const_data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

inline PlanOut plan_out(const Plan& plan) {
  const auto& [partner, lam, weight, masks] = plan;
  return {data<int64_t>(partner), data<float>(lam), data<double>(weight), data<Record>(masks)};
}

// How many pixels images have of which masks are stored. Kernels number them in 32 bits.
inline int64_t stored_pixels(const int64_t* sides) {
  const double count = static_cast<double>(sides[0]) * static_cast<double>(sides[1]) * static_cast<double>(sides[2]);
  if (count > kLongestSide) refuse("the pixels of FMix's masks must be fewer than 2^31");
  return static_cast<int64_t>(count);
}

// Masks that are stored: those of `batch` samples, of those sides. `kept` becomes the memory that the view is of.
inline Pixels pixels_of(const Tensor& given, int32_t families, const int64_t* sides, int64_t per, int64_t batch, Tensor& kept) {
  // Where cells are all that is stored, a row is as long as the largest grid needs, which check_masks() looks for.
  const bool of_cells = (families & kLargeCells) != 0 && (families & (kStored | kLevels)) == 0;
  const bool soft = !of_cells && given.scalar_type() == ScalarType::Short;
  const int64_t count = stored_pixels(sides), across = of_cells && given.dim() == 2 ? std::max<int64_t>(1, given.size(1)) : (count + 31) / 32;
  const int64_t stride = soft ? count : across;
  kept = packed("pixels", given, soft ? ScalarType::Short : ScalarType::Int, {mask_rows(per, batch), stride});
  return {soft ? nullptr : const_data<uint32_t>(kept), soft ? const_data<uint16_t>(kept) : nullptr, stride,
          {sides[0], sides[1], sides[2]}, static_cast<int32_t>(per), batch};
}

inline Layout layout_of(const Tensor& src, const Tensor& dst, int64_t spatial) {
  return make_layout(static_cast<int>(src.dim()), src.sizes().data(), src.strides().data(), dst.strides().data(),
                     static_cast<int>(spatial));
}

// What to draw (fusedmix/draws.py, Request), its tensors on the CPU, alive as long as the arguments are used.
struct Request {
  Tensor spec;
  int64_t batch;
  std::vector<int64_t> size;
  int64_t pairing, per;
  double p;
  std::optional<Tensor> lam, classes, seed, drawn, partner;

  // Checked. What the tensors hold is not, but for the spec: check_drawn() does that on the host.
  cpu::SampleArgs args() {
    cpu::SampleArgs a{};
    spec = packed_spec(spec);
    a.rows = reinterpret_cast<const MethodRow*>(spec.const_data_ptr());
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
      lam = a.lam_each ? packed("lam", *lam, ScalarType::Float, {batch}) : packed("lam", *lam, ScalarType::Float, {});
      a.lam = const_data<float>(*lam);
    }
    if (classes) {
      classes = packed("labels", *classes, ScalarType::Long, {batch});
      a.classes = const_data<int64_t>(*classes);
    }
    if (drawn) {
      const int64_t draws = per == kPerBatch ? 1 : mask_rows(per, batch);
      drawn = packed("drawn", *drawn, ScalarType::Double, {draws, kDrawnWidth});
      a.drawn = const_data<double>(*drawn);
    }
    if (partner) {
      partner = packed("partner", *partner, ScalarType::Long, {batch});
      a.partner = const_data<int64_t>(*partner);
    }
    if (seed) packed_number("seed", *seed, ScalarType::Long, false);  // one that is to be drawn has none
    if (!is_formula(a.pairing) && drawn && !partner) refuse("partner is missing: where numbers were drawn elsewhere, so were partners");
    if ((pairing == kCrossClass || pairing == kSameClass) && !partner && !classes) refuse("labels are missing: the partners depend on them");
    return a;
  }

  // What kernels on the host take for granted of numbers that were drawn elsewhere.
  void check_drawn(const cpu::SampleArgs& a) const {
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

  // Which masks there may be.
  int64_t families() const {
    const auto* row = static_cast<const MethodRow*>(spec.const_data_ptr());  // packed by args()
    return std::accumulate(row, row + spec.size(0), int64_t{0},
                           [](int64_t all, const MethodRow& r) { return all | static_cast<int64_t>(r.families); });
  }
  // How many spatial dims they depend on.
  int64_t spatial() const { return families() == kConstants ? 0 : static_cast<int64_t>(size.size()); }
  // Whether they are made between the plan and the images.
  bool stored() const { return (families() & (kStored | kLevels | kLargeCells)) != 0; }
};

inline void call(const char* name, const char* overload, StableIValue* stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION));
}

// λ of one draw, and what its method draws, from torch's default generator by the calls that torchvision makes, in its order
// (fusedmix/draws.py, host, has every case; here is the one that needs no choice and no chance). From Python these three calls
// and the tensors around them are half of the host's time for a step.
inline void draw_as_torchvision(const cpu::SampleArgs& args, double* drawn) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const MethodRow& row = args.rows[0];
  const auto draws = static_cast<int32_t>(row.draws);
  if (args.methods != 1 || args.p < 1.0 || row.p < 1.0 || args.per != kPerBatch || !is_formula(args.pairing) ||
      (draws & ~(kDrawsCentre | kDrawsPlace | kDrawsSides | kDrawsAspect | kDrawsRatio)) != 0) {
    refuse("this request is drawn elsewhere");
  }
  // Kept for good, one of each a thread: making them would cost as much as the draws.
  static thread_local const Tensor& alphas = *new Tensor(empty_cpu("a draw", {2}, ScalarType::Double));
  static thread_local const Tensor& integer = *new Tensor(empty_cpu("a draw", {1}, ScalarType::Long));
  std::fill(drawn, drawn + kDrawnWidth, 0.0);
  drawn[kNumberApplied] = 1.0;
  drawn[kNumberLam] = row.lam == row.lam ? row.lam : 1.0;
  const auto beta = [](double alpha) {
    // What aten::_sample_dirichlet does with (alpha, alpha) in float32, from the same two gammas in float64: a sixth of its
    // time, most of which is the sum and the division of two-element tensors.
    std::fill_n(data<double>(alphas), 2, static_cast<double>(static_cast<float>(alpha)));
    StableIValue stack[] = {from(alphas), from(std::nullopt)};
    call("aten::_standard_gamma", "", stack);
    const Tensor drawn_gammas = to<Tensor>(stack[0]);
    const double* gamma = const_data<double>(drawn_gammas);
    const auto share = static_cast<float>(gamma[0] / (gamma[0] + gamma[1]));
    return std::min(0x1.fffffep-1f, std::max(0x1p-126f, share));
  };
  if (!(row.lam == row.lam) && row.alpha > 0.0 && args.lam == nullptr) drawn[kNumberLam] = beta(row.alpha);
  if ((draws & kDrawsRatio) != 0) drawn[kNumberRatio] = beta(row.ratio_alpha);
  const auto below = [&](int64_t n) {
    StableIValue stack[] = {from(integer), from(int64_t{0}), from(std::optional<int64_t>(n)), from(std::nullopt)};
    call("aten::random_", "from", stack);
    to<Tensor>(stack[0]);  // the reference that was handed back
    return static_cast<double>(*const_data<int64_t>(integer));
  };
  if ((draws & kDrawsCentre) != 0) {
    for (int axis = 2; axis > 2 - args.extent.ndim; --axis) drawn[kNumberCentre + axis] = below(args.extent.size[axis]);
  }
  if ((draws & kDrawsPlace) != 0) {
    for (int axis = 2; axis > 2 - args.extent.ndim; --axis) drawn[kNumberPlace + axis] = below(int64_t{1} << 32);
  }
  if ((draws & kDrawsSides) != 0) {
    for (int axis = 2; axis > 2 - args.extent.ndim; --axis) drawn[kNumberSides + axis] = below(int64_t{1} << 32);
  }
  if ((draws & kDrawsAspect) != 0 && args.extent.ndim > 1) drawn[kNumberAspect] = below(int64_t{1} << 32);
}

// The seed of a request. One without elements stands for a seed that is drawn here, from torch's default generator, as
// torch.ops.fusedmix.draw_seed would.
inline uint64_t seed_value(const Tensor& seed) {
  if (seed.numel() > 0) return static_cast<uint64_t>(*const_data<int64_t>(seed));
  static thread_local const Tensor& drawn = *new Tensor(empty_cpu("a draw", {1}, ScalarType::Long));
  StableIValue stack[] = {torch::stable::detail::from(drawn), torch::stable::detail::from(std::nullopt)};
  call("aten::random_", "", stack);
  torch::stable::detail::to<Tensor>(stack[0]);
  return static_cast<uint64_t>(*const_data<int64_t>(drawn));
}

// The plan of a request on the CPU: from a seed, from numbers drawn elsewhere, or drawn here.
inline Plan sample_on_cpu(Request& request, const cpu::Parallel& parallel = {nullptr, 1}) {
  cpu::SampleArgs args = request.args();
  request.check_drawn(args);
  double drawn[kDrawnWidth];
  if (request.seed) {
    args.seed = seed_value(*request.seed);
  } else if (!request.drawn) {
    draw_as_torchvision(args, drawn);
    args.drawn = drawn;
  }
  Plan plan = empty_plan(request.batch, aoti_torch_device_type_cpu(), 0);
  cpu::sample(args, plan_out(plan), parallel);
  return plan;
}

// Everything that fusedmix/checks.py refuses, for an operator that draws: nothing may be drawn for a batch that cannot be
// mixed. What the labels hold is left to the binding.
inline void check_step(const Tensor& x, const Tensor& y, Request& request, bool in_place, int64_t num_classes) {
  request.args();
  if (request.stored()) refuse("FMix cannot be mixed in one call");
  int64_t sides[3];
  const auto spatial = static_cast<int64_t>(request.size.size());
  check_images(x, spatial, false, sides);
  if (x.size(0) != request.batch) check_number("the batch size", request.batch, x.size(0), x.size(0));
  for (int64_t d = 0; d < spatial; ++d) check_number("a spatial side", x.size(x.dim() - spatial + d), request.size[d], request.size[d]);
  check_labels(y, request.batch, num_classes, true);
  if (!in_place || x.numel() == 0) return;
  constexpr char kOverlaps[] = "images cannot be mixed in place: their memory overlaps itself";
  // Sorted by stride, each dim must step over all that the smaller ones span.
  const auto sizes = x.sizes(), strides = x.strides();
  int64_t span = 0, last = -1;
  for (int64_t left = x.dim(); left > 0; --left) {
    int64_t next = -1;
    for (int64_t d = 0; d < x.dim(); ++d) {
      const bool later = strides[d] > last && sizes[d] > 1;
      if (later && (next < 0 || strides[d] < strides[next])) next = d;
    }
    if (next < 0) break;
    for (int64_t d = 0; d < x.dim(); ++d) {
      if (d != next && sizes[d] > 1 && strides[d] == strides[next]) refuse(kOverlaps);
    }
    if (strides[next] <= span) refuse(kOverlaps);
    last = strides[next];
    span += strides[next] * (sizes[next] - 1);
  }
}

}  // namespace fusedmix
