// Losses row by row; the loops within a row are loss_rows.h's.
#include "losses.h"

#include "kernels.h"

namespace fusedmix::cpu {
namespace {

const LossRows& loops(const Loss& loss) { return kernels().losses[static_cast<int>(loss.type)]; }

// The class of sample i.
int64_t class_of(const Loss& loss, int64_t i) { return static_cast<const int64_t*>(loss.labels.data)[i * loss.labels.row_stride]; }

// The label of sample i. `share`: that of each class in the smoothing.
MixedClasses<double> label_of(const Loss& loss, const LabelPlan& plan, double share, int64_t i) {
  const int64_t y = class_of(loss, i), z = class_of(loss, plan.partner[i]);
  return {y, z, plan.weight[i], loss.num_classes, loss.ignore, loss.smoothing, share};
}

// The weight of class k, or 1 where there are no weights or no class.
template <class T>
double weight_of(const void* weights, int64_t k) {
  return weights == nullptr || k < 0 ? 1.0 : static_cast<double>(static_cast<const Compute<T>*>(weights)[k]);
}

template <class T>
double logit(const T* z, const Loss& loss, int64_t k) {
  return k < 0 ? 0.0 : static_cast<double>(to_compute(z[k * loss.step]));
}

// Calls f(T{}, i) for every row i, T being the element type of the logits. A thread has enough rows at a time to be worth it.
template <class F>
void each_row(const Loss& loss, const Parallel& parallel, const F& f) {
  const auto run = [&](auto type) {
    parallel(loss.batch, 1 + 16384 / (loss.num_classes + 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(type, i);
    });
  };
  switch (loss.type) {
    case ElementType::kFloat16: return run(Half{});
    case ElementType::kBFloat16: return run(BFloat16{});
    case ElementType::kFloat64: return run(double{});
    default: return run(float{});
  }
}

template <class T>
const T* logits_of(const Loss& loss, int64_t i) {
  return static_cast<const T*>(loss.logits) + i * loss.row_stride;
}

template <class T>
double entry_of(const void* x, int64_t i) {
  return static_cast<double>(static_cast<const Compute<T>*>(x)[i]);
}

// The targets of a row of binary cross entropy: those of soft labels; or that of all classes but two, and those of the two.
template <class T>
struct BinaryLabel {
  BinaryRow row;
  int64_t own = -1, lent = -1;  // the two classes; -1 where labels are soft, and `lent` also where it is the own one
  double own_target = 0, lent_target = 0;

  BinaryLabel(const Loss& loss, const LabelPlan& plan, int64_t i) {
    using C = Compute<T>;
    const Labels& labels = loss.labels;
    row = {0, nullptr, nullptr, labels.type, labels.step, loss.num_classes, loss.smoothing, plan.weight[i],
           loss.threshold, loss.thresholded, loss.class_weight, loss.pos_weight};
    const int64_t j = plan.partner[i];
    if (labels.soft) {
      const int64_t stride = labels.row_stride * label_size(labels.type);
      row.own = static_cast<const char*>(labels.data) + i * stride;
      row.lent = static_cast<const char*>(labels.data) + j * stride;
      return;
    }
    const BinaryTarget<C> target{Smoothing<C>(loss.smoothing, loss.num_classes), LabelWeights<C>(plan.weight[i]),
                                 static_cast<C>(loss.threshold), loss.thresholded};
    own = class_of(loss, i);
    const int64_t other = class_of(loss, j);
    lent = other == own ? -1 : other;
    row.target = target(0, 0);
    own_target = target(1, lent < 0 ? 1 : 0);
    lent_target = target(0, 1);
  }

  // Calls f(begin, end) for what lies between the two classes, and g(class, target) for each of the two.
  template <class F, class G>
  void parts(int64_t num_classes, const F& f, const G& g) const {
    const int64_t first = lent >= 0 && lent < own ? lent : own, last = lent > own ? lent : own;
    if (own < 0) return f(0, num_classes);
    f(0, first);
    if (last > first) f(first + 1, last);
    f(last + 1, num_classes);
    g(own, own_target);
    if (lent >= 0) g(lent, lent_target);
  }
};

double share_of(const Loss& loss) { return loss.smoothing / static_cast<double>(loss.num_classes); }

void cross_entropy(const Loss& loss, const LabelPlan& plan, void* losses, void* statistics, const Parallel& parallel) {
  const LossRows& rows = loops(loss);
  const double share = share_of(loss);
  each_row(loss, parallel, [&](auto type, int64_t i) {
    using T = decltype(type);
    using C = Compute<T>;
    const T* z = logits_of<T>(loss, i);
    C *made = static_cast<C*>(losses) + i, *found = static_cast<C*>(statistics) + 2 * i;
    const MixedClasses<double> label = label_of(loss, plan, share, i);
    made[0] = found[0] = found[1] = 0;
    if (label.ignored) return;
    const double c = weight_of<T>(loss.class_weight, label.own), d = weight_of<T>(loss.class_weight, label.lent);
    const RowSums<double> sums =
        label.sums(rows.sums(z, loss.step, loss.class_weight, loss.smoothing != 0.0, loss.num_classes),
                   logit(z, loss, label.own), logit(z, loss, label.lent), c, d);
    made[0] = static_cast<C>(sums.loss());
    found[0] = static_cast<C>(sums.max);
    found[1] = static_cast<C>(sums.rate());
  });
}

void binary_cross_entropy(const Loss& loss, const LabelPlan& plan, void* losses, const Parallel& parallel) {
  const LossRows& rows = loops(loss);
  each_row(loss, parallel, [&](auto type, int64_t i) {
    using T = decltype(type);
    const T* z = logits_of<T>(loss, i);
    const BinaryLabel<T> label(loss, plan, i);
    double sum = 0;
    label.parts(
        loss.num_classes,
        [&](int64_t from, int64_t to) { sum += rows.binary_loss(z + from * loss.step, loss.step, label.row, from, to - from); },
        [&](int64_t k, double target) {
          sum += binary_loss(logit(z, loss, k), target, weight_of<T>(loss.class_weight, k), weight_of<T>(loss.pos_weight, k));
        });
    static_cast<Compute<T>*>(losses)[i] = static_cast<Compute<T>>(sum);
  });
}

// What the gradients of all rows are multiplied with.
double factor_of(const Loss& loss, const LossGrad& grad) {
  if (grad.scale == nullptr) return grad.factor;
  return grad.factor * (loss.type == ElementType::kFloat64 ? entry_of<double>(grad.scale, 0) : entry_of<float>(grad.scale, 0));
}

void cross_entropy_gradient(const Loss& loss, const LabelPlan& plan, const LossGrad& grad, void* out, const Parallel& parallel) {
  const LossRows& rows = loops(loss);
  const double share = share_of(loss), factor = factor_of(loss, grad);
  each_row(loss, parallel, [&](auto type, int64_t i) {
    using T = decltype(type);
    using C = Compute<T>;
    const T* z = logits_of<T>(loss, i);
    T* to = static_cast<T*>(out) + i * loss.num_classes;
    const MixedClasses<double> label = label_of(loss, plan, share, i);
    if (label.ignored) return void(std::fill(to, to + loss.num_classes, from_compute<T>(C(0))));
    const double g = entry_of<T>(grad.grad, i * grad.step) * factor;
    const double max = entry_of<T>(grad.statistics, 2 * i), rate = entry_of<T>(grad.statistics, 2 * i + 1);
    rows.gradient(to, z, loss.step, loss.class_weight, loss.num_classes, max, g * rate, g * label.flat);
    for (const int64_t k : {label.own, label.lent}) {
      if (k < 0) continue;
      const double p = rate * exp_nonpositive(logit(z, loss, k) - max);
      to[k] = from_compute<T>(static_cast<C>(g * (p - weight_of<T>(loss.class_weight, k) * label.target(k))));
    }
  });
}

void binary_gradient(const Loss& loss, const LabelPlan& plan, const LossGrad& grad, void* out, const Parallel& parallel) {
  const LossRows& rows = loops(loss);
  const double factor = factor_of(loss, grad);
  each_row(loss, parallel, [&](auto type, int64_t i) {
    using T = decltype(type);
    using C = Compute<T>;
    const T* z = logits_of<T>(loss, i);
    T* to = static_cast<T*>(out) + i * loss.num_classes;
    const BinaryLabel<T> label(loss, plan, i);
    const double g = entry_of<T>(grad.grad, i * grad.step) * factor;
    label.parts(
        loss.num_classes,
        [&](int64_t from, int64_t end) {
          rows.binary_gradient(to + from, z + from * loss.step, loss.step, label.row, from, end - from, g);
        },
        [&](int64_t k, double target) {
          const double c = weight_of<T>(loss.class_weight, k), p = weight_of<T>(loss.pos_weight, k);
          to[k] = from_compute<T>(static_cast<C>(g * fusedmix::binary_gradient(logit(z, loss, k), target, c, p)));
        });
  });
}

}  // namespace

void loss_rows(const Loss& loss, const LabelPlan& plan, void* losses, void* statistics, const Parallel& parallel) {
  if (loss.binary) return binary_cross_entropy(loss, plan, losses, parallel);
  cross_entropy(loss, plan, losses, statistics, parallel);
}

void loss_gradient(const Loss& loss, const LabelPlan& plan, const LossGrad& grad, void* out, const Parallel& parallel) {
  if (loss.binary) return binary_gradient(loss, plan, grad, out, parallel);
  cross_entropy_gradient(loss, plan, grad, out, parallel);
}

}  // namespace fusedmix::cpu
