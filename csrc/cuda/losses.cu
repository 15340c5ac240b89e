// Launches of the label losses, and the sum of a batch of them.
#include <stdexcept>

#include "losses_kernel.h"

namespace fusedmix::cuda {
namespace {

struct FinishArgs {
  const void* losses;
  const int64_t* labels;
  int64_t label_stride, ignore, batch;
  bool counted;
  double factor;
  void *out, *scale;
};

template <class C>
FUSEDMIX_KERNEL(kLossThreads) finish_kernel(FUSEDMIX_ARGS(FinishArgs, args)) {
  FUSEDMIX_SHARED(double, sums, kLossThreads);
  FUSEDMIX_SHARED(int64_t, counts, kLossThreads);
  const int32_t thread = static_cast<int32_t>(device::thread());
  double sum = 0;
  int64_t count = 0;
  for (int64_t i = thread; i < args.batch; i += kLossThreads) {
    sum += static_cast<double>(device::load(static_cast<const C*>(args.losses) + i));
    if (args.counted) count += device::load(args.labels + i * args.label_stride) != args.ignore ? 1 : 0;
  }
  sums[thread] = sum;
  counts[thread] = count;
  over_lanes(thread, kLossThreads, [&](int32_t other) {
    sums[thread] = sum = sum + sums[other];
    counts[thread] = count = count + counts[other];
  });
  if (thread != 0) return;
  const double factor = args.counted ? args.factor / static_cast<double>(count) : args.factor;
  device::store(static_cast<C*>(args.out), static_cast<C>(sum * factor));
  device::store(static_cast<C*>(args.scale), static_cast<C>(factor));
}

// Whether rows may be read, and with `out` written, 16 bytes at a time, but for their ends.
bool is_wide(const Loss& loss, const void* out) {
  const int64_t size = element_size(loss.type);
  if (loss.step != 1 || loss.soft || loss.type == ElementType::kFloat64) return false;
  if (out == nullptr) return true;
  // Their ends must be the same ones.
  const auto apart = reinterpret_cast<uintptr_t>(loss.logits) - reinterpret_cast<uintptr_t>(out);
  return apart % 16 == 0 && (loss.batch == 1 || (loss.row_stride - loss.num_classes) * size % 16 == 0);
}

int launch(LossArgs& args, bool wide, bool backwards, void* stream) {
  const int64_t size = element_size(args.loss.type), vectors = args.loss.num_classes * size / (wide ? 16 : size);
  const int32_t threads = backwards ? kThreads : kLossThreads;
  args.lanes = 1;
  while (args.lanes < threads && args.lanes * kLossAhead < vectors) args.lanes *= 2;
  const int64_t each = args.lanes * kLossAhead;
  args.parts = backwards ? std::max<int64_t>(1, (vectors + each - 1) / each) : 1;
  const int64_t rows = threads / args.lanes, blocks = launchable((args.loss.batch + rows - 1) / rows * args.parts);
  if (blocks == 0) return 0;
  switch (args.loss.type) {
    case ElementType::kFloat16: return launch_loss<Half>(args, wide, backwards, blocks, stream);
    case ElementType::kBFloat16: return launch_loss<BFloat16>(args, wide, backwards, blocks, stream);
    case ElementType::kFloat64: return launch_loss<double>(args, wide, backwards, blocks, stream);
    default: return launch_loss<float>(args, wide, backwards, blocks, stream);
  }
}

}  // namespace

int loss_rows(const Loss& loss, const LaunchPlan& plan, void* losses, void* statistics, void* stream) {
  LossArgs args{};
  args.loss = loss;
  args.plan = plan;
  args.losses = losses;
  args.statistics = statistics;
  return launch(args, is_wide(loss, nullptr), false, stream);
}

int finish_loss(const Loss& loss, const void* losses, bool counted, double factor, void* out, void* scale, void* stream) {
  const FinishArgs args{losses,     static_cast<const int64_t*>(loss.labels), loss.label_stride, loss.ignore,
                        loss.batch, counted,                                  factor,            out, scale};
  return loss.type == ElementType::kFloat64 ? device::launch(finish_kernel<double>, 1, kLossThreads, stream, args)
                                            : device::launch(finish_kernel<float>, 1, kLossThreads, stream, args);
}

int loss_gradient(const Loss& loss, const LaunchPlan& plan, const void* grad, int64_t grad_step, double factor,
                  const void* scale, const void* statistics, void* out, void* stream) {
  LossArgs args{};
  args.loss = loss;
  args.plan = plan;
  args.grad = grad;
  args.grad_step = grad_step;
  args.factor = factor;
  args.scale = scale;
  args.statistics = const_cast<void*>(statistics);
  args.out = out;
  return launch(args, is_wide(loss, out), true, stream);
}

}  // namespace fusedmix::cuda
