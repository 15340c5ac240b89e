// Flips, normalises, erases and mixes a batch on the CPU, free of torch.
#pragma once

#include "mix.h"

namespace fusedmix::cpu {

// By a plan; null: each sample by itself.
void finish(const Finishing& args, const PlanView* plan, const Parallel& parallel);

void draw_finish(const FinishDraws& args, const Parallel& parallel);

// The innermost loops, over n elements of one channel. a and b are bytes or floats, `out` is of the type of the new batch; none
// overlaps another.
struct FinishRows {
  void (*alone)(void* out, const void* a, int64_t n, float scale, float shift);
  // With one weight other than 0 and 1, or with one for each element.
  void (*uniform)(void* out, const void* a, const void* b, int64_t n, float w, float scale, float shift);
  void (*weighted)(void* out, const void* a, const void* b, int64_t n, const float* w, float scale, float shift);
};

struct FinishKernels {
  FinishRows rows[2][3];  // of floats, of bytes; by ElementType of the new batch
  // Between (n, channels) and (channels, n) elements of 1, 2 or 4 bytes.
  void (*planes)(void* planes, const void* pixels, int64_t channels, int64_t n, int size);
  void (*pixels)(void* pixels, const void* planes, int64_t channels, int64_t n, int size);
  // n elements of 1, 2 or 4 bytes, so many apart.
  void (*gather)(void* out, const void* from, int64_t n, int64_t step, int size);
  void (*widen)(float* out, const void* from, int64_t n, ElementType type);
  // (min(4, channels), stride): normal fills of n pixels from `index` on, of the four channels of a call.
  void (*noise)(float* out, int64_t stride, int64_t channels, int64_t n, uint64_t seed, uint64_t index, uint32_t call);
};

}  // namespace fusedmix::cpu
