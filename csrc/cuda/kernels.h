// What the CUDA backend launches, free of torch. The host program (step.h) calls these; every function that launches returns
// a cudaError_t, 0 if all is well.
#pragma once

#include "../include/fusedmix/labels.h"
#include "../include/fusedmix/layout.h"
#include "../include/fusedmix/masks.h"
#include "../include/fusedmix/plan.h"

namespace fusedmix::cuda {

constexpr int kThreads = 128;

// As many blocks as one launch can have.
inline int64_t launchable(int64_t blocks) {
  if (blocks > INT32_MAX) throw std::invalid_argument("more blocks than one launch can have");
  return blocks;
}

// A plan as kernels get it: in memory, or, from the host, inside their arguments.
constexpr int kInlineBytes = 44 * (sizeof(Record) + sizeof(int64_t) + sizeof(double));  // of 44 samples
struct LaunchPlan {
  PlanView view;
  const double* weight;  // (B,), or one number if weight_shared
  bool weight_shared;
  bool travels;  // in `bytes`; the pointers to its parts are then not used
  struct {
    int32_t masks, partner, weight;
  } offset;  // of each part in `bytes`
  alignas(16) char bytes[kInlineBytes];
};

// Images to mix. src == dst: in place.
struct Images {
  ElementType type;
  const void* src;
  void* dst;
  Layout layout;
  bool adjoint;  // out of place only
};

// Dense targets to write, (batch, classes) contiguous.
struct Targets {
  const void* labels;  // null: no targets
  int32_t label_type;  // LabelType
  bool soft;           // (B, K) labels, not (B,) classes
  int64_t row_stride, step;
  int64_t batch, num_classes;
  double smoothing;
  void* out;
  ElementType out_type;
};

// How a launch goes through the batch; see mix.cu.
struct Walk {
  int32_t width;     // elements that a thread moves at a time
  int64_t columns;   // vectors of that width in a sample
  int64_t tiles;     // blocks across a sample
  int64_t units;     // blocks along the batch
  int64_t span;      // samples, or pairs, of a unit
  bool heads;        // every span-th sample is a head, at which walks stop
  int64_t staged_bytes;  // of scratch, for the heads in place
};

// Chooses for a chip of so many multiprocessors. Throws std::invalid_argument for a batch that no launch can address.
Walk plan_walk(const Images& images, int32_t pairing, int multiprocessors);
// The same out of place, for partners that are no permutation: every sample by itself, and its partner is read a second time.
Walk walk_each(Walk walk, int64_t batch);

// Copies the heads aside. Only for a walk with staged_bytes > 0, and only if sample() has not done it.
int stage(const Images& images, const Walk& walk, void* staged, void* stream);

// One launch: the images (null: none) and the targets (labels null: none).
int mix(const Images* images, const LaunchPlan& plan, const Walk& walk, const void* staged, const Targets& targets, void* stream);

// Everything random, from a seed. Pointers are to device memory, but for `rows`.
struct Sampling {
  const MethodRow* rows;  // on the host
  int32_t methods;
  const MethodRow* device_rows;  // on the device, where `methods` exceeds kInlineRows
  int64_t batch;
  Extent extent;
  int32_t pairing, per;
  double p;
  const float* lam;
  bool lam_each;
  const int64_t* classes;
  const int64_t* seed;  // on the device, or null
  uint64_t seed_value;  // without one
  int32_t* scratch;     // 1 number a sample, for kCrossClass
  PlanOut out;
};
constexpr int kInlineRows = 16;

// One launch: the plan, and the heads of a batch that will be mixed in place (images null: none).
int sample(const Sampling& sampling, const Images* images, const Walk& walk, void* staged, void* stream);

// The Fourier masks of a plan of `batch` samples (fusedmix/fourier.py, masks). Pointers are to device memory, but for `rows`.
struct Fourier {
  const MethodRow* rows;  // on the host: what may have been drawn
  int32_t methods;
  Extent extent;
  int64_t batch;
  int32_t per, draws;   // Per: which mask is whose, and which noise is whose
  const int64_t* seed;  // or null
  uint64_t seed_value;  // without one
  const Record* masks;
  uint32_t* bits;    // to write: these,
  uint16_t* levels;  // or these
  char* scratch;     // fourier_scratch() bytes, at a multiple of 16
  int64_t most_scratch = int64_t{24} << 20;  // for the masks that are made at a time; at least one is
};
int64_t fourier_scratch(const Fourier& f);

// Three launches (in 3-D four) for as many masks as the scratch holds, for each kind of FMix that may have been drawn. Rows of
// other kinds become 0.
int fourier(const Fourier& f, void* stream);

// (n, D, H, W) float32 masks.
int masks(const PlanView& plan, int64_t n, const int64_t* size, float* out, void* stream);

}  // namespace fusedmix::cuda
