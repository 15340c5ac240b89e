// What the CPU backend does, free of torch. The binding (csrc/binding/cpu.cpp) and the tests call these.
#pragma once

#include "../host/parallel.h"
#include "../include/fusedmix/masks.h"
#include "../include/fusedmix/requests.h"

namespace fusedmix::cpu {

void mix(const Images& images, const PlanView& plan, const Parallel& parallel);

// Writes the targets of a batch, whose classes must be in range.
void mix_labels(const Targets& targets, const LabelPlan& plan, const Parallel& parallel);

void fourier(const FourierMasks& request, const Parallel& parallel);

// (n, D, H, W) float32 masks.
void masks(const PlanView& plan, int64_t n, const int64_t* size, float* out, const Parallel& parallel);

}  // namespace fusedmix::cpu
