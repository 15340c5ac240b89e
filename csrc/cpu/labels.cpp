#include "../include/fusedmix/labels.h"

#include "mix.h"

namespace fusedmix::cpu {
namespace {

template <class T>
void soft(const LabelArgs& args, const Parallel& parallel) {
  const Smoothing<T> smooth(args.smoothing, args.num_classes);
  const T* labels = static_cast<const T*>(args.soft);
  parallel(args.batch, 1 + 16384 / (args.num_classes + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const LabelWeights<T> mixed(args.weight[i]);
      const T *y = labels + i * args.soft_stride, *z = labels + args.partner[i] * args.soft_stride;
      T* out = static_cast<T*>(args.targets) + i * args.num_classes;
      for (int64_t k = 0; k < args.num_classes; ++k) {
        out[k] = mixed(smooth(y[k * args.soft_step]), smooth(z[k * args.soft_step]));
      }
    }
  });
}

void classes(const LabelArgs& args, const Parallel& parallel) {
  const Smoothing<float> smooth(args.smoothing, args.num_classes);
  const float on = smooth(1.0f), off = smooth(0.0f);
  parallel(args.batch, 1 + 65536 / args.num_classes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const LabelWeights<float> mixed(args.weight[i]);
      const int64_t y = args.classes[i], z = args.classes[args.partner[i]];
      float* out = static_cast<float*>(args.targets) + i * args.num_classes;
      std::fill(out, out + args.num_classes, mixed(off, off));
      out[z] = mixed(off, on);
      out[y] = mixed(on, y == z ? on : off);
    }
  });
}

}  // namespace

void mix_labels(const LabelArgs& args, const Parallel& parallel) {
  if (args.classes != nullptr) return classes(args, parallel);
  switch (args.type) {
    case ElementType::kFloat16: return soft<Half>(args, parallel);
    case ElementType::kBFloat16: return soft<BFloat16>(args, parallel);
    case ElementType::kFloat64: return soft<double>(args, parallel);
    default: return soft<float>(args, parallel);
  }
}

}  // namespace fusedmix::cpu
