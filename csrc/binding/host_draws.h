// Numbers from torch's default generator, drawn by the calls that fusedmix/draws.py and torchvision make.
#pragma once

#include <algorithm>

#include "../include/fusedmix/requests.h"
#include "tensors.h"

namespace fusedmix {

inline void call(const char* name, const char* overload, StableIValue* stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION));
}

// λ of one draw, and what its method draws, from torch's default generator by the calls that torchvision makes, in its order
// (fusedmix/draws.py, host, has every case; here is the one that needs no choice and no chance). From Python these three calls
// and the tensors around them are half of the host's time for a step.
inline void draw_as_torchvision(const Sampling& args, double* drawn) {
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
  constexpr int64_t kWord = int64_t{1} << 32;
  const auto each_axis = [&](Drawn what, Number first, const auto& most) {
    if ((draws & what) == 0) return;
    for (int axis = 2; axis > 2 - args.extent.ndim; --axis) drawn[first + axis] = below(most(axis));
  };
  each_axis(kDrawsCentre, kNumberCentre, [&](int axis) { return args.extent.size[axis]; });
  each_axis(kDrawsPlace, kNumberPlace, [](int) { return kWord; });
  each_axis(kDrawsSides, kNumberSides, [](int) { return kWord; });
  if ((draws & kDrawsAspect) != 0 && args.extent.ndim > 1) drawn[kNumberAspect] = below(kWord);
}

// A seed, as torch.ops.fusedmix.draw_seed would draw it.
inline uint64_t drawn_seed() {
  static thread_local const Tensor& drawn = *new Tensor(empty_cpu("a draw", {1}, ScalarType::Long));
  StableIValue stack[] = {torch::stable::detail::from(drawn), torch::stable::detail::from(std::nullopt)};
  call("aten::random_", "", stack);
  torch::stable::detail::to<Tensor>(stack[0]);
  return static_cast<uint64_t>(*const_data<int64_t>(drawn));
}

}  // namespace fusedmix
