// What is asked of a backend, CPU or CUDA: one record for each kind of request. The bindings (csrc/binding) and the tests fill
// them, csrc/host, csrc/cpu and csrc/cuda read them. Pointers are to memory that the backend can read, but for the rows of a spec,
// which the host reads. A pointer is null where there is no such thing. Strides are in elements.
#pragma once

#include "finish.h"
#include "labels.h"
#include "layout.h"
#include "paste.h"
#include "plan.h"
#include "sampling.h"
#include "terms.h"

namespace fusedmix {

// Images to mix.
struct Images {
  ElementType type;
  const void* src;
  void* dst;  // src itself: in place
  Layout layout;
  bool adjoint;  // the gradient of mixing, which is out of place
  // Where partners are of another batch, of `others` samples whose strides are those of `src` but for the batch's.
  const void* other = nullptr;
  int64_t other_batch = 0, others = 0;
};

struct Seed {
  const int64_t* on_device;  // null: the seed is `value`
  uint64_t value;
};

// A plan to draw: what fusedmix/draws.py asks for in a Request and a Source.
struct Sampling {
  const MethodRow* rows;
  int32_t methods;
  int64_t batch;
  Extent extent;
  int32_t pairing, per;
  double p;
  const float* lam;  // where λ is given
  bool lam_each;     // lam has (batch,) numbers, not one
  const int64_t* classes;
  Seed seed;
  // What was drawn elsewhere, by the generator of the host: kDrawnWidth numbers for each draw, and the partners where they follow
  // from no formula. Null: both are drawn from the seed. Only the host's sampler takes them.
  const double* drawn;
  const int64_t* partner;
  PlanOut out;
};

// The Fourier masks to make of a plan of `batch` samples (fusedmix/fourier.py, masks).
struct FourierMasks {
  const MethodRow* rows;  // what may have been drawn
  int32_t methods;
  Extent extent;
  int64_t batch;
  int32_t per, draws;  // Per: which mask is whose, and which noise is whose
  Seed seed;
  const Record* masks;
  uint32_t* bits;    // either these are written
  uint16_t* levels;  // or, where masks are soft, these
};

struct Labels {
  const void* data;
  LabelType type;
  bool soft;  // (batch, num_classes) labels, not (batch,) classes
  int64_t row_stride, step;
};

// Dense targets to write: (batch, num_classes), contiguous.
struct Targets {
  Labels labels;  // without data there are no targets to write
  int64_t batch, num_classes;
  double smoothing;
  void* out;
  ElementType out_type;  // that of soft labels in floating point, else float32
};

// A label loss. Sums, losses and weights of classes are of the compute type of the logits.
struct Loss {
  ElementType type;  // of the logits and their gradient
  const void* logits;
  int64_t row_stride, step;
  Labels labels;  // classes are int64
  const void *class_weight, *pos_weight;  // (num_classes,) numbers
  int64_t batch, num_classes;
  double smoothing;
  int64_t ignore;    // of cross entropy: the class that is ignored
  bool thresholded;  // of binary cross entropy: whether targets become 0 or 1
  double threshold;
  bool binary;  // binary cross entropy, else cross entropy
};

// What the gradient of a loss starts from: that of row i is grad[i·step]·factor, times *scale where there is one.
struct LossGrad {
  const void* grad;
  int64_t step;
  double factor;
  const void *scale, *statistics;  // which cross entropy left forwards
};

// The steps of a tensor of pixels from sample to sample, from class to class, and along (z, y, x).
struct PixelSteps {
  int64_t batch, plane, side[3];
};

// The cross entropy of mixed label maps. Losses, and the weights of classes, are of the compute type of the logits.
struct PixelLoss {
  ElementType type;  // of the logits and their gradient
  const void* logits;
  PixelSteps by;
  const void* maps;  // (samples, pixels) integers, contiguous: the batch's own come first
  LabelType label;
  const void* class_weight;  // (classes,) numbers
  int64_t batch, samples, classes, pixels, side[3];
  double smoothing;
  int64_t ignore;
};

// (batch, pixels) losses and their logsumexp, and the losses' sum and its scale.
struct PixelOut {
  void *losses, *logsumexp, *sum, *scale;
};

// What the gradient of that starts from, and where it goes.
struct PixelGrad {
  const void* grad;  // one number, or (batch, pixels) if `each`
  bool each;
  const void *logsumexp, *scale;
  void* out;
  PixelSteps by;
};

// A batch to finish: to flip, erase, mix where there is a plan, normalise, and round to another type.
struct Finishing {
  ElementType type;  // of the batch that comes: all but kFloat64
  ElementType made;  // of the new one: kFloat32, kFloat16, kBFloat16
  const void* src;
  int64_t step[4];  // of src: from sample to sample, channel to channel, row to row, pixel to pixel
  void* dst;        // (B, C, H, W), or (B, H, W, C)
  bool channels_last;
  int64_t batch, channels, height, width;
  const float* affine;   // (3, C): scale, shift, fill
  const int32_t* draws;  // (B, draw_words), or null
  int64_t draw_words;
  Fill fill;
  bool constant;  // the masks of the plan do not depend on pixels
};

// The flips and holes of a batch to draw.
struct FinishDraws {
  FinishDraw draw;
  Seed seed;
  int64_t batch, height, width;
  int32_t* records;  // (batch, finish_words(draw.most))
};

}  // namespace fusedmix
