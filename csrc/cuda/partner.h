// Whose partner is who, as kernels find it.
#pragma once

#include "../include/fusedmix/plan.h"
#include "../include/fusedmix/sampling.h"

namespace fusedmix::cuda {

// A number that is no sample's, which only the host could refuse, stands for the sample itself: nothing outside of the batch
// is touched.
FUSEDMIX_DEVICE int64_t partner_of(int32_t pairing, const int64_t* partners, int64_t i, int64_t batch) {
  if (pairing <= kFlip) return formula_partner(pairing, i, batch);
  const int64_t j = device::load(partners + i);
  return static_cast<uint64_t>(j) < static_cast<uint64_t>(batch) ? j : i;
}

}  // namespace fusedmix::cuda
