// The tensors of a plan as a kernel sees them: fusedmix/plan.py's, in its order.
#pragma once

#include "pixels.h"

namespace fusedmix {

struct PlanView {
  const int64_t* partner;
  const int32_t* kind;
  const int32_t* geometry;  // 6 a sample
  const float* value;       // 2 a sample
  int32_t pairing;          // Pairing: the partners of kRoll and kFlip need no loads
  bool shared;              // one draw for the whole batch: row 0 serves everyone
  Pixels pixels;            // of Fourier masks
};

// Whether there may be Fourier masks.
FUSEDMIX_HD bool is_stored(const PlanView& plan) { return plan.pixels.bits != nullptr || plan.pixels.levels != nullptr; }

// Where a sampler writes.
struct PlanOut {
  int64_t* partner;
  float* lam;
  double* weight;
  int32_t* kind;
  int32_t* geometry;
  float* value;
};

}  // namespace fusedmix
