// Dense targets. Those of most batches, float32 from integer classes, are written by the launch that mixes the images, in the
// blocks after theirs: little code, of which every mixing kernel has a copy. All others have a kernel of their own.
#pragma once

#include "partner.h"

namespace fusedmix::cuda {

// Targets that a mixing kernel writes.
struct ClassTargets {
  const char* labels;
  int64_t row_stride;  // in bytes
  float* out;
  uint32_t entries;  // batch · classes, below 2^31
  uint32_t batch;
  Divisor classes;
  int32_t label_bytes;
  uint32_t below;            // which the bits of a label are where it is a class: those of others may be of a negative number
  float of_class, of_other;  // after smoothing
};

inline bool are_classes(const Targets& t) {
  return !t.labels.soft && t.labels.type < kLabelFloat && t.out_type == ElementType::kFloat32 && t.batch * t.num_classes < INT32_MAX;
}

inline ClassTargets class_targets(const Targets& t) {
  if (t.labels.data == nullptr) return {};
  const auto bytes = static_cast<int32_t>(label_size(t.labels.type));
  const bool has_sign = t.labels.type <= kLabelInt8;
  const Smoothing<float> smooth(t.smoothing, t.num_classes);
  return {static_cast<const char*>(t.labels.data),
          t.labels.row_stride * bytes,
          static_cast<float*>(t.out),
          static_cast<uint32_t>(t.batch * t.num_classes),
          static_cast<uint32_t>(t.batch),
          divisor(t.num_classes),
          bytes,
          has_sign && bytes < 4 ? 1u << (8 * bytes - 1) : 1u << 31,
          smooth(1.0f),
          smooth(0.0f)};
}

// One to a thread: of a loop over several nvcc makes up to three copies on GPUs from sm_100 on, one for each pairing.
FUSEDMIX_DEVICE void write_classes(const ClassTargets& t, const LaunchPlan& plan, uint32_t block, uint32_t threads) {
  const uint32_t at = block * threads + device::thread();  // of 2^31 and a few
  if (at >= t.entries) return;
  const PlanView view = view_of(plan);
  const double* weights = weights_of(plan);
  const uint32_t i = divide(at, t.classes), k = at - i * t.classes.number;
  const uint32_t j = partner_of(view, i, t.batch);
  const LabelWeights<float> mixed(device::load(weights + (plan.weight_shared ? 0 : i)));
  bool own = false, lent = false;  // whether k is the class
  const auto compare = [&](auto type) {
    using Label = decltype(type);
    const auto label = [&](uint32_t of) { return device::load(reinterpret_cast<const Label*>(t.labels + of * t.row_stride)); };
    const Label a = label(i), b = label(j);
    own = a == k && k < t.below, lent = b == k && k < t.below;
  };
  switch (t.label_bytes) {
    case 8: compare(uint64_t{}); break;
    case 4: compare(uint32_t{}); break;
    case 2: compare(uint16_t{}); break;
    default: compare(uint8_t{}); break;
  }
  device::store(t.out + at, mixed(own ? t.of_class : t.of_other, lent ? t.of_class : t.of_other));
}

// ---- any labels ----

constexpr int64_t kTargetsPerThread = 4;

// Entry k of the label of sample i, before any smoothing: a class as one-hot, an integer as float.
template <class T>
FUSEDMIX_DEVICE T load_label(const Labels& labels, int64_t i, int64_t k) {
  return of_label(labels.type, [&](auto label) {
    const auto* row = static_cast<const decltype(label)*>(labels.data) + i * labels.row_stride;
    if (labels.soft) return from_compute<T>(label_as<Compute<T>>(device::load(row + k * labels.step)));
    return from_compute<T>(label_as<int64_t>(device::load(row)) == k ? 1.0f : 0.0f);
  });
}

inline int64_t target_blocks(const Targets& t) {
  const int64_t each = kThreads * kTargetsPerThread;
  return t.labels.data == nullptr ? 0 : (t.batch * t.num_classes + each - 1) / each;
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
    device::store(static_cast<T*>(t.out) + at, mixed(smooth(load_label<T>(t.labels, i, k)), smooth(load_label<T>(t.labels, j, k))));
  }
}

}  // namespace fusedmix::cuda
