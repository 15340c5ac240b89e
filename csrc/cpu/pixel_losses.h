// The cross entropy of mixed label maps on the CPU, free of torch. The meaning is fusedmix/backends/pixel_losses.py.
#pragma once

#include "mix.h"

namespace fusedmix::cpu {

// `mean`: whether out.scale is one over the weights of all labels, else 1. Where out.losses is null the losses are summed alone.
// Throws std::invalid_argument for a label that is no class and not ignored.
void pixel_loss(const PixelLoss& loss, const PlanView& plan, bool mean, const PixelOut& out, const Parallel& parallel);
void pixel_gradient(const PixelLoss& loss, const PlanView& plan, const PixelGrad& grad, const Parallel& parallel);

// So many pixels at a time: a few classes of them are in the first-level cache.
constexpr int64_t kPixelTile = 256;

// Some pixels of a sample that lie at a constant step, and of each class at another.
struct PixelPlaces {
  int64_t n, step, classes, plane;
};

// What stands for a class where a label is none.
constexpr int32_t kNoClass = -1, kIgnored = -2;

// Their mixed labels: t_k = own_part·[k = own] + lent_part·[k = lent] + flat·c_k. Numbers are of the compute type.
struct PixelTargets {
  const int32_t *own, *lent;                 // classes, or what stands for one
  const void *own_part, *lent_part, *flat;   // `flat` is null without smoothing
  const void* class_weight;                  // c, (classes,) or null
  double mass;                               // Σ c
};

// The innermost loops, one set for each element type, compiled once for each instruction set.
struct PixelRows {
  // Writes the classes of n labels of a map from `at` on.
  void (*find_classes)(int32_t* found, LabelType type, const void* map, int64_t at, int64_t n, int64_t classes, int64_t ignore);
  // Writes a loss and a logsumexp for each pixel; returns the sum of the losses.
  double (*losses)(void* losses, void* logsumexp, const void* logits, const PixelPlaces& places, const PixelTargets& targets);
  // `to` is where the classes of the gradient lie; `grads` are one for each pixel, or one for all. All are multiplied with `scale`.
  void (*gradient)(void* out, const PixelPlaces& to, const void* logits, const PixelPlaces& places, const PixelTargets& targets,
                   const void* logsumexp, const void* grads, bool each, double scale);
};

}  // namespace fusedmix::cpu
