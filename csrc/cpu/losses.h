// The label losses of the CPU backend, free of torch. What is null is not there.
#pragma once

#include "../include/fusedmix/losses.h"
#include "mix.h"

namespace fusedmix::cpu {

struct LossArgs {
  ElementType type;  // of the logits and their gradient; sums, weights and losses are of its compute type
  const void* logits;
  int64_t row_stride, step;  // in elements
  const int64_t* classes;    // (B,)
  const void* soft;          // (B, K) instead: binary cross entropy only
  LabelType soft_type;
  int64_t soft_stride, soft_step;
  const int64_t* partner;
  const double* weight;
  const void *class_weight, *pos_weight;  // (K,)
  int64_t batch, num_classes;
  double smoothing;
  int64_t ignore;         // cross entropy
  bool thresholded;       // binary cross entropy
  double threshold;
};

// (B,) losses, and (B, 2) statistics: the largest logit, and the mass of the target over the sum of exponentials.
void cross_entropy(const LossArgs& args, void* losses, void* statistics, const Parallel& parallel);
// (B, K) contiguous. The gradient of row i is grad[i·grad_step]·scale.
void cross_entropy_backward(const LossArgs& args, const void* statistics, const void* grad, int64_t grad_step, double scale,
                            void* out, const Parallel& parallel);
// (B,) sums over the classes.
void binary_cross_entropy(const LossArgs& args, void* losses, const Parallel& parallel);
void binary_cross_entropy_backward(const LossArgs& args, const void* grad, int64_t grad_step, double scale, void* out,
                                   const Parallel& parallel);

// A row, or the part of one from class `begin` on, of binary cross entropy.
struct BinaryRow {
  double target;            // of all its classes, or
  const void *own, *lent;   // the labels that are mixed
  LabelType type;
  int64_t label_step;
  int64_t num_classes;
  double smoothing, weight, threshold;
  bool thresholded;
  const void *class_weight, *pos_weight;
};

// The innermost loops, one set for each element type, compiled once for each instruction set. Logits are `step` elements
// apart; gradients are contiguous.
struct LossRows {
  RowSums<double> (*sums)(const void* z, int64_t step, const void* class_weight, bool linear, int64_t n);
  // rate·exp(z - max) - flat·c
  void (*gradient)(void* out, const void* z, int64_t step, const void* class_weight, int64_t n, double max, double rate,
                   double flat);
  double (*binary_loss)(const void* z, int64_t step, const BinaryRow& row, int64_t begin, int64_t n);
  void (*binary_gradient)(void* out, const void* z, int64_t step, const BinaryRow& row, int64_t begin, int64_t n, double grad);
};

}  // namespace fusedmix::cpu
