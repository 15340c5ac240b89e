// The innermost loops of the CPU backend, one set for each element type, compiled once for each instruction set.
#pragma once

#include "../include/fusedmix/element.h"

namespace fusedmix::cpu {

// What a row of a separable mask is multiplied with, in this order: the axes before the row's, then those after it. So a
// pixel's value is (z·y)·x, rounded twice, along whichever axis the row runs.
struct Factors {
  float before, after, last;
};

// All of n contiguous elements. `out` may be `a` and `out_b` may be `b`; they overlap nothing else.
struct RowKernels {
  // w·a + (1-w)·b for one w other than 0 and 1.
  void (*uniform)(void* out, const void* a, const void* b, int64_t n, float w);
  // For a w each.
  void (*weighted)(void* out, const void* a, const void* b, int64_t n, const float* w);
  // Two samples that are each other's partners, read once: out = w·a + (1-w)·b and out_b = w_b·b + (1-w_b)·a.
  void (*pair_uniform)(void* out, void* out_b, const void* a, const void* b, int64_t n, float w, float w_b);
  void (*pair_weighted)(void* out, void* out_b, const void* a, const void* b, int64_t n, const float* w, const float* w_b);
  // own·g + (1-lent)·h, for one weight or for a weight each.
  void (*adjoint_uniform)(void* out, const void* g, const void* h, int64_t n, float own, float lent);
  void (*adjoint_weighted)(void* out, const void* g, const void* h, int64_t n, const float* own, const float* lent);
};

struct Kernels {
  const char* name;    // of the instruction set
  RowKernels rows[5];  // by ElementType
  // out = factors·table, or 1 minus that: a row of a Gaussian mask from the exponentials of its axes.
  void (*gaussian)(float* out, const float* table, int64_t n, Factors factors, bool complement);
};

// The best set for this CPU; FUSEDMIX_ISA in the environment asks for one by name.
const Kernels& kernels();

}  // namespace fusedmix::cpu
