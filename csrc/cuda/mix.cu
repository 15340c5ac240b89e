// Launches that mix, write targets and show masks.
#include <algorithm>
#if defined(__CUDACC__)
#include <map>
#include <mutex>
#include <utility>
#endif
#include <stdexcept>

#include "mix_kernel.h"

#if defined(__CUDACC__)
namespace fusedmix::device {

int prepare(const void* kernel, Prepared& out) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, Prepared> kernels;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return static_cast<int>(error);
  const std::lock_guard<std::mutex> lock(mutex);
  Prepared& its = kernels[{kernel, device}];
  if (!its.done) {
    Limits most{};
    cudaFuncAttributes has{};
    int driver = 0;
    auto error = static_cast<cudaError_t>(limits(most));
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&has, kernel);
    if (error == cudaSuccess) error = cudaDriverGetVersion(&driver);
    if (error == cudaSuccess) {
      const int left = most.shared_bytes - static_cast<int>(has.sharedSizeBytes);
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, left);
    }
    if (error != cudaSuccess) return taken(error);
    // Code for older devices lacks the wait on newer ones too. Drivers before 12.3 cannot capture such launches.
    its = {true, has.ptxVersion >= 90 && driver >= 12030};
  }
  out = its;
  return 0;
}

}  // namespace fusedmix::device
#endif

namespace fusedmix::cuda {
namespace {

// A part of all samples, mixed aside, back to where it belongs.
struct BackArgs {
  const char* packed;
  char* dst;
  Loops loops;
  Divisor tiles;
  uint32_t first_column, columns;
  int32_t vector_bytes;
};

FUSEDMIX_KERNEL(kThreads) back_kernel(FUSEDMIX_ARGS(BackArgs, args)) {
  const uint32_t i = divide(device::block(), args.tiles), tile = device::block() - i * args.tiles.number;
  const uint32_t at = tile * kThreads + device::thread();
  if (at >= args.columns) return;
  const Place<1> place = place_of<1>(args.loops, args.first_column + at);
  const char* from = args.packed + (static_cast<int64_t>(i) * args.columns + at) * args.vector_bytes;
  char* to = args.dst + i * args.loops.dst_batch + place.dst;
  switch (args.vector_bytes) {
    case 16: return store_vector<uint8_t, 16>(to, load_vector<uint8_t, 16>(from));
    case 8: return store_vector<uint8_t, 8>(to, load_vector<uint8_t, 8>(from));
    case 4: return store_vector<uint8_t, 4>(to, load_vector<uint8_t, 4>(from));
    case 2: return store_vector<uint8_t, 2>(to, load_vector<uint8_t, 2>(from));
    default: return store_vector<uint8_t, 1>(to, load_vector<uint8_t, 1>(from));
  }
}

struct TargetArgs {
  Targets targets;
  LaunchPlan plan;
};

FUSEDMIX_KERNEL(kThreads) targets_kernel(FUSEDMIX_ARGS(TargetArgs, args)) {
  switch (args.targets.out_type) {
    case ElementType::kFloat16: return write_any<Half>(args.targets, args.plan);
    case ElementType::kBFloat16: return write_any<BFloat16>(args.targets, args.plan);
    case ElementType::kFloat64: return write_any<double>(args.targets, args.plan);
    default: return write_any<float>(args.targets, args.plan);
  }
}

struct InvertArgs {
  int64_t batch;
  int32_t* inverse;
  LaunchPlan plan;
};

// One block. Where partners are no permutation, which only the host could refuse, some samples are their own inverse.
FUSEDMIX_WIDE_KERNEL(kTileThreads, 1) invert_kernel(FUSEDMIX_ARGS(InvertArgs, args)) {
  const PlanView plan = view_of(args.plan);
  for (int64_t i = device::thread(); i < args.batch; i += kTileThreads) device::store(args.inverse + i, static_cast<int32_t>(i));
  device::sync();
  for (int64_t i = device::thread(); i < args.batch; i += kTileThreads) {
    device::store(args.inverse + partner_of(plan, i, args.batch), static_cast<int32_t>(i));
  }
}

struct MaskArgs {
  PlanView plan;
  int64_t n, size[3];
  float* out;
};

FUSEDMIX_KERNEL(kThreads) mask_kernel(FUSEDMIX_ARGS(MaskArgs, args)) {
  const int64_t pixels = args.size[0] * args.size[1] * args.size[2];
  const int64_t at = static_cast<int64_t>(device::block()) * kThreads + device::thread();
  if (at >= args.n * pixels) return;
  const int64_t i = at / pixels, pixel = at % pixels;
  const int64_t x = pixel % args.size[2], y = pixel / args.size[2] % args.size[1], z = pixel / args.size[2] / args.size[1];
  const float value =
      weight_at(args.plan, static_cast<uint32_t>(i), {static_cast<int32_t>(z), static_cast<int32_t>(y), static_cast<int32_t>(x)});
  device::store(args.out + at, value);
}

uint32_t mix_blocks(int64_t blocks) { return static_cast<uint32_t>(launchable(blocks)); }

int launch(const Images& images, const Shape& shape, const MixArgs& args, Way way, int threads, bool after_sampler, void* stream) {
  const int64_t blocks = launchable(int64_t{args.mix_blocks} + divide_up(args.targets.entries, threads));
  const Launch l{args, way, images.adjoint, blocks, way == Way::kTile ? shape.shared_bytes : 0, after_sampler, stream};
  switch (images.type) {
    case ElementType::kFloat32: return launch_mix<float>(l, shape.width);
    case ElementType::kFloat16: return launch_mix<Half>(l, shape.width);
    case ElementType::kBFloat16: return launch_mix<BFloat16>(l, shape.width);
    case ElementType::kFloat64: return launch_mix<double>(l, shape.width);
    case ElementType::kUInt8: return launch_mix<uint8_t>(l, shape.width);
    default: return launch_mix<uint16_t>(l, shape.width);
  }
}

int launch_each(const Images& images, const Shape& shape, MixArgs args, bool after_sampler, void* stream) {
  const int64_t tiles = divide_up(args.columns, int64_t{1} << shape.log_column);
  const int64_t groups = divide_up(images.layout.batch, int64_t{kEachSamples} << (kEachLog - shape.log_column));
  args.by_tile = shape.by_tile;
  args.inner = divisor(args.by_tile ? groups : tiles);
  args.mix_blocks = mix_blocks(tiles * groups);
  return launch(images, shape, args, Way::kEach, kEachThreads, after_sampler, stream);
}

}  // namespace

int limits(device::Limits& out) { return device::limits(out); }

bool beside_images(const Targets& targets) { return targets.labels.data == nullptr || are_classes(targets); }

int64_t scratch_bytes(const Images& images, const Shape& shape) {
  if (shape.way != Way::kSlices) return 0;
  return images.layout.batch * shape.slice * shape.width * element_size(images.type);
}

int mix(const Images& images, const LaunchPlan& plan, const Shape& shape, const int32_t* inverse, void* scratch, const Targets& targets,
        bool after_sampler, void* stream) {
  if (images.others > 0) return mix_with(images, plan, shape, stream);
  const int64_t batch = images.layout.batch, vector_bytes = int64_t{shape.width} * element_size(images.type);
  MixArgs args{};
  args.src = static_cast<const char*>(images.src);
  args.dst = static_cast<char*>(images.dst);
  args.loops = loops_of(images.layout, images.type, shape.width, shape.columns);
  args.batch = static_cast<uint32_t>(batch);
  args.inverse = inverse;
  args.columns = args.loops.columns;
  args.log_column = shape.log_column;
  args.targets = class_targets(targets);
  args.plan = plan;
  switch (shape.way) {
    case Way::kNone: return 0;
    case Way::kEach: return launch_each(images, shape, args, after_sampler, stream);
    case Way::kPairs: {
      const int64_t tiles = divide_up(args.columns, kPairThreads);
      args.inner = divisor(tiles);
      args.mix_blocks = mix_blocks(tiles * ((images.src == images.dst ? batch : batch + 1) / 2));  // in place nobody is his own partner
      return launch(images, shape, args, Way::kPairs, kPairThreads, after_sampler, stream);
    }
    case Way::kRoll:
    case Way::kTile:
      args.mix_blocks = mix_blocks(divide_up(args.columns, int64_t{1} << shape.log_column));
      return launch(images, shape, args, shape.way, shape.way == Way::kRoll ? kRollThreads : kTileThreads, after_sampler, stream);
    case Way::kSlices: break;
  }
  // All of a slice is read before any of it is written: launches of a stream follow each other.
  const Loops loops = args.loops;
  args.dst = static_cast<char*>(scratch);
  args.packed = true;
  for (int64_t first = 0; first < shape.columns; first += shape.slice) {
    args.first_column = static_cast<uint32_t>(first);
    args.columns = static_cast<uint32_t>(std::min(shape.slice, shape.columns - first));
    args.loops.dst_batch = args.columns * vector_bytes;
    if (const int error = launch_each(images, shape, args, after_sampler && first == 0, stream); error != 0) return error;
    const int64_t tiles = divide_up(args.columns, kThreads);
    const BackArgs back{args.dst, static_cast<char*>(images.dst), loops, divisor(tiles), args.first_column, args.columns,
                        static_cast<int32_t>(vector_bytes)};
    if (const int error = device::launch(back_kernel, launchable(tiles * batch), kThreads, stream, back); error != 0) return error;
    args.targets = {};  // once
  }
  return 0;
}

int write_targets(const LaunchPlan& plan, const Targets& targets, void* stream) {
  const int64_t blocks = launchable(target_blocks(targets));
  return blocks == 0 ? 0 : device::launch(targets_kernel, blocks, kThreads, stream, TargetArgs{targets, plan});
}

int invert(const LaunchPlan& plan, int64_t batch, int32_t* inverse, void* stream) {
  return device::launch(invert_kernel, 1, kTileThreads, stream, InvertArgs{batch, inverse, plan});
}

int masks(const PlanView& plan, int64_t n, const int64_t* size, float* out, void* stream) {
  const MaskArgs args{plan, n, {size[0], size[1], size[2]}, out};
  const int64_t blocks = launchable((n * size[0] * size[1] * size[2] + kThreads - 1) / kThreads);
  return blocks == 0 ? 0 : device::launch(mask_kernel, blocks, kThreads, stream, args);
}

}  // namespace fusedmix::cuda
