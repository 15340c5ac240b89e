#include "../include/fusedmix/labels.h"

#include "kernels.h"
#include "mix.h"

namespace fusedmix::cpu {
namespace {

template <class T, class Label>
void soft(const Targets& t, const LabelPlan& plan, const Parallel& parallel) {
  const Smoothing<T> smooth(t.smoothing, t.num_classes);
  const auto* labels = static_cast<const Label*>(t.labels.data);
  const auto entry = [](Label label) {
    if constexpr (std::is_same_v<T, Label>) return label;
    else return static_cast<T>(label);
  };
  parallel(t.batch, 1 + 16384 / (t.num_classes + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const LabelWeights<T> mixed(plan.weight[i]);
      const Label *y = labels + i * t.labels.row_stride, *z = labels + plan.partner[i] * t.labels.row_stride;
      T* out = static_cast<T*>(t.out) + i * t.num_classes;
      for (int64_t k = 0; k < t.num_classes; ++k) {
        out[k] = mixed(smooth(entry(y[k * t.labels.step])), smooth(entry(z[k * t.labels.step])));
      }
    }
  });
}

template <class Label>
void classes(const Targets& t, const LabelPlan& plan, const Parallel& parallel) {
  const Smoothing<float> smooth(t.smoothing, t.num_classes);
  const float on = smooth(1.0f), off = smooth(0.0f);
  const auto* labels = static_cast<const Label*>(t.labels.data);
  const int64_t stride = t.labels.row_stride, num_classes = t.num_classes;
  const auto fill = kernels().fill;
  // By copies: what the loop reads of them stays in registers.
  parallel(t.batch, 1 + 65536 / num_classes, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const LabelWeights<float> mixed(plan.weight[i]);
      const auto y = static_cast<int64_t>(labels[i * stride]), z = static_cast<int64_t>(labels[plan.partner[i] * stride]);
      float* out = static_cast<float*>(t.out) + i * num_classes;
      fill(out, mixed(off, off), num_classes);
      out[z] = mixed(off, on);
      out[y] = mixed(on, y == z ? on : off);
    }
  });
}

}  // namespace

void mix_labels(const Targets& targets, const LabelPlan& plan, const Parallel& parallel) {
  of_label(targets.labels.type, [&](auto label) {
    using Label = decltype(label);
    if constexpr (!std::is_integral_v<Label>) {
      soft<Label, Label>(targets, plan, parallel);
    } else if (targets.labels.soft) {
      soft<float, Label>(targets, plan, parallel);
    } else {
      classes<Label>(targets, plan, parallel);
    }
  });
}

}  // namespace fusedmix::cpu
