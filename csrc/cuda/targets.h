// Dense targets, in the launch that mixes the images: the blocks after theirs.
#pragma once

#include "../include/fusedmix/labels.h"
#include "partner.h"

namespace fusedmix::cuda {

constexpr int64_t kTargetsPerThread = 4;

inline int64_t target_blocks(const Targets& t) {
  const int64_t each = kThreads * kTargetsPerThread;
  return t.labels == nullptr ? 0 : (t.batch * t.num_classes + each - 1) / each;
}

// A label of any integer type.
FUSEDMIX_DEVICE int64_t load_integer(const Targets& t, int64_t at) {
  switch (t.label_type) {
    case kLabelInt64: return device::load(static_cast<const int64_t*>(t.labels) + at);
    case kLabelInt32: return device::load(static_cast<const int32_t*>(t.labels) + at);
    case kLabelInt16: return device::load(static_cast<const int16_t*>(t.labels) + at);
    case kLabelInt8: return device::load(static_cast<const int8_t*>(t.labels) + at);
    case kLabelUInt8: return device::load(static_cast<const uint8_t*>(t.labels) + at);
    case kLabelUInt16: return device::load(static_cast<const uint16_t*>(t.labels) + at);
    case kLabelUInt32: return device::load(static_cast<const uint32_t*>(t.labels) + at);
    default: return static_cast<int64_t>(device::load(static_cast<const uint64_t*>(t.labels) + at));
  }
}

// Entry k of the label of sample i, before any smoothing: a class as one-hot, an integer as float.
template <class T>
FUSEDMIX_DEVICE T load_label(const Targets& t, int64_t i, int64_t k) {
  if (!t.soft) return from_compute<T>(load_integer(t, i * t.row_stride) == k ? 1.0f : 0.0f);
  const int64_t at = i * t.row_stride + k * t.step;
  if (t.label_type < kLabelFloat) return from_compute<T>(static_cast<float>(load_integer(t, at)));
  return device::load(static_cast<const T*>(t.labels) + at);
}

template <class T>
FUSEDMIX_DEVICE void write_targets(const Targets& t, const LaunchPlan& plan, int64_t block) {
  const PlanView view = view_of(plan);
  const double* weights = weights_of(plan);
  const Smoothing<T> smooth(t.smoothing, t.num_classes);
  const int64_t total = t.batch * t.num_classes;
  // Not unrolled: this is in every kernel, in every type, and would be half of what there is to compile.
  for (int64_t n = 0; n < kTargetsPerThread; ++n) {
    const int64_t at = (block * kTargetsPerThread + n) * kThreads + device::thread();
    if (at >= total) return;
    const int64_t i = at / t.num_classes, k = at % t.num_classes;
    const int64_t j = partner_of(view.pairing, view.partner, i, t.batch);
    const LabelWeights<T> mixed(device::load(weights + (plan.weight_shared ? 0 : i)));
    device::store(static_cast<T*>(t.out) + at, mixed(smooth(load_label<T>(t, i, k)), smooth(load_label<T>(t, j, k))));
  }
}

FUSEDMIX_DEVICE void write_targets(const Targets& t, const LaunchPlan& plan, int64_t block) {
  switch (t.out_type) {
    case ElementType::kFloat16: return write_targets<Half>(t, plan, block);
    case ElementType::kBFloat16: return write_targets<BFloat16>(t, plan, block);
    case ElementType::kFloat64: return write_targets<double>(t, plan, block);
    default: return write_targets<float>(t, plan, block);
  }
}

}  // namespace fusedmix::cuda
