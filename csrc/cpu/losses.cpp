// Losses row by row; the loops within a row are loss_rows.h's.
#include "losses.h"

#include "kernels.h"

namespace fusedmix::cpu {
namespace {

// Rows that are handed to a thread at a time: enough to be worth it.
int64_t grain(const LossArgs& args) { return 1 + 16384 / (args.num_classes + 1); }

const LossRows& loops(const LossArgs& args) { return kernels().losses[static_cast<int>(args.type)]; }

MixedClasses<double> label_of(const LossArgs& args, int64_t i) {
  const int64_t y = args.classes[i], z = args.classes[args.partner[i]];
  const double share = args.smoothing / static_cast<double>(args.num_classes);
  return {y, z, args.weight[i], args.num_classes, args.ignore, args.smoothing, share};
}

// Of class k, where there are weights and a class.
template <class T>
double weight_of(const void* weights, int64_t k) {
  return weights == nullptr || k < 0 ? 1.0 : static_cast<double>(static_cast<const Compute<T>*>(weights)[k]);
}

template <class T>
double logit(const T* z, const LossArgs& args, int64_t k) {
  return k < 0 ? 0.0 : static_cast<double>(to_compute(z[k * args.step]));
}

// Calls f(T{}) with the element type of the logits.
template <class F>
void of_type(const LossArgs& args, const F& f) {
  switch (args.type) {
    case ElementType::kFloat16: return f(Half{});
    case ElementType::kBFloat16: return f(BFloat16{});
    case ElementType::kFloat64: return f(double{});
    default: return f(float{});
  }
}

template <class T>
double entry_of(const void* x, int64_t i) {
  return static_cast<double>(static_cast<const Compute<T>*>(x)[i]);
}

// What a row of binary cross entropy is: with classes, the target of all but two of them, and theirs.
template <class T>
struct BinaryLabel {
  BinaryRow row;
  int64_t own = -1, lent = -1;  // -1: soft labels, or the same as the own one
  double own_target = 0, lent_target = 0;

  BinaryLabel(const LossArgs& args, int64_t i) {
    using C = Compute<T>;
    row = {0, nullptr, nullptr, args.soft_type, args.soft_step, args.num_classes, args.smoothing, args.weight[i],
           args.threshold, args.thresholded, args.class_weight, args.pos_weight};
    const int64_t j = args.partner[i];
    if (args.soft != nullptr) {
      const int64_t stride = args.soft_stride * of_label(args.soft_type, [](auto as) { return static_cast<int64_t>(sizeof(as)); });
      row.own = static_cast<const char*>(args.soft) + i * stride;
      row.lent = static_cast<const char*>(args.soft) + j * stride;
      return;
    }
    const BinaryTarget<C> target{Smoothing<C>(args.smoothing, args.num_classes), LabelWeights<C>(args.weight[i]),
                                 static_cast<C>(args.threshold), args.thresholded};
    own = args.classes[i];
    lent = args.classes[j] == own ? -1 : args.classes[j];
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

}  // namespace

void cross_entropy(const LossArgs& args, void* losses, void* statistics, const Parallel& parallel) {
  const LossRows& rows = loops(args);
  of_type(args, [&](auto type) {
    using T = decltype(type);
    using C = Compute<T>;
    parallel(args.batch, grain(args), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* z = static_cast<const T*>(args.logits) + i * args.row_stride;
        C *loss = static_cast<C*>(losses) + i, *found = static_cast<C*>(statistics) + 2 * i;
        const MixedClasses<double> label = label_of(args, i);
        loss[0] = found[0] = found[1] = 0;
        if (label.ignored) continue;
        const double c = weight_of<T>(args.class_weight, label.own), d = weight_of<T>(args.class_weight, label.lent);
        const RowSums<double> sums =
            label.sums(rows.sums(z, args.step, args.class_weight, args.smoothing != 0.0, args.num_classes),
                       logit(z, args, label.own), logit(z, args, label.lent), c, d);
        loss[0] = static_cast<C>(sums.loss());
        found[0] = static_cast<C>(sums.max);
        found[1] = static_cast<C>(sums.rate());
      }
    });
  });
}

void cross_entropy_backward(const LossArgs& args, const void* statistics, const void* grad, int64_t grad_step, double scale,
                            void* out, const Parallel& parallel) {
  const LossRows& rows = loops(args);
  of_type(args, [&](auto type) {
    using T = decltype(type);
    using C = Compute<T>;
    parallel(args.batch, grain(args), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* z = static_cast<const T*>(args.logits) + i * args.row_stride;
        T* to = static_cast<T*>(out) + i * args.num_classes;
        const MixedClasses<double> label = label_of(args, i);
        if (label.ignored) {
          std::fill(to, to + args.num_classes, from_compute<T>(C(0)));
          continue;
        }
        const double g = entry_of<T>(grad, i * grad_step) * scale;
        const double max = entry_of<T>(statistics, 2 * i), rate = entry_of<T>(statistics, 2 * i + 1);
        rows.gradient(to, z, args.step, args.class_weight, args.num_classes, max, g * rate, g * label.flat);
        for (const int64_t k : {label.own, label.lent}) {
          if (k < 0) continue;
          const double p = rate * exp_nonpositive(logit(z, args, k) - max);
          to[k] = from_compute<T>(static_cast<C>(g * (p - weight_of<T>(args.class_weight, k) * label.target(k))));
        }
      }
    });
  });
}

void binary_cross_entropy(const LossArgs& args, void* losses, const Parallel& parallel) {
  const LossRows& rows = loops(args);
  of_type(args, [&](auto type) {
    using T = decltype(type);
    using C = Compute<T>;
    parallel(args.batch, grain(args), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* z = static_cast<const T*>(args.logits) + i * args.row_stride;
        const BinaryLabel<T> label(args, i);
        double loss = 0;
        label.parts(
            args.num_classes,
            [&](int64_t from, int64_t to) { loss += rows.binary_loss(z + from * args.step, args.step, label.row, from, to - from); },
            [&](int64_t k, double target) {
              loss += binary_loss(logit(z, args, k), target, weight_of<T>(args.class_weight, k), weight_of<T>(args.pos_weight, k));
            });
        static_cast<C*>(losses)[i] = static_cast<C>(loss);
      }
    });
  });
}

void binary_cross_entropy_backward(const LossArgs& args, const void* grad, int64_t grad_step, double scale, void* out,
                                   const Parallel& parallel) {
  const LossRows& rows = loops(args);
  of_type(args, [&](auto type) {
    using T = decltype(type);
    using C = Compute<T>;
    parallel(args.batch, grain(args), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* z = static_cast<const T*>(args.logits) + i * args.row_stride;
        T* out_row = static_cast<T*>(out) + i * args.num_classes;
        const BinaryLabel<T> label(args, i);
        const double g = entry_of<T>(grad, i * grad_step) * scale;
        label.parts(
            args.num_classes,
            [&](int64_t from, int64_t to) {
              rows.binary_gradient(out_row + from, z + from * args.step, args.step, label.row, from, to - from, g);
            },
            [&](int64_t k, double target) {
              const double c = weight_of<T>(args.class_weight, k), p = weight_of<T>(args.pos_weight, k);
              out_row[k] = from_compute<T>(static_cast<C>(g * binary_gradient(logit(z, args, k), target, c, p)));
            });
      }
    });
  });
}

}  // namespace fusedmix::cpu
