// The label losses of the CUDA backend, free of torch. Every function launches and returns a cudaError_t, 0 if all is well.
#pragma once

#include "kernels.h"

namespace fusedmix::cuda {

constexpr int kLossThreads = 256;  // of a block forwards; backwards it has kThreads
constexpr int kLossAhead = 4;      // loads of a thread that are under way before the first is used
// A lane each for the elements at the ends of a row that are in no vector: no more than 14, of 2 bytes.
constexpr int kEndsLog = 4;

// How a launch goes through the rows: as parts that are each one block's, or, where a row is one part, several in a block.
// Rows alone may be too few to keep a chip busy.
struct LossShape {
  bool wide;          // 16 bytes at a time, but for the ends of rows; else one element
  int32_t log_lanes;  // a part has 2^log_lanes threads
  int64_t parts;      // of a row
  int32_t length;     // vectors of a part; the last of a row may have fewer
  int64_t blocks;
};

// Where the parts of a row leave their sums, forwards; null where a row is one part.
inline int64_t partial_bytes(const Loss& loss, const LossShape& shape) {
  const int64_t each = (loss.binary ? 1 : 4) * (loss.type == ElementType::kFloat64 ? 8 : 4);
  return shape.parts == 1 ? 0 : loss.batch * shape.parts * each;
}

LossShape forward_shape(const Loss& loss, int multiprocessors);
LossShape backward_shape(const Loss& loss, const void* out, int multiprocessors);

// What a loss leaves: (B,) losses, (B, 2) statistics of cross entropy (the largest logit, and the mass of the target over the sum
// of exponentials), and the sum and its scale.
struct LossOut {
  void *rows, *statistics, *sum, *scale;
};

// Two launches, of which the second has one block: out.rows and out.statistics; out.sum = factor·Σ rows and out.scale = factor,
// where counted the factor divided by the number of labels that are not ignored.
int loss_rows(const Loss& loss, const LaunchPlan& plan, const LossShape& shape, const LossOut& out, void* partial, void* stream);
int finish_loss(const Loss& loss, const LossShape& shape, const void* partial, bool counted, double factor, const LossOut& out,
                void* stream);

// One launch: (B, K) contiguous.
int loss_gradient(const Loss& loss, const LaunchPlan& plan, const LossShape& shape, const LossGrad& grad, void* out, void* stream);

}  // namespace fusedmix::cuda
