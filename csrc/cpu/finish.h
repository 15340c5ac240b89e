// Flips, normalises, erases and mixes a batch on the CPU, free of torch.
#pragma once

#include "../include/fusedmix/finish.h"
#include "mix.h"

namespace fusedmix::cpu {

struct FinishArgs {
  ElementType type;  // of the batch that comes: all but kFloat64
  ElementType made;  // of the new one: kFloat32, kFloat16, kBFloat16
  const void* src;
  int64_t step[4];  // of src, in elements: from sample to sample, channel to channel, row to row, pixel to pixel
  void* dst;        // (B, C, H, W), or (B, H, W, C)
  bool channels_last;
  int64_t batch, channels, height, width;
  const float* affine;   // (3, C): scale, shift, fill
  const int32_t* draws;  // (B, draw_words), or null
  int64_t draw_words;
  Fill fill;
  const PlanView* plan;  // null: no sample is mixed
  bool constant;         // every mask of the plan is a number
};

void finish(const FinishArgs& args, const Parallel& parallel);

struct FinishDrawArgs {
  FinishDraw draw;
  uint64_t seed;
  int64_t batch, height, width;
  int32_t* records;
};

void draw_finish(const FinishDrawArgs& args, const Parallel& parallel);

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
