// The innermost loops of the CPU backend, one set for each element type, compiled once for each instruction set.
#pragma once

#include "../include/fusedmix/element.h"
#include "borders.h"
#include "finish.h"
#include "gather.h"
#include "losses.h"
#include "pixel_losses.h"

namespace fusedmix::cpu {

// What a row of a separable mask is multiplied with, in this order: the axes before the row's, then those after it. So a
// pixel's value is (z·y)·x, rounded twice, along whichever axis the row runs.
struct Factors {
  float before, after, last;
};

// Samples that are mixed together: so many of a chain, each the partner of the one before it; or two pairs of partners.
enum class Links { kOne = 1, kTwo, kThree, kFour, kTwoPairs };
constexpr int kLinks = 4;  // so many at most
constexpr int samples_of(Links links) { return links == Links::kTwoPairs ? kLinks : static_cast<int>(links); }

// The weights of a row of each sample: factor·table of each element; with a negative factor, -0 too, 1 plus that.
struct ScaledRow {
  const float* table[kLinks];
  float factor[kLinks];
};

// All of n contiguous elements.
struct RowKernels {
  // Of a chain out[k] = w[k]·in[k] + (1-w[k])·in[k+1] for each of its samples, and so one more is read. Of two pairs in[0]
  // and in[1] are each other's, in[2] and in[3] too. All are read once. out[k] may be in[k], and a chain's last input may be in[0]; they
  // overlap nothing else. w[k] is a number other than 0 and 1,
  void (*uniform)(Links links, void* const* out, const void* const* in, int64_t n, const float* w);
  // one for each element,
  void (*weighted)(Links links, void* const* out, const void* const* in, int64_t n, const float* const* w);
  // or what a row has; so many rows of n elements each, one behind another.
  // `negative`: whether any factor may be.
  void (*scaled)(Links links, void* const* out, const void* const* in, int64_t n, const ScaledRow* rows, int64_t count,
                 bool negative);
  // own·g + (1-lent)·h, for one weight or for a weight each. Integers have no gradients.
  void (*adjoint_uniform)(void* out, const void* g, const void* h, int64_t n, float own, float lent);
  void (*adjoint_weighted)(void* out, const void* g, const void* h, int64_t n, const float* own, const float* lent);
};

// Half of the grey image of a Fourier mask in frequencies, and what turns it into pixels. Row |ky| of the coefficients holds
// those of ky and -ky, C = a + ib: their sums and differences.
struct Plane {
  int64_t height, width;  // pixels
  int64_t ny, nx;         // how many |ky|, and kx rounded up to kWaveLanes
  const float *sum_a, *difference_b, *difference_a, *sum_b;  // (ny, nx)
  const float *cos_y, *sin_y;                                // (ny, height / 2 + 1)
  const float *cos_x, *sin_x;                                // (nx, half), half = width / 2 + 1 rounded up to kWaveLanes
  int64_t half;
  float* rows;  // scratch: 2 (height, nx)
  float* out;   // (height, width)
};
constexpr int64_t kWaveLanes = 8;

struct FourierKernels {
  // Row r of `out`, n numbers each: a and b of (ky, kx), a and b of (-ky, kx), for kx from 0; `call` is that of kx = 0.
  void (*noise)(float* out, int64_t n, uint64_t seed, uint64_t index, uint32_t call);
  void (*plane)(const Plane& plane);
  // Bit q % 32 of bits[q / 32]: whether v[q] > threshold, for q < n; 0 for the rest of the last word.
  void (*above)(uint32_t* bits, const float* v, int64_t n, float threshold);
  // 0 or 1: bits q, q + 1, ... before q + n.
  void (*expand)(float* out, const uint32_t* bits, int64_t q, int64_t n);
  // How many values are above `high`; the places of those in [low, high] go to `found`, ascending, `most` of them at most.
  // Returns through `found_count` how many there are.
  int64_t (*bracket)(const float* v, int64_t n, float low, float high, int32_t* found, int64_t most, int64_t* found_count);
};

// Rows of so many bytes each to copy, their beginnings so many bytes apart, that overlap nothing.
struct CopiedRows {
  char* to;
  int64_t to_step;
  const char* from;
  int64_t from_step, rows, bytes;
};

struct Kernels {
  const char* name;    // of the instruction set
  RowKernels rows[7];  // by ElementType
  // Copies rows, and asks meanwhile for those that are copied next, of which there may be none.
  void (*copy_rows)(const CopiedRows& its, const CopiedRows& next);
  // Asks for what copy_rows() will read and write, so that the second-level cache has it by then.
  void (*ask_for_rows)(const CopiedRows& its);
  void (*fill)(float* out, float value, int64_t n);
  // out = factors·table, or 1 minus that: a row of a Gaussian mask from the exponentials of its axes.
  void (*gaussian)(float* out, const float* table, int64_t n, Factors factors, bool complement);
  FourierKernels fourier;
  LossRows losses[4];  // by ElementType
  PixelRows pixels[4];
  FinishKernels finish;
  GatherRows gather[7];  // by ElementType
  BorderKernels borders;
};

// The best set for this CPU; FUSEDMIX_ISA in the environment asks for one by name.
const Kernels& kernels();

}  // namespace fusedmix::cpu
