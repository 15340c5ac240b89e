// What kernels are told of a plan: its seed, where its parts are, and whose partner is who.
#pragma once

#include "kernels.h"

namespace fusedmix::cuda {

FUSEDMIX_DEVICE uint64_t seed_of(const Seed& seed) {
  return seed.on_device == nullptr ? seed.value : static_cast<uint64_t>(device::load(seed.on_device));
}

// A part of a plan, of patches or of terms: where the pointer says, or so many bytes into the arguments.
template <class Launched, class T>
FUSEDMIX_DEVICE const T* part_of(const Launched& its, const T* pointer, int32_t offset) {
  return its.travels ? reinterpret_cast<const T*>(its.bytes + offset) : pointer;
}

FUSEDMIX_DEVICE PlanView view_of(const LaunchPlan& plan) {
  PlanView view = plan.view;
  view.partner = part_of(plan, view.partner, plan.offset.partner);
  view.masks = part_of(plan, view.masks, plan.offset.masks);
  return view;
}

// Whether there may be masks whose pixels are stored, and are there.
FUSEDMIX_HD bool may_be_stored(const PlanView& plan) { return (plan.families & (kStored | kLevels)) != 0 && is_stored(plan); }

FUSEDMIX_DEVICE const double* weights_of(const LaunchPlan& plan) { return part_of(plan, plan.weight, plan.offset.weight); }

// A number that is no sample's, which only the host could refuse, stands for the sample itself: nothing outside of the batch
// is touched.
template <class Index>
FUSEDMIX_DEVICE Index partner_of(int32_t pairing, const int64_t* partners, Index i, Index batch) {
  // Not by returning early: nvcc then has what follows once for each pairing.
  auto partner = static_cast<Index>(formula_partner(pairing, i, batch));
  if (!is_formula(pairing)) {
    const int64_t j = device::load(partners + i);
    partner = static_cast<uint64_t>(j) < static_cast<uint64_t>(batch) ? static_cast<Index>(j) : i;
  }
  return partner;
}
template <class Index>
FUSEDMIX_DEVICE Index partner_of(const PlanView& plan, Index i, Index batch) {
  return partner_of(plan.pairing, plan.partner, i, batch);
}

}  // namespace fusedmix::cuda
