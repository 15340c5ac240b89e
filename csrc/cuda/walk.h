// Going through a batch so that every sample is read once and written once, in place.
//
// out[i] needs x[i] and x[p(i)]; then out[p(i)] needs x[p(i)], which is still in a register, and x[p(p(i))]. So a thread that
// owns one vector of every sample follows the cycles of the permutation, carrying one vector. The first of a cycle is kept
// until the last needs it.
//
// A cycle may be as long as the batch, and small images have few vectors: then too few threads would have anything to do.
// So every span-th sample is a head, and walks begin and stop at heads. What a walk needs of the head where it stops may
// have been overwritten by the walk that began there: in place the heads are staged, copied aside by an earlier launch.
// Heads are fixed by their index, before the permutation is known: the launch that draws it can stage them. Cycles without
// a head are walked whole, by the block in whose span their smallest sample lies.
//
// What only the host could refuse, partners that are no permutation, gives any values at any place of the batch, but walks end:
// after as many steps as there are samples.
#pragma once

#include "partner.h"
#include "vector.h"

namespace fusedmix::cuda {

struct WalkArgs {
  int64_t batch;
  int64_t tiles;
  int64_t span;
  bool heads;
  bool skip_fixed;  // in place nothing happens to a sample that is its own partner
};

FUSEDMIX_DEVICE int64_t partner_of(const PlanView& plan, int64_t i, int64_t batch) {
  return partner_of(plan.pairing, plan.partner, i, batch);
}

// In 32 bits, which samples fit: a division of 64 costs several times as much, and there is one for every step.
FUSEDMIX_DEVICE bool is_head(const WalkArgs& walk, int64_t i) {
  return walk.heads && static_cast<uint32_t>(i) % static_cast<uint32_t>(walk.span) == 0;
}

// Whether a walk begins at sample c.
FUSEDMIX_DEVICE bool begins(const WalkArgs& walk, const PlanView& plan, int64_t c) {
  int64_t j = partner_of(plan, c, walk.batch);
  if (walk.skip_fixed && j == c) return false;
  if (plan.pairing == kFlip) return c <= j;
  if (is_head(walk, c)) return true;
  if (plan.pairing == kRoll) return c == 0 && !walk.heads;
  // The smallest of its cycle, if the cycle has no head. Half of all samples know after one step, few after many.
  for (int64_t steps = 0; j != c && steps < walk.batch; ++steps) {
    if (j < c || is_head(walk, j)) return false;
    j = partner_of(plan, j, walk.batch);
  }
  return j == c;
}

// One step of a walk.
struct Visit {
  enum Kind : int32_t {
    kNone,    // all walks are over
    kBegin,   // the first sample of a walk
    kNext,    // the partner of the one before
    kStaged,  // the same, and a head: the walk ends
    kClose,   // the same, and where the walk began: it ends
    kReload,  // kClose, but the first sample was left as it is, and is loaded only now
  };
  int32_t kind;
  int32_t sample;
};

// The steps of all walks that begin among the `count` samples from `base`, `starts` saying at which.
template <class Starts>
struct Walker {
  const WalkArgs& walk;
  const PlanView& plan;
  const Starts& starts;
  int64_t base;
  int32_t count;
  int32_t k = 0, steps = 0;
  int64_t first = -1, at = -1;

  FUSEDMIX_DEVICE Visit step() {
    if (at < 0) {
      while (k < count && starts[k] == 0) ++k;
      if (k >= count) return {Visit::kNone, 0};
      first = at = base + k++;
      steps = 0;
      return {Visit::kBegin, static_cast<int32_t>(first)};
    }
    const int64_t j = partner_of(plan, at, walk.batch);
    if (plan.pairing != kFlip && is_head(walk, j)) {
      at = -1;
      return {Visit::kStaged, static_cast<int32_t>(j)};
    }
    if (j == first || ++steps >= walk.batch) {
      at = -1;
      return {Visit::kClose, static_cast<int32_t>(j)};
    }
    at = j;
    return {Visit::kNext, static_cast<int32_t>(j)};
  }
};

}  // namespace fusedmix::cuda
