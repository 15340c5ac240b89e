// Dense targets. Those of most batches, float32 from integer classes, are written by the launch that mixes the images, in the
// blocks after theirs: little code, of which every mixing kernel has a copy. All others have a kernel of their own.
#pragma once

#include "../include/fusedmix/labels.h"
#include "partner.h"

namespace fusedmix::cuda {

// Targets that a mixing kernel writes.
struct ClassTargets {
  const char* labels;
  int64_t row_stride;  // in bytes
  float* out;
  int32_t entries;  // batch · classes
  int32_t batch;
  Divisor classes;
  int32_t label_bytes;
  int32_t sign_shift;        // from the highest bit of a label to that of 64 bits, or 0 of labels without a sign
  float of_class, of_other;  // after smoothing
};

inline bool are_classes(const Targets& t) {
  return !t.soft && t.label_type < kLabelFloat && t.out_type == ElementType::kFloat32 && t.batch * t.num_classes < INT32_MAX;
}

inline ClassTargets class_targets(const Targets& t) {
  if (t.labels == nullptr) return {};
  constexpr int32_t kBytes[] = {8, 4, 2, 1, 1, 2, 4, 8};  // of labels that are classes
  const int32_t bytes = kBytes[t.label_type];
  const bool has_sign = t.label_type <= kLabelInt8;
  const Smoothing<float> smooth(t.smoothing, t.num_classes);
  return {static_cast<const char*>(t.labels),
          t.row_stride * bytes,
          static_cast<float*>(t.out),
          static_cast<int32_t>(t.batch * t.num_classes),
          static_cast<int32_t>(t.batch),
          divisor(t.num_classes),
          bytes,
          has_sign ? 64 - 8 * bytes : 0,
          smooth(1.0f),
          smooth(0.0f)};
}

FUSEDMIX_DEVICE int64_t class_of(const ClassTargets& t, int64_t i) {
  const char* at = t.labels + i * t.row_stride;
  uint64_t label = 0;
  switch (t.label_bytes) {
    case 8: label = device::load(reinterpret_cast<const uint64_t*>(at)); break;
    case 4: label = device::load(reinterpret_cast<const uint32_t*>(at)); break;
    case 2: label = device::load(reinterpret_cast<const uint16_t*>(at)); break;
    default: label = device::load(reinterpret_cast<const uint8_t*>(at)); break;
  }
  return static_cast<int64_t>(label << t.sign_shift) >> t.sign_shift;
}

// One to a thread: of a loop over several nvcc makes up to three copies on GPUs from sm_100 on, one for each pairing.
FUSEDMIX_DEVICE void write_classes(const ClassTargets& t, const LaunchPlan& plan, int32_t block, int32_t threads) {
  const uint32_t at = static_cast<uint32_t>(block) * static_cast<uint32_t>(threads) + device::thread();  // of 2^31 and a few
  if (at >= static_cast<uint32_t>(t.entries)) return;
  const PlanView view = view_of(plan);
  const double* weights = weights_of(plan);
  const uint32_t i = divide(at, t.classes), k = at - i * t.classes.number;
  const int64_t j = partner_of(view, i, t.batch);
  const LabelWeights<float> mixed(device::load(weights + (plan.weight_shared ? 0 : i)));
  device::store(t.out + at, mixed(class_of(t, i) == k ? t.of_class : t.of_other, class_of(t, j) == k ? t.of_class : t.of_other));
}

// ---- any labels ----

constexpr int64_t kTargetsPerThread = 4;

// Entry k of the label of sample i, before any smoothing: a class as one-hot, an integer as float.
template <class T>
FUSEDMIX_DEVICE T load_label(const Targets& t, int64_t i, int64_t k) {
  return of_label(t.label_type, [&](auto label) {
    using Label = decltype(label);
    const auto* labels = static_cast<const Label*>(t.labels);
    if (t.soft) return from_compute<T>(label_as<Compute<T>>(device::load(labels + i * t.row_stride + k * t.step)));
    return from_compute<T>(label_as<int64_t>(device::load(labels + i * t.row_stride)) == k ? 1.0f : 0.0f);
  });
}

inline int64_t target_blocks(const Targets& t) {
  const int64_t each = kThreads * kTargetsPerThread;
  return t.labels == nullptr ? 0 : (t.batch * t.num_classes + each - 1) / each;
}

template <class T>
FUSEDMIX_DEVICE void write_any(const Targets& t, const LaunchPlan& plan) {
  const PlanView view = view_of(plan);
  const double* weights = weights_of(plan);
  const Smoothing<T> smooth(t.smoothing, t.num_classes);
  const int64_t total = t.batch * t.num_classes;
  FUSEDMIX_NO_UNROLL
  for (int64_t n = 0; n < kTargetsPerThread; ++n) {
    const int64_t at = (device::block() * kTargetsPerThread + n) * kThreads + device::thread();
    if (at >= total) return;
    const int64_t i = at / t.num_classes, k = at % t.num_classes;
    const int64_t j = partner_of(view, i, t.batch);
    const LabelWeights<T> mixed(device::load(weights + (plan.weight_shared ? 0 : i)));
    device::store(static_cast<T*>(t.out) + at, mixed(smooth(load_label<T>(t, i, k)), smooth(load_label<T>(t, j, k))));
  }
}

}  // namespace fusedmix::cuda
