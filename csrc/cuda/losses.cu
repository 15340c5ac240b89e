// Launches of the label losses, and the sum of a batch of them.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "losses_kernel.h"

namespace fusedmix::cuda {
namespace {

// Threads of a multiprocessor that a launch aims at, and the most parts of a row forwards: one thread puts them together.
constexpr int64_t kWanted = 1024, kMostParts = 32;
// So that numbers of classes, and some more, fit 31 bits.
constexpr int64_t kMostClasses = int64_t{1} << 30;

struct FinishArgs {
  LossOut out;
  const void* partial;  // null: the rows are there
  int64_t parts;
  bool binary;
  const int64_t* labels;
  int64_t label_stride, ignore, batch;
  bool counted;
  double factor;
};

// The loss of a row, of what its parts have left.
template <class C>
FUSEDMIX_DEVICE C combine(const FinishArgs& args, int64_t i) {
  const C* partial = static_cast<const C*>(args.partial);
  if (args.binary) {
    C sum = 0;
    FUSEDMIX_NO_UNROLL
    for (int64_t part = i * args.parts; part < (i + 1) * args.parts; ++part) sum += device::load(partial + part);
    device::store(static_cast<C*>(args.out.rows) + i, sum);
    return sum;
  }
  RowSums<C> sums;
  FUSEDMIX_NO_UNROLL
  for (int64_t part = i * args.parts; part < (i + 1) * args.parts; ++part) sums.add(load_sums(partial + 4 * part));
  return store_row(args.out, i, sums);
}

template <class C>
FUSEDMIX_KERNEL(kLossThreads) finish_kernel(FUSEDMIX_ARGS(FinishArgs, args)) {
  FUSEDMIX_SHARED(double, sums, kLossThreads);
  FUSEDMIX_SHARED(int64_t, counts, kLossThreads);
  const int32_t thread = static_cast<int32_t>(device::thread());
  double sum = 0;
  int64_t count = 0;
  FUSEDMIX_NO_UNROLL
  for (int64_t i = thread; i < args.batch; i += kLossThreads) {
    sum += args.partial == nullptr ? device::load(static_cast<const C*>(args.out.rows) + i) : combine<C>(args, i);
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
  device::store(static_cast<C*>(args.out.sum), static_cast<C>(sum * factor));
  device::store(static_cast<C*>(args.out.scale), static_cast<C>(factor));
}

int64_t divide_up(int64_t n, int64_t d) { return (n + d - 1) / d; }

// The shape of a launch whose blocks have so many threads. A part of a row may have `longest` vectors.
LossShape shape_of(const Loss& loss, bool wide, int64_t threads, int64_t longest, int64_t multiprocessors) {
  if (loss.num_classes > kMostClasses) {
    throw std::invalid_argument("fusedmix: logits must have at most 2^30 classes on a GPU, but have " + std::to_string(loss.num_classes) + ".");
  }
  const int64_t size = element_size(loss.type);
  const int64_t vectors = std::max<int64_t>(1, wide ? loss.num_classes * size / 16 : loss.num_classes);
  LossShape shape{wide, wide ? kEndsLog : 0, 1, 0, 0};
  const auto lanes = [&] { return int64_t{1} << shape.log_lanes; };
  const auto blocks = [&] { return divide_up(loss.batch, threads / lanes()) * shape.parts; };
  while (lanes() < threads && (lanes() * kLossAhead < vectors || (lanes() < vectors && blocks() < multiprocessors))) ++shape.log_lanes;
  if (lanes() == threads && loss.batch > 0) {
    const int64_t wanted = std::min(multiprocessors * (kWanted / threads) / loss.batch, kMostParts);
    shape.parts = std::max({std::min(wanted, vectors / threads), divide_up(vectors, longest), int64_t{1}});
  }
  shape.length = static_cast<int32_t>(divide_up(vectors, shape.parts));
  shape.blocks = launchable(blocks());
  return shape;
}

// Whether logits may be read 16 bytes at a time.
bool is_wide(const Loss& loss) { return loss.step == 1 && !loss.labels.soft && loss.type != ElementType::kFloat64; }

// Whether, in the logits and in the gradient, the same elements of each row lie before the first multiple of 16 bytes.
bool are_aligned_alike(const Loss& loss, const void* out) {
  const auto apart = reinterpret_cast<uintptr_t>(loss.logits) - reinterpret_cast<uintptr_t>(out);
  return apart % 16 == 0 && (loss.batch == 1 || (loss.row_stride - loss.num_classes) * element_size(loss.type) % 16 == 0);
}

int launch(LossArgs& args, bool backwards, void* stream) {
  if (args.shape.blocks == 0) return 0;
  args.parts = divisor(args.shape.parts);
  args.smooth = args.loss.smoothing != 0.0;
  args.share = args.loss.smoothing / static_cast<double>(args.loss.num_classes);
  switch (args.loss.type) {
    case ElementType::kFloat16: return launch_loss<Half>(args, backwards, stream);
    case ElementType::kBFloat16: return launch_loss<BFloat16>(args, backwards, stream);
    case ElementType::kFloat64: return launch_loss<double>(args, backwards, stream);
    default: return launch_loss<float>(args, backwards, stream);
  }
}

}  // namespace

LossShape forward_shape(const Loss& loss, int multiprocessors) {
  return shape_of(loss, is_wide(loss), kLossThreads, kMostClasses, multiprocessors);
}

LossShape backward_shape(const Loss& loss, const void* out, int multiprocessors) {
  return shape_of(loss, is_wide(loss) && are_aligned_alike(loss, out), kThreads, kThreads * kLossAhead, multiprocessors);
}

int loss_rows(const Loss& loss, const LaunchPlan& plan, const LossShape& shape, const LossOut& out, void* partial, void* stream) {
  LossArgs args{};
  args.loss = loss;
  args.plan = plan;
  args.shape = shape;
  args.out = out;
  args.partial = partial;
  return launch(args, false, stream);
}

int finish_loss(const Loss& loss, const LossShape& shape, const void* partial, bool counted, double factor, const LossOut& out,
                void* stream) {
  const FinishArgs args{out,         partial,    shape.parts, loss.binary, static_cast<const int64_t*>(loss.labels.data),
                        loss.labels.row_stride,
                        loss.ignore, loss.batch, counted,     factor};
  return loss.type == ElementType::kFloat64 ? device::launch(finish_kernel<double>, 1, kLossThreads, stream, args)
                                            : device::launch(finish_kernel<float>, 1, kLossThreads, stream, args);
}

int loss_gradient(const Loss& loss, const LaunchPlan& plan, const LossShape& shape, const LossGrad& grad, void* out, void* stream) {
  LossArgs args{};
  args.loss = loss;
  args.plan = plan;
  args.shape = shape;
  args.grad = grad;
  args.gradient = out;
  return launch(args, true, stream);
}

}  // namespace fusedmix::cuda
