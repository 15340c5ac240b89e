// Pastes crops over a batch, and sums samples of it, on the CPU, free of torch.
#pragma once

#include "../host/parallel.h"
#include "../include/fusedmix/requests.h"

namespace fusedmix::cpu {

// Into a new batch. Partners, boxes and crops must be in the batch.
void paste(const Images& images, const Patches& patches, const Parallel& parallel);
void sum_terms(const Images& images, const Terms& terms, const Parallel& parallel);

// What a row of a patch is made of: of the pixels at `from`, and of those so many elements further along the axes that the row does
// not run along.
struct PatchRow {
  const void* from;
  int64_t step;  // from element to element along the row
  // Of each element of the row the places of the two that it lies between, and the share of the second. Without places the elements
  // are as they are; without second ones each is the first.
  const int32_t *first, *second;
  const float* share;
  int axis;  // that the row runs along, or -1
  struct {
    int64_t step;
    float share;
  } outside[3];  // z, y, x
  bool mixed;    // whether any share, along the row or outside, may be other than 0
};

// The innermost loops, over n elements; `out` is contiguous and overlaps nothing that is read. By ElementType.
struct GatherRows {
  void (*patch)(void* out, const PatchRow& row, int64_t n);
  // Σ w[k]·in[k] of `count` terms in their order, none of which has a weight of 0.
  void (*sum)(void* out, const void* const* in, const float* w, int64_t count, int64_t n);
};

}  // namespace fusedmix::cpu
