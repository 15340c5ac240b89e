// One call of the CPU backend by name, in one thread, for counting its instructions (benchmarks/count.py):
//
//   fusedmix_count           lists the names
//   fusedmix_count NAME      calls it twice: the first call fills what is kept, the second is `fusedmix_counted`
//
// It draws its plans with the backend's own sampler and needs no header of csrc/tests. Of two commits that are compared each has
// its own program, and the calls are told apart by their names: one that comes to do something else needs a new name.
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cpu/gather.h"
#include "cpu/losses.h"
#include "cpu/mix.h"
#include "host/sample.h"

// The function whose instructions, and those of all that it calls, are counted. It must stay a call.
extern "C" __attribute__((noinline, visibility("default"))) void fusedmix_counted(const std::function<void()>& call) {
  call();
  __asm__ volatile("" ::: "memory");
}

namespace fusedmix {
namespace {

constexpr Parallel kOneThread{nullptr, 1};
constexpr uint64_t kSeed = 7;

using Call = std::function<void()>;
std::map<std::string, std::function<Call()>> cases;  // by name: what makes the call

MethodRow row_of(Method method) {
  MethodRow row{};
  row.method = method;
  row.weight = 1.0;
  row.p = 1.0;
  row.alpha = 1.0;
  row.lam = std::nan("");
  row.lam_max = 1.0;
  row.ratio = 0.75;
  row.decay = 3.0;
  row.cutoff = 32.0;
  return row;
}

struct Plan {
  MethodRow row;
  Sampling request{};
  std::vector<int64_t> partner;
  std::vector<float> lam;
  std::vector<double> weight;
  std::vector<Record> masks;
  std::vector<uint32_t> bits;

  Plan(Method method, int64_t batch, int64_t side, int32_t pairing)
      : row(row_of(method)), partner(batch), lam(batch), weight(batch), masks(batch) {
    request.rows = &row;
    request.methods = 1;
    request.batch = batch;
    request.extent = {2, {1, side, side}};
    request.pairing = pairing;
    request.per = kPerSample;
    request.p = 1.0;
    request.seed.value = kSeed;
    request.out = {partner.data(), lam.data(), weight.data(), masks.data()};
    draw();
    if (is_stored_method(row.method)) {
      bits.resize(batch * words());
      draw_masks();
    }
  }
  Plan(const Plan&) = delete;

  int64_t words() const { return (request.extent.size[1] * request.extent.size[2] + 31) / 32; }
  void draw() { host::sample(request); }
  void draw_masks() {
    FourierMasks args{};
    args.rows = &row;
    args.methods = 1;
    args.extent = request.extent;
    args.batch = request.batch;
    args.per = args.draws = kPerSample;
    args.seed.value = kSeed;
    args.masks = masks.data();
    args.bits = bits.data();
    cpu::fourier(args, kOneThread);
  }
  LabelPlan labels() const { return {partner.data(), weight.data()}; }
  PlanView view() const {
    PlanView made{partner.data(), masks.data(), kAllFamilies, request.pairing, false, {}};
    const int64_t* size = request.extent.size;
    if (!bits.empty()) made.pixels = {bits.data(), nullptr, words(), {1, size[1], size[2]}, kPerSample, request.batch};
    return made;
  }
};

enum class Way { kInPlace, kOutOfPlace, kAdjoint };

// A (16, 3, side, side) batch of zeros, as no loop here looks at the values, and another one.
struct Batches {
  static constexpr int64_t kBatch = 16;
  ElementType type;
  Layout layout;
  std::vector<char> from, to;

  Batches(ElementType element_type, int64_t side) : type(element_type) {
    const int64_t sizes[4] = {kBatch, 3, side, side}, strides[4] = {3 * side * side, side * side, side, 1};
    layout = make_layout(4, sizes, strides, strides, 2);
    from.resize(kBatch * strides[0] * element_size(type));
    to.resize(from.size());
  }
  Images images(Way way) { return {type, from.data(), way == Way::kInPlace ? from.data() : to.data(), layout, way == Way::kAdjoint}; }
};

Call mix(Method method, int64_t side, int32_t pairing, ElementType type, Way way) {
  const auto plan = std::make_shared<Plan>(method, Batches::kBatch, side, pairing);
  const auto memory = std::make_shared<Batches>(type, side);
  return [=] { cpu::mix(memory->images(way), plan->view(), kOneThread); };
}

// Partners of the other batch.
Call mix_with_(Method method, int64_t side) {
  const auto plan = std::make_shared<Plan>(method, Batches::kBatch, side, kRandom);
  const auto memory = std::make_shared<Batches>(ElementType::kFloat32, side);
  return [=] {
    Images images = memory->images(Way::kInPlace);
    images.other = memory->to.data(), images.other_batch = images.layout.src_batch, images.others = Batches::kBatch;
    cpu::mix(images, plan->view(), kOneThread);
  };
}

// Whole partners, between a tenth and eight tenths as large.
Call paste(int64_t side, ElementType type, Resize resize) {
  const auto memory = std::make_shared<Batches>(type, side);
  std::vector<int64_t> partner;
  std::vector<int32_t> boxes, crops;
  for (int64_t i = 0; i < Batches::kBatch; ++i) {
    const auto all = static_cast<int32_t>(side), box = static_cast<int32_t>(side * (2 + i) / 20), first = static_cast<int32_t>(i % (all - box));
    partner.push_back((i + 5) % Batches::kBatch);
    boxes.insert(boxes.end(), {first, all - box - first, first + box, all - first});
    crops.insert(crops.end(), {0, 0, all, all});
  }
  return [=] { cpu::paste(memory->images(Way::kOutOfPlace), {partner.data(), boxes.data(), crops.data(), 1, 2, resize}, kOneThread); };
}

Call sum_terms(int64_t side, ElementType type, int32_t count) {
  const auto memory = std::make_shared<Batches>(type, side);
  std::vector<int64_t> partner;
  for (int64_t k = 0; k < Batches::kBatch * count; ++k) partner.push_back(7 * k % Batches::kBatch);
  const std::vector<float> weight(partner.size(), 0.25f);
  return [=] { cpu::sum_terms(memory->images(Way::kOutOfPlace), {partner.data(), weight.data(), count}, kOneThread); };
}

Call mix_labels(int64_t batch, int64_t classes) {
  const auto plan = std::make_shared<Plan>(kMixUp, batch, 8, kRoll);
  const auto labels = std::make_shared<std::vector<int64_t>>(batch);
  for (int64_t i = 0; i < batch; ++i) (*labels)[i] = 7 * i % classes;
  const auto targets = std::make_shared<std::vector<float>>(batch * classes);
  return [=] {
    const Labels given{labels->data(), kLabelInt64, false, 1, 0};
    cpu::mix_labels({given, batch, classes, 0.1, targets->data(), ElementType::kFloat32}, plan->labels(), kOneThread);
  };
}

// Logits between -4 and 4: exponentials that neither vanish nor overflow.
Call loss(bool binary, bool backward, int64_t batch, int64_t classes) {
  struct Buffers {
    std::vector<int64_t> labels;
    std::vector<float> logits, losses, statistics, grad, out;
  };
  const auto plan = std::make_shared<Plan>(kMixUp, batch, 8, kRoll);
  const auto memory = std::make_shared<Buffers>();
  for (int64_t i = 0; i < batch; ++i) memory->labels.push_back(7 * i % classes);
  for (int64_t i = 0; i < batch * classes; ++i) memory->logits.push_back(static_cast<float>(i * 37 % 1024) / 128.0f - 4.0f);
  memory->losses.resize(batch);
  memory->statistics.resize(2 * batch);
  memory->grad.assign(batch, 1.0f);
  memory->out.resize(batch * classes);
  Loss args{};
  args.binary = binary;
  args.type = ElementType::kFloat32;
  args.logits = memory->logits.data();
  args.row_stride = classes;
  args.step = 1;
  args.labels = {memory->labels.data(), kLabelInt64, false, 1, 0};
  args.batch = batch;
  args.num_classes = classes;
  args.ignore = -100;
  const auto forward = [=] { cpu::loss_rows(args, plan->labels(), memory->losses.data(), memory->statistics.data(), kOneThread); };
  if (!backward) return forward;
  forward();  // leaves the statistics
  return [=] {
    const LossGrad grad{memory->grad.data(), 0, 1.0 / static_cast<double>(batch), nullptr, memory->statistics.data()};
    cpu::loss_gradient(args, plan->labels(), grad, memory->out.data(), kOneThread);
  };
}

void list_cases() {
  const std::map<std::string, Method> methods = {
      {"MixUp", kMixUp}, {"CutMix", kCutMix}, {"HMix", kHMixReleased}, {"GMix", kGMixReleased}, {"FMix", kFMixPaper}};
  for (const auto& [name, method] : methods) {
    const Method m = method;
    for (const int64_t side : {int64_t{32}, int64_t{112}}) {
      const std::string tail = "-" + name + "-" + std::to_string(side);
      cases["mix_" + tail] = [=] { return mix(m, side, kRoll, ElementType::kFloat32, Way::kInPlace); };
      cases["sample" + tail] = [=] {
        const auto plan = std::make_shared<Plan>(m, 128, side, kRandom);
        return [=] {
          plan->draw();
          if (!plan->bits.empty()) plan->draw_masks();
        };
      };
    }
    cases["mix_flip-" + name + "-32"] = [=] { return mix(m, 32, kFlip, ElementType::kFloat32, Way::kInPlace); };
    cases["mix-" + name + "-32"] = [=] { return mix(m, 32, kRandom, ElementType::kFloat32, Way::kOutOfPlace); };
    cases["backward-" + name + "-32"] = [=] { return mix(m, 32, kRoll, ElementType::kFloat32, Way::kAdjoint); };
  }
  cases["mix_-MixUp-bfloat16-32"] = [] { return mix(kMixUp, 32, kRoll, ElementType::kBFloat16, Way::kInPlace); };
  cases["mix_-MixUp-uint8-32"] = [] { return mix(kMixUp, 32, kRoll, ElementType::kUInt8, Way::kInPlace); };
  cases["mix_with_-MixUp-32"] = [] { return mix_with_(kMixUp, 32); };
  cases["mix_with_-CutMix-32"] = [] { return mix_with_(kCutMix, 32); };
  cases["paste-nearest-112"] = [] { return paste(112, ElementType::kFloat32, Resize::kNearest); };
  cases["paste-linear-112"] = [] { return paste(112, ElementType::kFloat32, Resize::kLinear); };
  cases["paste-linear-uint8-112"] = [] { return paste(112, ElementType::kUInt8, Resize::kLinear); };
  cases["blend-4-32"] = [] { return sum_terms(32, ElementType::kFloat32, 4); };
  cases["mix_labels-10"] = [] { return mix_labels(128, 10); };
  cases["mix_labels-1000"] = [] { return mix_labels(128, 1000); };
  for (const int64_t classes : {int64_t{10}, int64_t{1000}}) {
    const std::string tail = "-" + std::to_string(classes);
    cases["cross_entropy" + tail] = [=] { return loss(false, false, 128, classes); };
    cases["cross_entropy_backward" + tail] = [=] { return loss(false, true, 128, classes); };
    cases["binary_cross_entropy" + tail] = [=] { return loss(true, false, 128, classes); };
    cases["binary_cross_entropy_backward" + tail] = [=] { return loss(true, true, 128, classes); };
  }
}

}  // namespace
}  // namespace fusedmix

int main(int count, char** words) {
  fusedmix::list_cases();
  if (count < 2) {
    for (const auto& entry : fusedmix::cases) std::printf("%s\n", entry.first.c_str());
    return 0;
  }
  const auto found = fusedmix::cases.find(words[1]);
  if (found == fusedmix::cases.end()) {
    std::fprintf(stderr, "there is no %s; without arguments all names are listed\n", words[1]);
    return 1;
  }
  const fusedmix::Call call = found->second();
  call();
  fusedmix_counted(call);
  return 0;
}
