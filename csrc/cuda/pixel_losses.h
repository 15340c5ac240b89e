// The cross entropy of mixed label maps on the CUDA backend, free of torch. Every function launches and returns a cudaError_t, 0 if
// all is well.
#pragma once

#include "kernels.h"

namespace fusedmix::cuda {

constexpr int kPixelThreads = 256;  // of a block

// How a launch goes through the pixels. A row is as many of them as lie at a constant step in the logits and in the gradient: all of
// a sample, or, of images that are cut out of others, a row of the image. A block has a tile of a row.
struct PixelShape {
  bool wide;      // whether neighbouring pixels are one access
  int64_t row;    // pixels
  int64_t rows;   // of a sample
  int64_t tiles;  // of a row
  int64_t blocks;
};
// Throws std::invalid_argument for logits that no launch can address.
PixelShape pixel_shape(const PixelLoss& loss, const PixelGrad* grad);

// Where blocks leave their sums.
inline int64_t partial_bytes(const PixelShape& shape) { return shape.blocks * 2 * static_cast<int64_t>(sizeof(double)); }

// Two launches, of which the second has one block: out.logsumexp, and out.losses if it is there; out.sum, the losses' times
// out.scale; and that: one over the weights of all labels if `mean`, else 1.
int pixel_losses(const PixelLoss& loss, const LaunchPlan& plan, const PixelShape& shape, const PixelOut& out, double* partial, void* stream);
int finish_pixel_losses(const PixelLoss& loss, const PixelShape& shape, const double* partial, bool mean, const PixelOut& out, void* stream);

// One launch.
int pixel_gradient(const PixelLoss& loss, const LaunchPlan& plan, const PixelShape& shape, const PixelGrad& grad, void* stream);

}  // namespace fusedmix::cuda
