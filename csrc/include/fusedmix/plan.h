// The tensors of a plan as a kernel sees them: fusedmix/plan.py's, in its order.
#pragma once

#include "pixels.h"

namespace fusedmix {

struct PlanView {
  const int64_t* partner;
  const Record* masks;
  int32_t families;  // which masks there may be: Families
  int32_t pairing;   // Pairing: the partners of kRoll and kFlip need no loads
  bool shared;       // one draw for the whole batch: row 0 serves everyone
  Pixels pixels;     // of masks that are stored
};

// Whether there may be masks that are stored.
FUSEDMIX_HD bool is_stored(const PlanView& plan) { return plan.pixels.bits != nullptr || plan.pixels.levels != nullptr; }

// What labels are mixed by: the tensors of a plan on the host that labels depend on.
struct LabelPlan {
  const int64_t* partner;
  const double* weight;
};

// Where a sampler writes.
struct PlanOut {
  int64_t* partner;
  float* lam;
  double* weight;
  Record* masks;
};

}  // namespace fusedmix
