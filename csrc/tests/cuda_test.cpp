// The CUDA kernels (csrc/cuda) against the CPU backend (csrc/cpu), both free of torch, on a GPU or on the shim:
//
//   fusedmix_cuda_test [--large] [--raw]
//
// Small batches, so that it is quick under compute-sanitizer too; --large adds batches of real size. --raw leaves outputs
// uninitialised, for initcheck to find what is read before it is written; without it they are filled, so that stale
// memory does not pass for a result. Exit status: 0 all is well, 1 something is wrong, 77 there is no GPU.
#include <algorithm>
#include <cmath>
#include <complex>
#include <map>
#include <memory>

#include "../cpu/finish.h"
#include "../cpu/grid_cut.h"
#include "../cuda/grid_cut.h"
#include "../host/sample.h"
#include "../include/fusedmix/fourier.h"
#include "device_memory.h"
#include "gather_cases.h"
#include "grids.h"

namespace fusedmix::test {
namespace {

bool raw = false;
std::map<std::string, int64_t> paths;  // how often each way through the kernels was taken

void compare(ElementType type, const std::vector<char>& got, const std::vector<char>& want, bool exact, bool exact_mask,
             const char* what) {
  const int64_t size = element_size(type);
  for (int64_t k = 0; k < static_cast<int64_t>(want.size()) / size; ++k) {
    if (std::memcmp(&got[k * size], &want[k * size], size) == 0) {
      pass();
      continue;
    }
    const double a = read_element(type, got.data(), k), b = read_element(type, want.data(), k);
    if (exact ? same(a, b) : close(type, a, b, exact_mask)) {
      pass();
    } else {
      fail(format("%s, element %lld: %.17g instead of %.17g", what, static_cast<long long>(k), a, b));
    }
  }
}

// Memory for an output: as it is on the host, or uninitialised.
std::unique_ptr<DeviceBuffer> output(const std::vector<char>& filled, bool gaps = false) {
  return raw && !gaps ? std::make_unique<DeviceBuffer>(filled.size()) : std::make_unique<DeviceBuffer>(filled);
}

// ---- plans ----

// A plan as the host program is given it, on the device or on the host.
struct GivenPlan {
  std::vector<std::unique_ptr<DeviceBuffer>> kept;
  cuda::GivenPlan given{};

  GivenPlan(const HostPlan& plan, bool on_host) {
    const auto part = [&](const auto& values) {
      using T = typename std::decay_t<decltype(values)>::value_type;
      if (on_host) return cuda::Part<T>{values.data(), true};
      kept.push_back(std::make_unique<DeviceBuffer>(values, false));
      return cuda::Part<T>{kept.back()->template as<T>(), false};
    };
    given = {static_cast<int64_t>(plan.partner.size()), plan.families, plan.pairing, plan.shared, plan.shared, part(plan.partner),
             part(plan.masks), part(plan.weight), plan.pixels, on_host, {nullptr, false}, 0};
    if (!plan.bits.empty()) given.pixels.bits = part(plan.bits).data;
    if (!plan.levels.empty()) given.pixels.levels = part(plan.levels).data;
  }
};

// And how that places it.
struct PlacedPlan : GivenPlan {
  Memory memory{1};
  cuda::LaunchPlan launch{};

  PlacedPlan(const HostPlan& plan, bool on_host) : GivenPlan(plan, on_host), launch(cuda::place(memory, given)) {
    if (is_stored(launch.view)) ++paths["stored masks"];
    ++paths[launch.travels ? "plan inside the arguments" : (on_host ? "plan in one upload" : "plan on the device")];
  }
};

bool has_gaussian(const HostPlan& plan) {
  return std::any_of(plan.masks.begin(), plan.masks.end(), [](const Record& mask) { return is_gaussian(mask); });
}

// ---- targets ----

// Labels, and the targets that they should give.
struct LabelCase {
  Targets targets{};
  std::vector<char> want;
  std::unique_ptr<DeviceBuffer> labels, out;

  // Rows of soft labels lie apart.
  LabelCase(Random& random, LabelType type, bool soft, int64_t batch, int64_t classes, double smoothing, const HostPlan& plan) {
    const bool floating = type >= kLabelFloat;
    const ElementType out_type = floating ? kTypes[type - kLabelFloat] : ElementType::kFloat32;
    const int64_t columns = soft ? classes : 1, stride = columns + (soft ? 3 : 0);
    const int64_t bytes = label_size(type);
    std::vector<char> memory(batch * stride * bytes, 0);
    std::vector<int64_t> as_classes(batch);
    Batch rows(out_type, {batch, columns}, Order::kContiguous);  // the same as the CPU backend takes them
    if (floating) rows.fill(random, false);
    for (int64_t i = 0; i < batch; ++i) {
      as_classes[i] = random.below(std::min<int64_t>(classes, 127));
      for (int64_t k = 0; k < columns; ++k) {
        char* to = &memory[(i * stride + k) * bytes];
        const int64_t number = soft ? random.below(3) : as_classes[i];
        const auto as_float = static_cast<float>(number);
        char* row = rows.memory.data() + (i * columns + k) * element_size(out_type);
        std::memcpy(to, floating ? static_cast<const void*>(row) : &number, bytes);  // the low bytes
        if (!floating) std::memcpy(row, &as_float, sizeof(as_float));
      }
    }
    Batch made(out_type, {batch, classes}, Order::kContiguous);
    const std::vector<double> weight(plan.shared ? std::vector<double>(batch, plan.weight[0]) : plan.weight);
    const Labels given = soft ? Labels{rows.data(), label_type(out_type), true, columns, 1} : Labels{as_classes.data(), kLabelInt64, false, 1, 0};
    cpu::mix_labels({given, batch, classes, smoothing, made.data(), out_type}, {plan.partner.data(), weight.data()}, kOneThread);
    want = made.memory;
    labels = std::make_unique<DeviceBuffer>(memory, false);
    out = output(std::vector<char>(want.size(), '\x55'));
    targets = {{labels->as<void>(), type, soft, stride, soft ? 1 : 0}, batch, classes, smoothing, out->as<void>(), out_type};
  }
  void verify() const { compare(targets.out_type, out->values<char>(), want, true, true, "targets"); }
};

void test_targets() {
  Random random(1);
  const int64_t size[3] = {1, 1, 1};
  for (int32_t type = kLabelInt64; type <= kLabelDouble; ++type) {
    for (const bool soft : {false, true}) {
      if (!soft && type >= kLabelFloat) continue;
      for (const int64_t classes : {int64_t{1}, int64_t{10}, int64_t{151}}) {
        for (const double smoothing : {0.0, 0.1}) {
          context = format("%s targets, label type %d, %lld classes, smoothing %g", soft ? "soft" : "dense", type,
                           static_cast<long long>(classes), smoothing);
          const int64_t batch = 1 + random.below(20);
          const auto pairing = static_cast<int32_t>(random.below(3));
          const HostPlan plan = make_plan(random, batch, size, pairing, Masks::kConstant, random.below(2) == 0);
          PlacedPlan placed(plan, random.below(2) == 0);
          LabelCase labels(random, static_cast<LabelType>(type), soft, batch, classes, smoothing, plan);
          check(cuda::write_targets(placed.launch, labels.targets, nullptr));
          labels.verify();
        }
      }
    }
  }
}

// ---- images ----

enum class Way { kInPlace, kOutOfPlace, kAdjoint };

struct Case {
  ElementType type;
  std::vector<int64_t> shape;
  Order order;
  int32_t pairing;
  Masks masks;
  bool shared;
  Way way;
  int multiprocessors;
};

void count_paths(const Images& images, const cuda::Shape& shape) {
  const int bytes = shape.width * element_size(images.type);
  ++paths[bytes == 16 ? "16 bytes at a time" : (shape.width == 1 ? "an element at a time" : "4 bytes at a time")];
  constexpr const char* names[] = {"nothing", "each", "pairs", "roll", "tile", "slices"};
  ++paths[names[static_cast<int>(shape.way)]];
  if (images.adjoint) ++paths["adjoint"];
}

void test_mix(Random& random, const Case& c) {
  const bool adjoint = c.way == Way::kAdjoint, in_place = c.way == Way::kInPlace;
  const int64_t batch = c.shape[0];
  context = format("%s %s of B=%lld, %s, %s, %s%s, %d multiprocessors", name_of(c.type),
                   adjoint ? "adjoint" : (in_place ? "in place" : "out of place"), static_cast<long long>(batch),
                   name_of(c.order), name_of_pairing(c.pairing), name_of(c.masks), c.shared ? " shared" : "",
                   c.multiprocessors);
  Batch x(c.type, c.shape, c.order);
  x.fill(random, !adjoint && c.masks != Masks::kGaussian && c.masks != Masks::kAll);
  Batch want = in_place ? x : Batch(c.type, c.shape, random.below(2) ? c.order : Order::kContiguous);
  int64_t size[3];
  sides_of(x, size);
  const HostPlan plan = make_plan(random, batch, size, c.pairing, c.masks, c.shared);
  const int spatial = c.masks == Masks::kConstant && random.below(2) ? 0 : static_cast<int>(x.pixel_dims());
  const Layout layout = layout_of(in_place ? want : x, want, spatial);

  const DeviceBuffer src(x.memory, in_place);
  std::unique_ptr<DeviceBuffer> out;
  const bool gaps = want.memory.size() != static_cast<size_t>(want.elements() * element_size(c.type));
  if (!in_place) out = output(want.memory, gaps);
  const DeviceBuffer& dst = in_place ? src : *out;
  const int64_t size_of = element_size(c.type);
  const Images images{c.type, src.as<char>() + x.first * size_of, dst.as<char>() + want.first * size_of, layout, adjoint};

  cpu::mix({c.type, in_place ? want.data() : x.data(), want.data(), layout, adjoint}, plan.view(), kOneThread);
  PlacedPlan placed(plan, random.below(2) == 0);
  placed.memory.chip.multiprocessors = c.multiprocessors;
  if (random.below(3) == 0) placed.memory.chip.shared_bytes = random.below(2) ? 1024 : 64;
  std::unique_ptr<LabelCase> labels;  // in the same launch
  Targets targets{};
  if (!adjoint && random.below(2)) {
    labels = std::make_unique<LabelCase>(random, static_cast<LabelType>(random.below(8)), false, batch, 10, 0.1, plan);
    targets = labels->targets;
  }
  const cuda::Pass pass(placed.memory, &images, c.pairing, plan.families);
  count_paths(images, pass.shape);
  pass.mix(placed.launch, targets);
  const bool exact_mask = !has_gaussian(plan);
  compare(c.type, dst.values<char>(), want.memory, exact_mask && !adjoint, exact_mask, "images");
  if (labels != nullptr) labels->verify();
}

constexpr Way kWays[] = {Way::kInPlace, Way::kOutOfPlace, Way::kAdjoint};

void test_mixes() {
  Random random(2);
  // Rows of whole 16-byte vectors, of whole 4-byte ones, and odd ones; sequences, volumes; a pair and a single sample.
  const std::vector<int64_t> shapes[] = {{23, 3, 6, 16}, {9, 3, 5, 12}, {17, 3, 7, 9},    {6, 3, 33},
                                         {4, 2, 3, 5, 8}, {2, 1, 4, 8},  {1, 3, 4, 4}};
  for (const ElementType type : kTypes) {
    for (const auto& shape : shapes) {
      for (const Order order : kOrders) {
        for (const int32_t pairing : {kRoll, kFlip, kRandom}) {
          for (const Way way : kWays) {
            if (way == Way::kAdjoint && is_integer(type)) continue;
            const Masks masks = kMasks[random.below(7)];
            test_mix(random, {type, shape, order, pairing, masks, random.below(3) == 0, way, random.below(2) ? 1 : 132});
          }
        }
      }
    }
  }
}

// More samples than a block has threads, in one unit.
void test_long_batches() {
  Random random(3);
  for (const int32_t pairing : {kRoll, kFlip, kRandom}) {
    for (const Way way : kWays) {
      const ElementType type = way == Way::kOutOfPlace ? ElementType::kBFloat16 : ElementType::kFloat32;
      test_mix(random, {type, {300, 1, 32, 33}, Order::kContiguous, pairing, Masks::kAll, false, way, 1});
    }
  }
}

void test_large() {
  Random random(4);
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{64, 3, 224, 224}, {33, 3, 97, 101}, {512, 3, 32, 32}}) {
    for (const ElementType type : kTypes) {
      for (const Order order : {Order::kContiguous, Order::kChannelsLast, Order::kSliced}) {
        for (const int32_t pairing : {kRoll, kFlip, kRandom}) {
          const Way way = kWays[is_integer(type) ? random.below(2) : random.below(3)];
          const Masks masks = kMasks[random.below(7)];
          test_mix(random, {type, shape, order, pairing, masks, random.below(2) == 0, way, multiprocessors()});
        }
      }
    }
  }
}

// ---- what is made of several samples ----

// A batch that kernels make of `x`, where it lies on the device and how, against the one that the CPU has made.
struct Gathered {
  Batch want;
  DeviceBuffer src;
  std::unique_ptr<DeviceBuffer> out;
  Images images{};

  Gathered(const Batch& x, Batch made, int spatial) : want(std::move(made)), src(x.memory, false) {
    const int64_t size = element_size(x.type);
    out = output(want.memory, want.memory.size() != static_cast<size_t>(want.elements() * size));
    images = {x.type, src.as<char>() + x.first * size, out->as<char>() + want.first * size, layout_of(x, want, spatial), false};
  }
  void verify(const char* what) const { compare(want.type, out->values<char>(), want.memory, true, true, what); }
};

// Tensors of a plan, on the device or on the host.
struct Parts {
  bool on_host;
  std::vector<std::unique_ptr<DeviceBuffer>> kept;

  template <class T>
  cuda::Part<T> operator()(const std::vector<T>& values) {
    if (on_host) return {values.data(), true};
    kept.push_back(std::make_unique<DeviceBuffer>(values, false));
    return {kept.back()->as<T>(), false};
  }
};

void test_pasted(Random& random, ElementType type, const std::vector<int64_t>& shape, Order order, int32_t ndim, Resize resize) {
  context = format("%s paste of B=%lld, %s, %d sides, resize %d", name_of(type), static_cast<long long>(shape[0]), name_of(order), ndim,
                   static_cast<int>(resize));
  Batch x(type, shape, order);
  x.fill(random, true);
  Gathered made(x, Batch(type, shape, random.below(2) ? order : Order::kContiguous), ndim);
  const HostPatches patches(random, shape, static_cast<int32_t>(1 + random.below(3)), ndim, resize);
  cpu::paste({type, x.data(), made.want.data(), made.images.layout, false}, patches.view, kOneThread);
  Memory memory(1);
  Parts part{random.below(2) == 0, {}};
  cuda::paste(memory, made.images,
              {shape[0], patches.view.count, ndim, resize, part(patches.partner), part(patches.boxes), part(patches.crops)});
  ++paths["pasted"];
  made.verify("pasted images");
}

void test_summed(Random& random, ElementType type, const std::vector<int64_t>& shape, Order order) {
  context = format("%s sums of B=%lld, %s", name_of(type), static_cast<long long>(shape[0]), name_of(order));
  Batch x(type, shape, order);
  x.fill(random, true);
  Gathered made(x, Batch(type, shape, random.below(2) ? order : Order::kContiguous), 0);
  const auto count = static_cast<int32_t>(1 + random.below(8));
  std::vector<int64_t> partner;
  std::vector<float> weight;
  for (int64_t k = 0; k < shape[0] * count; ++k) {
    partner.push_back(random.below(shape[0]));
    weight.push_back(random.below(3) == 0 ? 0.0f : static_cast<float>(random.uniform(-1.0, 2.0)));
  }
  cpu::sum_terms({type, x.data(), made.want.data(), made.images.layout, false}, {partner.data(), weight.data(), count}, kOneThread);
  Memory memory(1);
  Parts part{random.below(2) == 0, {}};
  cuda::blend_terms(memory, made.images, {shape[0], count, part(partner), part(weight)});
  ++paths["summed"];
  made.verify("sums");
}

void test_with_other(Random& random, ElementType type, const std::vector<int64_t>& shape, Order order) {
  const bool in_place = random.below(2) == 0;
  const Masks masks = kMasks[random.below(7)];
  // Where the batch is the innermost dim, its size is a stride of samples.
  std::vector<int64_t> of_other = shape;
  if (order != Order::kBatchInside) of_other[0] = 1 + random.below(2 * shape[0]);
  context = format("%s of B=%lld %s with %lld others, %s, %s", name_of(type), static_cast<long long>(shape[0]), in_place ? "in place" : "out of place",
                   static_cast<long long>(of_other[0]), name_of(order), name_of(masks));
  Batch x(type, shape, order), other(type, of_other, order);
  const bool special = masks != Masks::kGaussian && masks != Masks::kAll;
  x.fill(random, special);
  other.fill(random, special);
  int64_t size[3];
  sides_of(x, size);
  HostPlan plan = make_plan(random, shape[0], size, kRandom, masks, random.below(3) == 0);
  for (int64_t& partner : plan.partner) partner = random.below(of_other[0]);
  const auto spatial = static_cast<int>(x.pixel_dims());
  Batch want = in_place ? x : Batch(type, shape, random.below(2) ? order : Order::kContiguous);
  const Layout layout = layout_of(x, want, spatial);
  const int64_t step = element_size(type), batch_step = other.strides[0];

  const DeviceBuffer src(x.memory, in_place), lenders(other.memory, false);
  std::unique_ptr<DeviceBuffer> out;
  if (!in_place) out = output(want.memory, want.memory.size() != static_cast<size_t>(want.elements() * step));
  const DeviceBuffer& dst = in_place ? src : *out;
  const Images images{type, src.as<char>() + x.first * step, dst.as<char>() + want.first * step, layout, false,
                      lenders.as<char>() + other.first * step, batch_step, of_other[0]};
  cpu::mix({type, in_place ? want.data() : x.data(), want.data(), layout, false, other.data(), batch_step, of_other[0]}, plan.view(), kOneThread);
  const GivenPlan its(plan, random.below(2) == 0);
  Memory memory(132);
  cuda::apply(memory, images, its.given, false);
  ++paths["with another batch"];
  const bool exact = !has_gaussian(plan);
  compare(type, dst.values<char>(), want.memory, exact, exact, "images");
}

void test_gathered() {
  Random random(8);
  const std::vector<int64_t> shapes[] = {{5, 3, 6, 16}, {4, 3, 5, 12}, {3, 3, 7, 9}, {6, 3, 33}, {3, 2, 3, 5, 8}, {1, 3, 4, 4}, {2, 1, 33000}};
  for (const ElementType type : kTypes) {
    for (const auto& shape : shapes) {
      if (shape[2] > INT16_MAX) {
        test_pasted(random, type, shape, Order::kContiguous, 1, static_cast<Resize>(random.below(3)));
        continue;
      }
      for (const Order order : kOrders) {
        const auto ndim = static_cast<int32_t>(1 + random.below(std::min<int64_t>(3, static_cast<int64_t>(shape.size()) - 1)));
        test_pasted(random, type, shape, order, ndim, static_cast<Resize>(random.below(3)));
        test_summed(random, type, shape, order);
        test_with_other(random, type, shape, order);
      }
    }
  }
}

// ---- batches that are finished ----

struct FinishCase {
  ElementType type, made;
  std::vector<int64_t> shape;
  Order order;
  bool channels_last, mixes, random;
  int32_t pairing;
  Masks masks;
};

// By the kernels that draw and those that finish, against the CPU's.
void test_finish_of(Random& random, const FinishCase& c) {
  context = format("%s %s, %lldx%lldx%lldx%lld, finished as %s%s%s%s by %s, %s", name_of(c.type), name_of(c.order),
                   static_cast<long long>(c.shape[0]), static_cast<long long>(c.shape[1]), static_cast<long long>(c.shape[2]),
                   static_cast<long long>(c.shape[3]), name_of(c.made), c.channels_last ? ", channels last" : "",
                   c.random ? ", flipped and erased" : "", c.mixes ? "" : ", alone", name_of(c.masks), name_of_pairing(c.pairing));
  Batch x(c.type, c.shape, c.order), want(c.made, c.shape, c.channels_last ? Order::kChannelsLast : Order::kContiguous);
  x.fill(random, false);
  int64_t size[3];
  sides_of(x, size);
  const int64_t batch = c.shape[0], channels = c.shape[1];
  const HostPlan plan = make_plan(random, batch, size, c.pairing, c.masks, random.below(3) == 0);
  std::vector<float> affine(3 * channels);
  // compare() allows masks their last bits where samples are at most 8 apart.
  for (float& number : affine) number = static_cast<float>(random.uniform(0.01, 2.0) / (c.type == ElementType::kUInt8 ? 64.0 : 1.0));

  FinishDraws draws{{0.5, 0.7, 0.1, 0.6, 0.3, 2.4, 1.0, 3.0}, {nullptr, random.next()}, batch, size[1], size[2], nullptr};
  std::vector<int32_t> records(batch * finish_words(3));
  FinishDraws on_host = draws;
  on_host.records = records.data();
  cpu::draw_finish(on_host, kOneThread);
  const DeviceBuffer drawn(records.size() * sizeof(int32_t));
  draws.records = drawn.as<int32_t>();
  const std::vector<uint64_t> seed{draws.seed.value};
  const DeviceBuffer seed_there(seed, false);
  if (random.below(2)) draws.seed = {seed_there.as<int64_t>(), 0};
  check(cuda::draw_finish(draws, nullptr));
  expect(drawn.values<int32_t>() == records, "flips and holes");

  Finishing f{c.type, c.made, x.data(), {}, want.data(), c.channels_last, batch, channels, size[1], size[2], affine.data(),
              c.random ? records.data() : nullptr, c.random ? finish_words(3) : 0, static_cast<Fill>(random.below(3)),
              c.masks == Masks::kConstant};
  std::copy_n(x.strides.begin(), 4, f.step);
  const PlanView view = plan.view();
  cpu::finish(f, c.mixes ? &view : nullptr, kOneThread);

  const DeviceBuffer src(x.memory, false), affine_there(affine, false);
  const auto out = output(std::vector<char>(want.memory.size(), '\x55'));
  f.src = src.as<char>() + x.first * element_size(c.type);
  f.dst = out->as<void>();
  f.affine = affine_there.as<float>();
  const bool travels = random.below(2) == 0;
  const GivenPlan its(plan, travels);
  Memory memory(1);
  cuda::GivenPlan given{};
  given.batch = batch;
  if (c.mixes) given = its.given;
  if (c.random) given.draws = {travels ? records.data() : drawn.as<int32_t>(), travels}, given.draw_words = f.draw_words;
  const cuda::FinishShape shape = cuda::finish(memory, f, given, c.mixes);
  ++paths[shape.colours ? "three channels at a time" : (shape.width > 1 ? "a channel at a time" : "a pixel at a time")];
  const bool exact = !(c.mixes && has_gaussian(plan)) && !(c.random && f.fill != kFillNumber);
  compare(c.made, out->values<char>(), want.memory, exact, false, "finished images");
}

void test_finish() {
  Random random(7);
  const std::vector<int64_t> shapes[] = {{5, 3, 4, 32}, {3, 3, 5, 12}, {4, 1, 3, 48}, {3, 5, 3, 16}, {2, 3, 3, 7}, {50, 3, 2, 16}, {1, 2, 1, 1}};
  constexpr ElementType kMade[] = {ElementType::kFloat32, ElementType::kFloat16, ElementType::kBFloat16};
  for (const ElementType type : {ElementType::kUInt8, ElementType::kFloat32, ElementType::kFloat16, ElementType::kBFloat16}) {
    for (const auto& shape : shapes) {
      for (const Order order : kOrders) {
        for (const bool channels_last : {false, true}) {
          const auto pairing = static_cast<int32_t>(random.below(3));
          const ElementType made = kMade[random.below(3)];
          test_finish_of(random, {type, made, shape, order, channels_last, random.below(4) != 0, random.below(2) == 0, pairing,
                                  kMasks[random.below(7)]});
        }
      }
    }
  }
}

void test_masks() {
  Random random(5);
  for (const Masks masks : kMasks) {
    context = format("masks: %s", name_of(masks));
    const int64_t size[3] = {2, 5, 19}, n = 7, pixels = n * 2 * 5 * 19;
    const HostPlan plan = make_plan(random, n, size, kRandom, masks, false);
    const PlacedPlan placed(plan, false);
    std::vector<char> want(pixels * sizeof(float), '\x55');
    const auto out = output(want);
    cpu::masks(plan.view(), n, size, reinterpret_cast<float*>(want.data()), kOneThread);
    check(cuda::masks(placed.launch.view, n, size, out->as<float>(), nullptr));
    compare(ElementType::kFloat32, out->values<char>(), want, !has_gaussian(plan), true, "mask");
  }
}

// The CPU's labels to the bit, of grids that need all threads of a block and of such that leave most of them idle.
void test_grids() {
  Random random(37);
  const int32_t sides[][2] = {{1, 1}, {1, 16}, {5, 3}, {4, 4}, {8, 8}, {16, 16}};
  for (const auto& side : sides) {
    for (const int64_t most : {1, 30, INT32_MAX - 1}) {
      context = format("labels of %dx%d blocks, costs up to %lld", side[0], side[1], static_cast<long long>(most));
      const Grids grids(random, side[0] < 8 ? 3 : 1, side[0], side[1], most);
      std::vector<int32_t> want(grids.batch * grids.blocks());
      cpu::label_grid(grids.args(want.data()), kOneThread);
      const DeviceBuffer unary(grids.unary, false), right(grids.right, false), down(grids.down, false);
      const DeviceBuffer labels(want.size() * sizeof(int32_t));
      check(cuda::label_grid({unary.as<int32_t>(), right.as<int32_t>(), down.as<int32_t>(), labels.as<int32_t>(), grids.batch,
                              grids.height, grids.width},
                             nullptr));
      expect(labels.values<int32_t>() == want, "other labels than the CPU's");
    }
  }
}

MethodRow row_of(int method, double weight, double alpha) {
  const double lam = method == kSamplePairing ? 0.5 : std::nan("");
  return {static_cast<double>(method), weight, 1.0, alpha, lam, 0.0, 1.0, 0.75, 3.0, 0.0, 32.0, 0.0, 0.0, 0.0};
}

// ---- Fourier masks ----

// A grey image in float64, and by how much one in float32 may be off.
struct Grey {
  std::vector<double> values;
  double error = 0.0;

  Grey(const Spectrum& s, uint64_t seed, uint64_t index) {
    using Complex = std::complex<double>;
    std::vector<Complex> c;
    for (int64_t z = s.low[0]; z < s.low[0] + s.count[0]; ++z) {
      for (int64_t y = s.low[1]; y < s.low[1] + s.count[1]; ++y) {
        for (int64_t x = 0; x < s.count[2]; ++x) {
          const Deviation of = deviation(s, z, y < 0 ? -y : y, x);
          const Pair n = noise(seed, index, s.ndim, z, y, x);
          c.emplace_back(of.a * static_cast<double>(n.a), of.b * static_cast<double>(n.b));
          error += std::fabs(c.back().real()) + std::fabs(c.back().imag());
        }
      }
    }
    error *= grey_error(s);
    // The first axis becomes pixels and goes to the end, three times.
    for (int axis = 0; axis < 3; ++axis) {
      const auto side = static_cast<size_t>(s.side[axis]), count = static_cast<size_t>(s.count[axis]), rest = c.size() / count;
      std::vector<Complex> turned(rest * side);
      for (size_t k = 0; k < count; ++k) {
        for (size_t x = 0; x < side; ++x) {
          const int64_t turns = (s.low[axis] + static_cast<int64_t>(k)) * static_cast<int64_t>(x) % s.side[axis];
          const Complex wave = std::polar(1.0, 6.283185307179586 * static_cast<double>(turns) / static_cast<double>(side));
          for (size_t r = 0; r < rest; ++r) turned[r * side + x] += c[k * rest + r] * wave;
        }
      }
      c = std::move(turned);
    }
    for (const Complex& value : c) values.push_back(value.real());
  }
};

// Whether a mask is one that a backend may make of an image: each level within those of the ranks that its pixel can have.
bool may_be_made_of(const Grey& grey, const std::vector<uint16_t>& levels, int64_t number, int64_t soft) {
  std::vector<double> sorted = grey.values;
  std::sort(sorted.begin(), sorted.end());
  const auto at_least = [&](double value) { return sorted.end() - std::lower_bound(sorted.begin(), sorted.end(), value); };
  for (size_t q = 0; q < levels.size(); ++q) {
    const int64_t first = at_least(std::nextafter(grey.values[q] + 2.0 * grey.error, INFINITY));
    const int64_t last = at_least(grey.values[q] - 2.0 * grey.error) - 1;
    if (levels[q] > level_at(first, number, soft) || levels[q] < level_at(last, number, soft)) return false;
  }
  return true;
}

// The masks of a plan by the CPU backend and by the kernels, which write to `out`: as many ones, or levels, of each mask,
// and in places where the exact image allows them.
void test_fourier_of(const std::vector<MethodRow>& rows, int ndim, const int64_t* size, const HostPlan& plan, int32_t per,
                     int32_t draws, uint64_t seed, bool soft, int64_t most_scratch, const DeviceBuffer& out) {
  const auto batch = static_cast<int64_t>(plan.masks.size());
  const int64_t pixels = size[0] * size[1] * size[2], n = mask_rows(per, batch), words = (pixels + 31) / 32;
  std::vector<uint32_t> bits(n * words);
  std::vector<uint16_t> levels(n * pixels);
  const Extent extent{ndim, {size[0], size[1], size[2]}};
  FourierMasks request{rows.data(), static_cast<int32_t>(rows.size()), extent, batch, per, draws, {nullptr, seed},
                       plan.masks.data(), soft ? nullptr : bits.data(), soft ? levels.data() : nullptr};
  cpu::fourier(request, kOneThread);
  const DeviceBuffer masks(plan.masks, false), device_seed(&seed, 8, false);
  const bool on_device = seed % 2 == 0;
  if (on_device) request.seed = {device_seed.as<int64_t>(), 0};
  request.masks = masks.as<Record>();
  request.bits = soft ? nullptr : out.as<uint32_t>();
  request.levels = soft ? out.as<uint16_t>() : nullptr;
  Memory memory(1);
  cuda::fourier(memory, request, most_scratch);
  ++paths[soft ? "soft Fourier masks" : "Fourier masks"];
  const std::vector<uint32_t> got_bits = soft ? std::vector<uint32_t>() : out.values<uint32_t>();
  const std::vector<uint16_t> got_levels = soft ? out.values<uint16_t>() : std::vector<uint16_t>();
  for (int64_t i = 0; i < n; ++i) {
    std::vector<uint16_t> want, got;
    for (int64_t q = 0; q < pixels; ++q) {
      const auto level = [&](const std::vector<uint32_t>& from) {
        return static_cast<uint16_t>((from[i * words + q / 32] >> (q % 32) & 1u) != 0 ? kFullLevel : 0);
      };
      want.push_back(soft ? levels[i * pixels + q] : level(bits));
      got.push_back(soft ? got_levels[i * pixels + q] : level(got_bits));
    }
    if (is_stored(plan.masks[i])) {
      const auto mask = bit_cast<Fourier>(plan.masks[i]);
      const Spectrum s = spectrum_of(mask.kind == kFourierReleased, ndim, size, mask.decay, mask.cutoff);
      const Grey grey(s, seed, static_cast<uint64_t>(draw_index(draws, i, batch)));
      const int64_t number = mask.number, edge = soft ? mask.soft : 0;
      expect(may_be_made_of(grey, want, number, edge), "a Fourier mask of the CPU is off by more than rounding");
      expect(may_be_made_of(grey, got, number, edge), "a Fourier mask is off by more than rounding");
    }
    if (!soft && pixels % 32 != 0) expect(got_bits[(i + 1) * words - 1] >> (pixels % 32) == 0, "bits of no pixel");
    std::sort(want.begin(), want.end());
    std::sort(got.begin(), got.end());
    expect(want == got, "not as many ones, or levels");
  }
}

void test_fourier(bool large) {
  Random random(7);
  std::vector<std::vector<int64_t>> sizes{{1, 1, 1}, {1, 1, 300}, {1, 5, 7}, {1, 40, 33}, {4, 6, 9}, {1, 1, 3000}, {1, 9, 2700}};
  if (large) sizes.insert(sizes.end(), {{1, 224, 224}, {1, 512, 300}, {16, 48, 40}});
  for (const std::vector<int64_t>& size : sizes) {
    for (const bool soft : {false, true}) {
      for (const int32_t per : {kPerBatch, kPerPair, kPerSample}) {
        const int64_t batch = large ? 70 : 5, pixels = size[0] * size[1] * size[2], n = mask_rows(per, batch);
        const int ndim = size[0] > 1 ? 3 : (size[1] > 1 ? 2 : 1);
        context = format("Fourier masks%s of %lldx%lldx%lld, per %d", soft ? ", soft," : "", static_cast<long long>(size[0]),
                         static_cast<long long>(size[1]), static_cast<long long>(size[2]), per);
        std::vector<MethodRow> rows{row_of(kFMixPaper, 0.5, 1.0), row_of(kFMixReleased, 0.25, 1.0), row_of(kFMixPaper, 0.25, 1.0)};
        rows[2].decay = 2.0;
        for (MethodRow& row : rows) row.soft = soft ? 0.2 : 0.0;
        HostPlan plan;
        for (int64_t i = 0; i < batch; ++i) {
          const MethodRow& row = rows[random.below(3)];
          const int64_t number = random.below(pixels + 1), edge = std::min(number, pixels - number);
          const auto most = static_cast<int64_t>(0.2 * static_cast<double>(pixels));
          const auto half = static_cast<int32_t>(soft ? std::min(edge, most) : 0);
          const Fourier mask{{}, random.below(5) == 0 ? kBox : Fourier::kind_of(row.method), static_cast<int32_t>(number), half, {},
                             static_cast<float>(row.decay), 32.0f, {}};
          plan.masks.push_back(bit_cast<Record>(mask));
        }
        const DeviceBuffer out(soft ? n * pixels * 2 : n * ((pixels + 31) / 32) * 4);
        const int64_t most_scratch = random.below(2) ? int64_t{24} << 20 : 20000;
        test_fourier_of(rows, ndim, size.data(), plan, per, per, random.next(), soft, most_scratch, out);
      }
    }
  }
}

// ---- sampling ----

struct Drawing {
  std::vector<MethodRow> rows;
  int64_t batch;
  int ndim;
  int32_t pairing, per;
  double p;
  bool given;  // λ
  bool on_device;  // the seed
};

// What was drawn by the kernel, and by the CPU.
void expect_alike(const HostPlan& got, const std::vector<float>& got_lam, const HostPlan& want,
                  const std::vector<float>& want_lam) {
  expect(got.partner == want.partner, "partners differ");
  for (int64_t i = 0; i < static_cast<int64_t>(want.masks.size()); ++i) {
    const auto near = [](double a, double b, double relative) { return std::fabs(a - b) <= relative * std::fabs(b); };
    expect(near(got_lam[i], want_lam[i], 0x1p-23), "lam differs");
    // What a library's functions are in, of a GPU another's than the CPU's, is one float. All else is equal.
    Record mask = got.masks[i];
    expect(near(bit_cast<float>(mask.words[6]), bit_cast<float>(want.masks[i].words[6]), 1e-6), "values differ");
    mask.words[6] = want.masks[i].words[6];
    expect(std::memcmp(&mask, &want.masks[i], sizeof(mask)) == 0, "masks differ");
    expect(std::fabs(got.weight[i] - want.weight[i]) <= 1e-6, "weights differ");
  }
}

// Mixes the images of a plan that a kernel has drawn, and whose masks it makes where they are stored.
void test_mix_by(const cuda::Pass& pass, const Sampling& args, HostPlan got, Random& random, Batch& x, const DeviceBuffer& memory,
                 const Layout& layout) {
  const std::vector<MethodRow> rows(args.rows, args.rows + args.methods);
  cuda::LaunchPlan plan{};
  PlanView& view = plan.view;
  view = {args.out.partner, args.out.masks, kAllFamilies, args.pairing, false, {}};
  const bool stored = std::any_of(rows.begin(), rows.end(), [](const MethodRow& row) { return is_stored_method(row.method); });
  const int64_t* size = args.extent.size;
  const int64_t words = (size[0] * size[1] * size[2] + 31) / 32;
  const int32_t of = args.lam != nullptr ? static_cast<int32_t>(kPerSample) : args.per;
  const DeviceBuffer bits(stored ? mask_rows(of, args.batch) * words * 4 : 0);
  if (stored) {
    test_fourier_of(rows, args.extent.ndim, size, got, of, args.per, random.next(), false, int64_t{24} << 20, bits);
    got.pixels = view.pixels = {nullptr, nullptr, words, {size[0], size[1], size[2]}, of, args.batch};
    got.bits = bits.values<uint32_t>();
    view.pixels.bits = bits.as<uint32_t>();
  }
  cpu::mix({x.type, x.data(), x.data(), layout, false}, got.view(), kOneThread);
  pass.mix(plan, Targets{});
  compare(x.type, memory.values<char>(), x.memory, !has_gaussian(got), true, "images mixed by it");
}

// The plan from the kernel, checked against the CPU's; then, with images, those mixed by it.
void test_sample(Random& random, const Drawing& d, ElementType type, bool with_images) {
  context = format("plan of %zu methods, B=%lld, %d-D, %s, per %d, p=%g%s", d.rows.size(), static_cast<long long>(d.batch),
                   d.ndim, name_of_pairing(d.pairing), d.per, d.p, d.given ? ", lam given" : "");
  const int64_t n = d.batch;
  const std::vector<int64_t> sides[] = {{48}, {12, 20}, {4, 6, 8}};
  std::vector<int64_t> shape{n, 3};
  shape.insert(shape.end(), sides[d.ndim - 1].begin(), sides[d.ndim - 1].end());
  Batch x(type, shape, Order::kContiguous);
  x.fill(random, false);
  std::vector<float> lam(n);
  for (float& value : lam) value = static_cast<float>(random.uniform());
  std::vector<int64_t> classes(n);
  for (int64_t& label : classes) label = random.below(4);
  Sampling args{};
  args.rows = d.rows.data();
  args.methods = static_cast<int32_t>(d.rows.size());
  args.batch = n;
  args.extent.ndim = d.ndim;
  sides_of(x, args.extent.size);
  args.pairing = d.pairing;
  args.per = d.per;
  args.p = d.p;
  args.lam = d.given ? lam.data() : nullptr;
  args.lam_each = d.given;
  args.classes = classes.data();
  const uint64_t seed = args.seed.value = random.next();
  HostPlan want;
  want.partner.resize(n);
  want.masks.resize(n);
  want.weight.resize(n);
  std::vector<float> want_lam(n);
  args.out = {want.partner.data(), want_lam.data(), want.weight.data(), want.masks.data()};
  host::sample(args);

  const DeviceBuffer device_lam(lam, false), device_classes(classes, false), device_seed(&seed, 8, false);
  const DeviceBuffer partner(8 * n), out_lam(4 * n), weight(8 * n), masks(sizeof(Record) * n);
  args.lam = d.given ? device_lam.as<float>() : nullptr;
  args.classes = device_classes.as<int64_t>();
  if (d.on_device) args.seed = {device_seed.as<int64_t>(), 0};
  args.out = {partner.as<int64_t>(), out_lam.as<float>(), weight.as<double>(), masks.as<Record>()};

  const DeviceBuffer images_memory(x.memory);
  const Images images{type, images_memory.as<void>(), images_memory.as<void>(), layout_of(x, x, d.ndim), false};
  Memory memory(132);
  const cuda::Pass pass(memory, with_images ? &images : nullptr, d.pairing, kAllFamilies);
  pass.sample(args);

  HostPlan got;
  got.partner = partner.values<int64_t>();
  got.masks = masks.values<Record>();
  got.weight = weight.values<double>();
  const std::vector<float> got_lam = out_lam.values<float>();
  got.pairing = d.pairing;
  expect_alike(got, got_lam, want, want_lam);
  if (with_images) test_mix_by(pass, args, got, random, x, images_memory, images.layout);
}

void test_samples(bool large) {
  Random random(6);
  std::vector<MethodRow> all, many;
  for (const Method method : kMethods) all.push_back(row_of(method, 1.0 / 9.0, 1.0));
  for (int i = 0; i < cuda::kInlineRows + 4; ++i) many.push_back(row_of(kMethods[i % 7], 1.0 / (cuda::kInlineRows + 4), 0.3));
  for (const int32_t pairing : {kRoll, kFlip, kRandom, kCrossClass, kSameClass}) {
    for (const int32_t per : {kPerBatch, kPerPair, kPerSample}) {
      for (int ndim = 1; ndim <= 3; ++ndim) {
        const int64_t batch = 1 + random.below(large ? 700 : 40);
        const bool given = random.below(4) == 0, on_device = random.below(2) == 0, with_images = random.below(2) == 0;
        test_sample(random, {all, batch, ndim, pairing, per, 0.8, given, on_device}, ElementType::kFloat32, with_images);
      }
    }
    test_sample(random, {many, 150, 2, pairing, kPerSample, 1.0, false, true}, ElementType::kUInt8, true);
  }
  for (const MethodRow& row : all) {
    const auto pairing = static_cast<int32_t>(random.below(5));
    test_sample(random, {{row}, 33, 2, pairing, kPerSample, 1.0, false, false}, ElementType::kBFloat16, true);
  }
}

// A way that no case takes is not tested, whatever the checks say.
void expect_all_paths() {
  context = "the ways taken";
  for (const char* path :
       {"16 bytes at a time", "4 bytes at a time", "an element at a time", "nothing", "each", "pairs", "roll", "tile", "slices", "adjoint",
        "pasted", "summed", "with another batch", "three channels at a time", "a channel at a time", "a pixel at a time",
        "plan inside the arguments", "plan in one upload", "plan on the device", "stored masks", "Fourier masks", "soft Fourier masks"}) {
    std::printf("  %-30s %lld\n", path, static_cast<long long>(paths[path]));
    if (paths[path] == 0) fail(std::string("no case took: ") + path);
  }
}

}  // namespace
}  // namespace fusedmix::test

int main(int count, char** words) {
  using namespace fusedmix::test;
  bool large = false;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (word != "--large" && word != "--raw") {
      std::printf("usage: fusedmix_cuda_test [--large] [--raw]\n");
      return 2;
    }
    (word == "--large" ? large : raw) = true;
  }
  const std::string reason = no_device();
  if (!reason.empty()) {
    std::printf("fusedmix_cuda_test: no GPU: %s\n", reason.c_str());
    return 77;
  }
  try {
    test_targets();
    test_mixes();
    test_long_batches();
    test_gathered();
    test_finish();
    test_masks();
    test_grids();
    test_fourier(large);
    test_samples(large);
    if (large) test_large();
    expect_all_paths();
  } catch (const std::exception& error) {
    fail(error.what());
  }
  return summary(("fusedmix_cuda_test on " + device_name()).c_str());
}
