// The label losses of the CPU backend, free of torch.
#pragma once

#include "../include/fusedmix/losses.h"
#include "mix.h"

namespace fusedmix::cpu {

// (batch,) losses; of cross entropy also (batch, 2) statistics: the largest logit, and the mass of the target over the sum of
// exponentials.
void loss_rows(const Loss& loss, const LabelPlan& plan, void* losses, void* statistics, const Parallel& parallel);
// (batch, num_classes) numbers, contiguous.
void loss_gradient(const Loss& loss, const LabelPlan& plan, const LossGrad& grad, void* out, const Parallel& parallel);

// What the classes of a row of binary cross entropy have beside their logits.
struct BinaryRow {
  double target;           // that of each class, where `own` is null
  const void *own, *lent;  // the soft labels that are mixed
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
  // Writes rate·exp(z - max) - flat·c, c being the weights of the classes.
  void (*gradient)(void* out, const void* z, int64_t step, const void* class_weight, int64_t n, double max, double rate,
                   double flat);
  // The n classes from class `begin` on.
  double (*binary_loss)(const void* z, int64_t step, const BinaryRow& row, int64_t begin, int64_t n);
  void (*binary_gradient)(void* out, const void* z, int64_t step, const BinaryRow& row, int64_t begin, int64_t n, double grad);
};

}  // namespace fusedmix::cpu
