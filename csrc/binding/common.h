// Between tensors and the torch-free code, for both bindings. Only torch's stable ABI: one binary serves every torch from
// 2.10 on.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "../cpu/mix.h"

namespace fusedmix {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Plan = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Contiguous memory of one dtype on a device, straight from the allocator: a dispatched aten::empty costs twice as much.
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, int32_t device_type, int32_t device_index) {
  int64_t strides[4], step = 1;
  for (int d = static_cast<int>(sizes.size()) - 1; d >= 0; --d) {
    strides[d] = step;
    step *= std::max<int64_t>(1, sizes.begin()[d]);
  }
  AtenTensorHandle handle;
  const auto scalar = static_cast<int32_t>(dtype);
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.begin(), strides, scalar, device_type, device_index,
                                                  &handle));
  return Tensor(handle);
}

inline Tensor empty_cpu(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return empty(sizes, dtype, aoti_torch_device_type_cpu(), 0);
}

// torch.empty_like(x). Where x fills its memory, without the dispatcher, which takes most of the time of a small one.
inline Tensor new_like(const Tensor& x) {
  const auto sizes = x.sizes(), strides = x.strides();
  const int64_t rank = x.dim();
  int64_t filled = 1;
  for (int64_t found = 0, d = 0; d < rank; ++d) {  // the dim that continues where the smaller ones end
    if (sizes[d] == 1 || strides[d] != filled) continue;
    filled *= sizes[d];
    d = ++found < rank ? -1 : rank;
  }
  if (filled != x.numel() || filled == 0) return torch::stable::empty_like(x);
  AtenTensorHandle handle;
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(rank, sizes.data(), strides.data(), static_cast<int32_t>(x.scalar_type()),
                                                  device_type, x.get_device_index(), &handle));
  return Tensor(handle);
}

inline Plan empty_plan(int64_t batch, int32_t device_type, int32_t device_index) {
  const auto make = [&](std::initializer_list<int64_t> sizes, ScalarType dtype) {
    return empty(sizes, dtype, device_type, device_index);
  };
  return {make({batch}, ScalarType::Long),   make({batch}, ScalarType::Float),  make({batch}, ScalarType::Double),
          make({batch}, ScalarType::Int),    make({batch, 6}, ScalarType::Int), make({batch, 2}, ScalarType::Float)};
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
  const auto& [partner, lam, weight, kind, geometry, value] = plan;
  return {data<int64_t>(partner), data<float>(lam),        data<double>(weight),
          data<int32_t>(kind),    data<int32_t>(geometry), data<float>(value)};
}

inline ElementType element_type(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return ElementType::kFloat32;
    case ScalarType::Half: return ElementType::kFloat16;
    case ScalarType::BFloat16: return ElementType::kBFloat16;
    case ScalarType::Double: return ElementType::kFloat64;
    case ScalarType::Byte: return ElementType::kUInt8;
    default: throw std::invalid_argument("fusedmix: this dtype cannot be blended");
  }
}

// A contiguous tensor of that dtype: the plan's and the spec's are; hand-made ones need not be.
inline Tensor packed(const Tensor& t, ScalarType dtype) {
  if (t.scalar_type() != dtype) throw std::invalid_argument("fusedmix: a tensor of the plan has the wrong dtype");
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// Spatial sides as (z, y, x).
template <class Sizes>
void to_sides(const Sizes& sizes, int64_t first, int64_t count, int64_t* sides) {
  for (int64_t axis = 0; axis < 3; ++axis) sides[axis] = axis < 3 - count ? 1 : sizes[first + axis - (3 - count)];
}

// Masks that are stored: those of `batch` samples, of those sides. `kept` is the memory that the view is of.
inline Pixels pixels_of(const Tensor& kept, const int64_t* sides, int64_t per, int64_t batch) {
  const bool soft = kept.scalar_type() == ScalarType::Short;
  const int64_t count = sides[0] * sides[1] * sides[2], stride = soft ? count : (count + 31) / 32;
  if ((!soft && kept.scalar_type() != ScalarType::Int) || kept.dim() != 2 || kept.size(1) != stride ||
      kept.size(0) != mask_rows(per, batch)) {
    throw std::invalid_argument("fusedmix: the pixels of the plan do not fit the batch");
  }
  return {soft ? nullptr : const_data<uint32_t>(kept), soft ? const_data<uint16_t>(kept) : nullptr, stride,
          {sides[0], sides[1], sides[2]}, static_cast<int32_t>(per), batch};
}

// The tensors of a plan that kernels read, alive as long as the view is used.
struct PlanTensors {
  Tensor partner, kind, geometry, value;
  std::optional<Tensor> pixels;

  PlanTensors(const Tensor& p, const Tensor& k, const Tensor& g, const Tensor& v, const std::optional<Tensor>& px = {})
      : partner(packed(p, ScalarType::Long)),
        kind(packed(k, ScalarType::Int)),
        geometry(packed(g, ScalarType::Int)),
        value(packed(v, ScalarType::Float)) {
    if (px) pixels = px->is_contiguous() ? *px : torch::stable::contiguous(*px);
  }

  PlanView view(int64_t pairing, int64_t per, const int64_t* sides) const {
    PlanView made{const_data<int64_t>(partner), const_data<int32_t>(kind),        const_data<int32_t>(geometry),
                  const_data<float>(value),     static_cast<int32_t>(pairing), per == kPerBatch, {}};
    if (pixels) made.pixels = pixels_of(*pixels, sides, per, kind.size(0));
    const int64_t rows = made.shared && kind.size(0) > 0 ? 1 : kind.size(0);
    for (int64_t i = 0; i < rows && !pixels; ++i) {
      if (is_fourier(made.kind[i])) throw std::invalid_argument("fusedmix: the plan of FMix lacks its pixels");
    }
    return made;
  }
};

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

  cpu::SampleArgs args() {
    cpu::SampleArgs a{};
    spec = packed(spec, ScalarType::Double);
    a.rows = reinterpret_cast<const MethodRow*>(spec.const_data_ptr());
    a.methods = static_cast<int32_t>(spec.size(0));
    a.batch = batch;
    a.ndim = static_cast<int32_t>(size.size());
    for (int axis = 0; axis < 3; ++axis) a.size[axis] = axis < 3 - a.ndim ? 1 : size[axis - (3 - a.ndim)];
    a.pairing = static_cast<int32_t>(pairing);
    a.per = static_cast<int32_t>(per);
    a.p = p;
    if (lam) {
      lam = packed(*lam, ScalarType::Float);
      a.lam = const_data<float>(*lam);
      a.lam_each = lam->dim() == 1;
    }
    if (classes) {
      classes = packed(*classes, ScalarType::Long);
      a.classes = const_data<int64_t>(*classes);
    }
    if (drawn) {
      drawn = packed(*drawn, ScalarType::Double);
      a.drawn = const_data<double>(*drawn);
    }
    if (partner) {
      partner = packed(*partner, ScalarType::Long);
      a.partner = const_data<int64_t>(*partner);
    }
    return a;
  }

  // Whether one draw serves the whole batch. One λ for each sample makes the masks differ, whatever the draws were.
  bool shared() const { return per == kPerBatch && !(lam && lam->dim() == 1); }

  // How many spatial dims the masks depend on: none if every method of the request is constant.
  int64_t spatial() const {
    const Tensor rows = packed(spec, ScalarType::Double);
    const auto* row = reinterpret_cast<const MethodRow*>(rows.const_data_ptr());
    for (int64_t i = 0; i < rows.size(0); ++i) {
      if (!is_constant(row[i].method)) return static_cast<int64_t>(size.size());
    }
    return 0;
  }
};

inline void call(const char* name, const char* overload, StableIValue* stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION));
}

// λ and the centre of one draw, from torch's default generator by the calls that torchvision makes, in its order
// (fusedmix/draws.py, _host_batch, has every case; here is the one that needs no choice and no chance). From Python these
// three calls and the tensors around them are half of the host's time for a step.
inline void draw_as_torchvision(const cpu::SampleArgs& args, double* drawn) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const MethodRow& row = args.rows[0];
  if (args.methods != 1 || args.p < 1.0 || row.p < 1.0 || args.per != kPerBatch || args.pairing > kFlip ||
      is_fourier_method(row.method)) {
    throw std::invalid_argument("fusedmix: this request is drawn elsewhere");
  }
  // Kept for good, one of each a thread: making them would cost as much as the draws.
  static thread_local const Tensor& alphas = *new Tensor(empty_cpu({2}, ScalarType::Double));
  static thread_local const Tensor& integer = *new Tensor(empty_cpu({1}, ScalarType::Long));
  std::fill(drawn, drawn + kDrawnWidth, 0.0);
  drawn[1] = 1.0;
  drawn[2] = row.lam == row.lam ? row.lam : 1.0;
  if (!(row.lam == row.lam) && row.alpha > 0.0 && args.lam == nullptr) {
    // What aten::_sample_dirichlet does with (alpha, alpha) in float32, from the same two gammas in float64: a sixth of its
    // time, most of which is the sum and the division of two-element tensors.
    std::fill_n(data<double>(alphas), 2, static_cast<double>(static_cast<float>(row.alpha)));
    StableIValue stack[] = {from(alphas), from(std::nullopt)};
    call("aten::_standard_gamma", "", stack);
    const Tensor drawn_gammas = to<Tensor>(stack[0]);
    const double* gamma = const_data<double>(drawn_gammas);
    const auto share = static_cast<float>(gamma[0] / (gamma[0] + gamma[1]));
    drawn[2] = std::min(0x1.fffffep-1f, std::max(0x1p-126f, share));
  }
  if (is_constant(row.method)) return;
  for (int axis = 2; axis > 2 - args.ndim; --axis) {
    StableIValue stack[] = {from(integer), from(int64_t{0}), from(std::optional<int64_t>(args.size[axis])),
                            from(std::nullopt)};
    call("aten::random_", "from", stack);
    to<Tensor>(stack[0]);  // the reference that was handed back
    drawn[3 + axis] = static_cast<double>(*const_data<int64_t>(integer));
  }
}

// The seed of a request. One without elements stands for a seed that is drawn here, from torch's default generator, as
// torch.ops.fusedmix.draw_seed would.
inline uint64_t seed_value(const Tensor& seed) {
  if (seed.numel() > 0) return static_cast<uint64_t>(*const_data<int64_t>(seed));
  static thread_local const Tensor& drawn = *new Tensor(empty_cpu({1}, ScalarType::Long));
  StableIValue stack[] = {torch::stable::detail::from(drawn), torch::stable::detail::from(std::nullopt)};
  call("aten::random_", "", stack);
  torch::stable::detail::to<Tensor>(stack[0]);
  return static_cast<uint64_t>(*const_data<int64_t>(drawn));
}

// The plan of a request on the CPU: from a seed, from numbers drawn elsewhere, or drawn here.
inline Plan sample_on_cpu(Request& request) {
  cpu::SampleArgs args = request.args();
  double drawn[kDrawnWidth];
  if (request.seed) {
    args.seed = seed_value(*request.seed);
  } else if (!request.drawn) {
    draw_as_torchvision(args, drawn);
    args.drawn = drawn;
  }
  Plan plan = empty_plan(request.batch, aoti_torch_device_type_cpu(), 0);
  cpu::sample(args, plan_out(plan));
  return plan;
}

// Everything that fusedmix/checks.py refuses, for an operator that draws: nothing may be drawn for a batch that cannot be
// mixed. Only that it is refused matters: the caller then asks checks.py for the reason.
inline void check_step(const Tensor& x, const Tensor& y, const Request& request, bool in_place, int64_t num_classes) {
  const auto refuse = [] { throw std::invalid_argument("fusedmix: this batch cannot be mixed in one call"); };
  const int64_t spatial = static_cast<int64_t>(request.size.size());
  element_type(x);
  if (spatial < 1 || spatial > 3 || x.dim() < spatial + 1 || x.size(0) != request.batch) refuse();
  for (int64_t d = 0; d < spatial; ++d) {
    if (request.size[d] < 1 || x.size(x.dim() - spatial + d) != request.size[d]) refuse();
  }
  if (y.dim() < 1 || y.dim() > 2 || y.size(0) != request.batch || num_classes < 1) refuse();
  if (y.dim() == 2 && y.size(1) != num_classes) refuse();
  if (!in_place || x.numel() == 0) return;
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
      if (d != next && sizes[d] > 1 && strides[d] == strides[next]) refuse();
    }
    if (strides[next] <= span) refuse();
    last = strides[next];
    span += strides[next] * (sizes[next] - 1);
  }
}

}  // namespace fusedmix
