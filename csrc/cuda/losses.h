// The label losses of the CUDA backend, free of torch. Every function launches and returns a cudaError_t, 0 if all is well.
#pragma once

#include "kernels.h"

namespace fusedmix::cuda {

// Forwards. More threads than a block otherwise has: a row of many classes is one block's, and there may be too few rows to
// keep a chip busy. Backwards a row is several blocks'.
constexpr int kLossThreads = 256;

// What is null is not there.
struct Loss {
  ElementType type;  // of the logits and their gradient; everything else that is not an integer is of its compute type
  const void* logits;
  int64_t row_stride, step;  // in elements
  const void* labels;
  int32_t label_type;  // LabelType; classes are kLabelInt64
  bool soft;           // (B, K) labels, not (B,) classes
  int64_t label_stride, label_step;
  const void *class_weight, *pos_weight;  // (K,)
  int64_t batch, num_classes;
  double smoothing;
  int64_t ignore;  // cross entropy
  bool thresholded;
  double threshold;
  bool binary;  // binary cross entropy, else cross entropy
};

// One launch: (B,) losses; for cross entropy also (B, 2) statistics, the largest logit and the mass of the target over the
// sum of exponentials.
int loss_rows(const Loss& loss, const LaunchPlan& plan, void* losses, void* statistics, void* stream);

// One launch of one block: out = factor·Σ losses, and scale = factor, where counted the factor divided by the number of
// labels that are not ignored.
int finish_loss(const Loss& loss, const void* losses, bool counted, double factor, void* out, void* scale, void* stream);

// One launch: (B, K) contiguous. The gradient of row i is grad[i·grad_step]·factor, times *scale if there is one.
int loss_gradient(const Loss& loss, const LaunchPlan& plan, const void* grad, int64_t grad_step, double factor,
                  const void* scale, const void* statistics, void* out, void* stream);

}  // namespace fusedmix::cuda
