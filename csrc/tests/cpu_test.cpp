// The CPU backend (csrc/cpu) against naive loops: mixing, adjoint, masks, targets, losses, and what every sample of a plan obeys.
#include <algorithm>

#include "../cpu/grid_cut.h"
#include "../cpu/kernels.h"
#include "../cpu/mix.h"
#include "../host/sample.h"
#include "../include/fusedmix/fourier.h"
#include "finish_cases.h"
#include "gather_cases.h"
#include "grids.h"
#include "pixel_cases.h"

namespace fusedmix::test {
namespace {

// ---- mixing ----

// The last two with partners of another batch.
enum class Way { kInPlace, kOutOfPlace, kAdjoint, kOtherInPlace, kOtherOutOfPlace };
constexpr Way kWays[] = {Way::kInPlace, Way::kOutOfPlace, Way::kAdjoint, Way::kOtherInPlace, Way::kOtherOutOfPlace};
const char* name_of_way(Way way) {
  constexpr const char* names[] = {"in place", "out of place", "adjoint", "in place by another batch", "out of place by another batch"};
  return names[static_cast<int>(way)];
}

void test_mix(Random& random, ElementType type, const std::vector<int64_t>& shape, Order order, int32_t pairing, Masks masks,
              bool shared, Way way, const Parallel& parallel) {
  const bool adjoint = way == Way::kAdjoint, in_place = way == Way::kInPlace || way == Way::kOtherInPlace;
  const bool lent = way == Way::kOtherInPlace || way == Way::kOtherOutOfPlace;
  const bool special = masks != Masks::kGaussian && masks != Masks::kAll && !adjoint;
  context = format("%s %s of B=%lld, %s, %s, %s%s, %d threads", name_of(type), name_of_way(way), static_cast<long long>(shape[0]),
                   name_of(order), name_of_pairing(pairing), name_of(masks), shared ? " shared" : "", parallel.threads);
  Batch x(type, shape, order);
  x.fill(random, special);
  Batch out = in_place ? x : Batch(type, shape, random.below(2) ? order : Order::kContiguous);
  const std::vector<char> gaps = out.memory;
  int64_t size[3];
  sides_of(x, size);
  HostPlan plan = make_plan(random, shape[0], size, pairing, masks, shared);
  std::vector<int64_t> others = shape;
  if (order != Order::kBatchInside) others[0] = 1 + random.below(2 * shape[0]);  // there a sample's strides depend on it
  Batch other(type, lent ? others : shape, order);
  lent ? other.fill(random, special) : void(other = x);
  if (lent) std::generate(plan.partner.begin(), plan.partner.end(), [&] { return random.below(other.sizes[0]); });
  const PlanView view = plan.view();
  const int spatial = masks == Masks::kConstant && random.below(2) ? 0 : static_cast<int>(x.pixel_dims());
  const Layout layout = layout_of(in_place ? out : x, out, spatial);
  Images images{type, in_place ? out.data() : x.data(), out.data(), layout, adjoint};
  if (lent) images.other = other.data(), images.other_batch = other.strides[0], images.others = other.sizes[0];
  cpu::mix(images, view, parallel);

  std::vector<int64_t> from(other.sizes[0]);  // whose partner a sample is
  for (int64_t i = 0; i < shape[0]; ++i) from[plan.partner[i]] = i;
  std::vector<bool> touched(out.memory.size(), false);
  const int64_t bytes = element_size(type);
  for (int64_t n = 0; n < x.elements(); ++n) {
    int64_t index[8];
    const int64_t here = x.at(n, index), there = out.at(n);
    const int64_t i = index[0], j = adjoint ? from[i] : plan.partner[i];
    int64_t pixel[3] = {0, 0, 0};
    for (int64_t d = 0; d < x.pixel_dims(); ++d) pixel[3 - x.pixel_dims() + d] = index[2 + d];
    const double a = read_element(type, x.data(), here);
    const double b = read_element(type, other.data(), here - i * x.strides[0] + j * other.strides[0]);
    const double w = naive_mask(view, i, pixel);
    const bool blurred =
        is_gaussian(plan.masks[shared ? 0 : i]) || (adjoint && is_gaussian(plan.masks[shared ? 0 : j]));
    const double want = adjoint ? naive_adjoint(type, w, a, naive_mask(view, j, pixel), b) : naive_blend(type, w, a, b);
    const double got = read_element(type, out.data(), there);
    if (blurred ? close(type, got, want, false) : same(got, want)) {
      pass();
    } else {
      fail(format("element %lld, of sample %lld: %.17g instead of %.17g", static_cast<long long>(n), static_cast<long long>(i),
                  got, want));
    }
    std::fill_n(touched.begin() + (out.first + there) * bytes, bytes, true);
  }
  bool whole = true;
  for (size_t k = 0; k < gaps.size(); ++k) whole = whole && (touched[k] || gaps[k] == out.memory[k]);
  expect(whole, "memory between the elements was written");
}

void test_mixes() {
  Random random(1);
  const std::vector<int64_t> shapes[] = {{7, 3, 5, 9},  {6, 4, 8, 16}, {5, 3, 33}, {4, 2, 3, 5, 6}, {2, 1, 7, 31},
                                         {1, 3, 4, 4},  {9, 2, 1, 65}, {3, 2, 70, 128}, {5, 1, 2700}};
  for (const ElementType type : kTypes) {
    for (const auto& shape : shapes) {
      for (const Order order : kOrders) {
        for (const int32_t pairing : {kRoll, kFlip, kRandom}) {
          for (const Masks masks : kMasks) {
            for (const Way way : kWays) {
              if (way == Way::kAdjoint && is_integer(type)) continue;
              if (way >= Way::kOtherInPlace && random.below(3) != 0) continue;
              const bool shared = random.below(3) == 0;
              const Parallel& parallel = random.below(6) ? kOneThread : kThreeThreads;  // making threads takes longest
              test_mix(random, type, shape, order, pairing, masks, shared, way, parallel);
            }
          }
        }
      }
    }
  }
}

// Many small samples, of which threads take different ones.
void test_parts_of_a_walk() {
  Random random(20);
  const std::vector<int64_t> shapes[] = {{60, 3, 13, 17}, {97, 2, 200}, {200, 1, 3, 9, 7}, {53, 700, 1, 1}};
  for (const ElementType type : {ElementType::kFloat32, ElementType::kBFloat16, ElementType::kFloat64}) {
    for (const auto& shape : shapes) {
      for (const int32_t pairing : {kRoll, kFlip, kRandom}) {
        for (const Masks masks : kMasks) {
          for (const Way way : kWays) {
            const Order order = kOrders[random.below(static_cast<int64_t>(std::size(kOrders)))];
            test_mix(random, type, shape, order, pairing, masks, random.below(3) == 0, way, kThreeThreads);
          }
        }
      }
    }
  }
}

// What is not a permutation is refused, or, of another batch, what is none of its samples; and nothing has been written then.
void test_refusal() {
  context = "partners that are no permutation";
  Random random(2);
  const int64_t size[3] = {1, 4, 4};
  Batch x(ElementType::kFloat32, {4, 3, 4, 4}, Order::kContiguous);
  x.fill(random, false);
  const std::vector<char> before = x.memory;
  for (const std::vector<int64_t>& partner : {std::vector<int64_t>{1, 2, 1, 0}, {0, 1, 2, 4}, {0, 1, 2, -1}, {1, 2, 3, 3}}) {
    HostPlan plan = make_plan(random, 4, size, kRandom, Masks::kConstant, false);
    plan.partner = partner;
    for (const bool lent : {false, true}) {
      x.memory = before;
      bool refused = false;
      Images images{x.type, x.data(), x.data(), layout_of(x, x, 2), false};
      if (lent) images.other = before.data(), images.other_batch = x.strides[0], images.others = 3;
      try {
        cpu::mix(images, plan.view(), kOneThread);
      } catch (const std::invalid_argument&) {
        refused = true;
      }
      expect(refused == (!lent || partner != std::vector<int64_t>{1, 2, 1, 0}), "not refused, or what is allowed is");
      expect(!refused || x.memory == before, "written to");
    }
  }
}

// What a thread throws is thrown by the call, once all are done.
void test_errors_of_threads() {
  context = "an error of a thread";
  std::string what;
  try {
    kThreeThreads(100, 1, [](int64_t, int64_t end) {
      if (end > 50) throw std::runtime_error("thrown");
    });
  } catch (const std::runtime_error& error) {
    what = error.what();
  }
  expect(what == "thrown", "lost");
}

void test_masks() {
  Random random(3);
  for (const Masks masks : kMasks) {
    context = format("the pixels of masks: %s", name_of(masks));
    const int64_t size[3] = {3, 7, 19}, n = 11;
    const HostPlan plan = make_plan(random, n, size, kRandom, masks, false);
    std::vector<float> out(n * size[0] * size[1] * size[2], -1.0f);
    cpu::masks(plan.view(), n, size, out.data(), random.below(2) ? kOneThread : kThreeThreads);
    size_t k = 0;
    for (int64_t i = 0; i < n; ++i) {
      int64_t at[3];
      for (at[0] = 0; at[0] < size[0]; ++at[0]) {
        for (at[1] = 0; at[1] < size[1]; ++at[1]) {
          for (at[2] = 0; at[2] < size[2]; ++at[2], ++k) {
            const double want = naive_mask(plan.view(), i, at), error = std::fabs(out[k] - want);
            expect(error <= (is_gaussian(plan.masks[i]) ? 0x1p-22 : 0.0), "a pixel is off");
          }
        }
      }
    }
  }
}

// What a family says of rows, beside what it says of single pixels: weights along every axis, and what may be skipped.
void test_families() {
  Random random(9);
  for (const Masks masks : {Masks::kConstant, Masks::kCutMix, Masks::kBlendedBox, Masks::kGaussian}) {
    context = format("rows of masks: %s", name_of(masks));
    const int64_t size[3] = {3, 7, 19};
    const HostPlan plan = make_plan(random, 40, size, kRandom, masks, false);
    int64_t reached[4] = {};
    for (const Record& mask : plan.masks) {
      const auto axis = static_cast<int32_t>(random.below(4)) - 1;
      int32_t at[3];
      for (int other = 0; other < 3; ++other) at[other] = static_cast<int32_t>(random.below(size[other]));
      const auto first = static_cast<int32_t>(axis < 0 ? 0 : random.below(size[axis]));
      const auto last = static_cast<int32_t>(axis < 0 ? 0 : first + random.below(size[axis] - first));
      const Reach reach_of_row = reach(mask, {{at[0], at[1], at[2]}, axis, first, last});
      ++reached[reach_of_row];
      const PlanView one{nullptr, &mask, kAllFamilies, kRandom, false, {}};
      for (int32_t c = first; c <= last; ++c) {
        const float w = of_kind(mask, [&](const auto& family) { return family.along(at, axis)(c); });
        int64_t pixel[3] = {at[0], at[1], at[2]};
        if (axis >= 0) pixel[axis] = c;
        expect(std::fabs(w - naive_mask(one, 0, pixel)) <= (is_gaussian(mask) ? 0x1p-22 : 0.0), "a weight is off");
        expect(reach_of_row != kKeep || w == 1.0f, "the partner shows");
        expect(reach_of_row != kTake || w == 0.0f, "the sample shows");
        expect(reach_of_row != kSelect || w == 0.0f || w == 1.0f, "both show");
      }
    }
    expect(masks != Masks::kCutMix || (reached[kKeep] > 0 && reached[kTake] > 0 && reached[kSelect] > 0), "nothing is skipped");
  }
}

// A kind that there is not, which a binding refuses, makes NaN.
void test_unknown_kinds() {
  context = "a kind that there is not";
  Random random(10);
  const int64_t size[3] = {1, 5, 9};
  HostPlan plan = make_plan(random, 4, size, kRoll, Masks::kConstant, false);
  plan.masks[2].kind = 77;
  Batch x(ElementType::kFloat32, {4, 3, 5, 9}, Order::kContiguous);
  x.fill(random, false);
  const Batch before = x;
  cpu::mix({x.type, x.data(), x.data(), layout_of(x, x, 2), false}, plan.view(), kOneThread);
  for (int64_t n = 0; n < x.elements(); ++n) {
    int64_t index[4];
    const int64_t at = x.at(n, index);
    const auto own = [&](int64_t i) { return read_element(x.type, before.data(), at + (i - index[0]) * x.strides[0]); };
    const bool differ = own(index[0]) != own(plan.partner[index[0]]);  // else any weight makes the same
    expect(std::isnan(read_element(x.type, x.data(), at)) == (index[0] == 2 && differ), "not NaN, or elsewhere");
  }
  for (const int32_t set : {kConstants, kCuts, kBoxes, kGaussians, kStored, kLevels}) {
    expect(!is_of(plan.masks[2], set), "a set that holds it");
  }
}

// ---- targets ----

void test_targets() {
  Random random(4);
  for (const int64_t classes : {int64_t{1}, int64_t{7}, int64_t{100}, int64_t{1000}}) {
    for (const double smoothing : {0.0, 0.1}) {
      for (const ElementType type : kTypes) {
        for (const bool soft : {false, true}) {
          if (is_integer(type) || (!soft && type != ElementType::kFloat32)) continue;
          context = format("%s %s targets of %lld classes, smoothing %g", soft ? "soft" : "dense", name_of(type),
                           static_cast<long long>(classes), smoothing);
          const int64_t batch = 9, size[3] = {1, 1, 1};
          const HostPlan plan = make_plan(random, batch, size, kRandom, Masks::kConstant, false);
          std::vector<int64_t> labels(batch);
          for (int64_t& y : labels) y = random.below(classes);
          labels[1] = labels[0];
          Batch rows(type, {batch, classes}, Order::kContiguous);
          rows.strides[0] = classes;
          rows.fill(random, false);
          Batch out(type, {batch, classes}, Order::kContiguous);
          const Labels given = soft ? Labels{rows.data(), label_type(type), true, rows.strides[0], rows.strides[1]}
                                    : Labels{labels.data(), kLabelInt64, false, 1, 0};
          const Targets targets{given, batch, classes, smoothing, out.data(), type};
          cpu::mix_labels(targets, {plan.partner.data(), plan.weight.data()}, random.below(2) ? kOneThread : kThreeThreads);
          const auto label = [&](int64_t i, int64_t k) {
            return soft ? read_element(type, rows.data(), rows.at(i * classes + k)) : (labels[i] == k ? 1.0 : 0.0);
          };
          for (int64_t i = 0; i < batch; ++i) {
            for (int64_t k = 0; k < classes; ++k) {
              const double want =
                  naive_target(type, label(i, k), label(plan.partner[i], k), plan.weight[i], smoothing, classes);
              expect(same(read_element(type, out.data(), i * classes + k), want), "an entry is off");
            }
          }
        }
      }
    }
  }
}

// ---- sampling ----

struct Sampled {
  std::vector<int64_t> partner;
  std::vector<float> lam;
  std::vector<double> weight;
  std::vector<Record> masks;

  explicit Sampled(Sampling args) : partner(args.batch), lam(args.batch), weight(args.batch), masks(args.batch) {
    args.out = {partner.data(), lam.data(), weight.data(), masks.data()};
    host::sample(args);
  }
  PlanView view(int32_t pairing) const { return {partner.data(), masks.data(), kAllFamilies, pairing, false, {}}; }
};

MethodRow row_of(Method method, double alpha) {
  MethodRow row{};
  row.method = method;
  row.weight = row.lam = std::nan("");
  row.p = row.lam_max = 1.0;
  row.alpha = alpha;
  row.ratio = method == kHMixReleased || method == kHMixPaper ? 0.75 : 1.0;
  row.families = kAllFamilies;
  return row;
}

Sampling request(const MethodRow* row, int64_t batch, int32_t pairing, int32_t per, uint64_t seed) {
  Sampling args{};
  args.rows = row;
  args.methods = 1;
  args.batch = batch;
  args.extent = {2, {1, 37, 50}};
  args.pairing = pairing;
  args.per = per;
  args.p = 1.0;
  args.seed.value = seed;
  return args;
}

// The label weight is the mean of the mask, but for SamplePairing and for released HMix, whose box may be clipped.
void test_weights() {
  for (const Method method : kMethods) {
    const MethodRow row = row_of(method, 1.0);
    if (is_stored_method(row.method)) continue;
    for (const int32_t per : {kPerBatch, kPerPair, kPerSample}) {
      context = format("plans of method %d, per %d", method, per);
      const Sampling args = request(&row, 24, kFlip, per, 5);
      const Sampled plan(args);
      for (int64_t i = 0; i < args.batch; ++i) {
        double mean = 0.0;
        int64_t at[3] = {0, 0, 0};
        for (at[1] = 0; at[1] < args.extent.size[1]; ++at[1]) {
          for (at[2] = 0; at[2] < args.extent.size[2]; ++at[2]) mean += naive_mask(plan.view(kFlip), i, at);
        }
        mean /= args.extent.pixels();
        const double want = method == kSamplePairing ? 1.0 : mean;
        expect(std::fabs(plan.weight[i] - want) < 1e-6, "the label weight is not the mean of the mask");
        expect(plan.lam[i] >= 0.0f && plan.lam[i] <= 1.0f, "lam outside [0, 1]");
        const int64_t j = args.batch - 1 - i;
        const int64_t twin = per == kPerBatch ? 0 : (per == kPerPair ? std::min(i, j) : i);
        expect(plan.lam[i] == plan.lam[twin] && plan.weight[i] == plan.weight[twin], "samples of one draw differ");
        expect(plan.partner[i] == j, "flip is not flip");
      }
      expect(per == kPerBatch || method == kSamplePairing || plan.lam[0] != plan.lam[1], "samples share a draw");
    }
  }
}

void test_partners() {
  const MethodRow row = row_of(kMixUp, 1.0);
  Random random(6);
  for (int round = 0; round < 200; ++round) {
    const int64_t batch = 1 + random.below(40), classes = 1 + random.below(6);
    std::vector<int64_t> labels(batch);
    for (int64_t& label : labels) label = random.below(classes);
    std::vector<int64_t> members(classes, 0);
    for (const int64_t label : labels) ++members[label];
    const int64_t largest = *std::max_element(members.begin(), members.end());
    for (const int32_t pairing : {kRoll, kFlip, kRandom, kCrossClass, kSameClass}) {
      context = format("partners by %s, B=%lld", name_of_pairing(pairing), static_cast<long long>(batch));
      Sampling args = request(&row, batch, pairing, kPerSample, random.next());
      args.classes = labels.data();
      const Sampled plan(args);
      std::vector<int64_t> sorted = plan.partner;
      std::sort(sorted.begin(), sorted.end());
      int64_t across = 0;
      for (int64_t i = 0; i < batch; ++i) {
        const int64_t j = plan.partner[i];
        expect(sorted[i] == i, "not a permutation");
        if (pairing == kRoll) expect(j == (i + batch - 1) % batch, "roll is not roll");
        if (pairing == kSameClass) {
          expect(labels[i] == labels[j], "a partner of another class");
          expect(i != j || members[labels[i]] == 1, "its own partner in a class of several");
        }
        across += labels[i] != labels[j] ? 1 : 0;
      }
      // Outside the largest class everyone finds another class; inside it, as many as there are others.
      if (pairing == kCrossClass) expect(across >= std::min(batch, 2 * (batch - largest)), "partners of the same class");
    }
  }
}

// λ of Beta(α, α): mean 1/2, variance 1/(4(2α+1)); five standard errors.
void test_numbers_of_families() {
  context = "numbers that a family draws for itself";
  double sum = 0.0, product = 0.0;
  for (uint64_t i = 0; i < 10000; ++i) {
    Draw drawn{};
    drawn.noise = 7;
    drawn.index = i;
    const double u[3] = {own_uniform(drawn, 0), own_uniform(drawn, 1), own_uniform(drawn, 2)};
    const Words first = words(7, i, kStreamOwn, 0), second = words(7, i, kStreamOwn, 1);
    expect(u[0] == uniform(first.a, first.b) && u[1] == uniform(first.c, first.d) && u[2] == uniform(second.a, second.b), "words");
    sum += u[0] + u[1] + u[2];
    product += u[0] * u[1];
  }
  expect(fabs(sum / 30000 - 0.5) < 0.01 && fabs(product / 10000 - 0.25) < 0.01, "moments");
}

void test_moments() {
  for (const double alpha : {0.05, 0.2, 1.0, 4.0}) {
    context = format("moments of lam, alpha %g", alpha);
    const MethodRow row = row_of(kMixUp, alpha);
    const int64_t n = 100000;
    const Sampled plan(request(&row, n, kRoll, kPerSample, 7));
    double mean = 0.0, square = 0.0;
    for (const float lam : plan.lam) mean += lam / static_cast<double>(n);
    for (const float lam : plan.lam) square += (lam - 0.5) * (lam - 0.5) / static_cast<double>(n);
    const double variance = 1.0 / (4.0 * (2.0 * alpha + 1.0));
    expect(std::fabs(mean - 0.5) < 5.0 * std::sqrt(variance / static_cast<double>(n)), "the mean is off");
    // (λ-1/2)² lies in [0, 1/4], so its variance is at most variance·(1/4 - variance).
    const double error = std::sqrt(variance * (0.25 - variance) / static_cast<double>(n));
    expect(std::fabs(square - variance) < 5.0 * error, "the variance is off");
  }
}

// ---- Fourier masks ----

// Which pixels are the `number` largest of Σ_k a cos θ - b sin θ, summed as it stands, in float64; of equal ones the first.
std::vector<bool> naive_bits(const Spectrum& s, uint64_t seed, uint64_t index, int64_t number) {
  const int64_t depth = s.side[0], height = s.side[1], width = s.side[2], pixels = depth * height * width;
  std::vector<double> grey(pixels, 0.0);
  for (int64_t kz = s.low[0]; kz < s.low[0] + s.count[0]; ++kz) {
    for (int64_t ky = s.low[1]; ky < s.low[1] + s.count[1]; ++ky) {
      for (int64_t kx = 0; kx < s.count[2]; ++kx) {
        const Pair drawn = noise(seed, index, s.ndim, kz, ky, kx);
        // The amplitude of -ky is that of ky: only squares enter it.
        const Deviation of = deviation(s, kz, ky, kx);
        for (int64_t q = 0; q < pixels; ++q) {
          const auto turn = [](int64_t k, int64_t x, int64_t side) { return static_cast<double>(k * x) / static_cast<double>(side); };
          const double theta = 6.283185307179586 * (turn(kz, q / width / height, depth) + turn(ky, q / width % height, height) +
                                                    turn(kx, q % width, width));
          grey[q] += of.a * drawn.a * std::cos(theta) - of.b * drawn.b * std::sin(theta);
        }
      }
    }
  }
  std::vector<int64_t> order(pixels);
  for (int64_t q = 0; q < pixels; ++q) order[q] = q;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return grey[a] > grey[b]; });
  std::vector<bool> bits(pixels, false);
  for (int64_t rank = 0; rank < number; ++rank) bits[order[rank]] = true;
  return bits;
}

void test_fourier() {
  Random random(8);
  const int64_t sizes[][3] = {{1, 1, 1}, {1, 1, 65}, {1, 20, 30}, {1, 33, 7}, {5, 6, 9}};
  for (const auto& size : sizes) {
    for (const bool released : {false, true}) {
      for (const double cutoff : {4.0, std::numeric_limits<double>::infinity()}) {
        const int ndim = size[0] > 1 ? 3 : (size[1] > 1 ? 2 : 1);
        const int64_t pixels = size[0] * size[1] * size[2], words = (pixels + 31) / 32, batch = 4;
        context = format("Fourier masks, %s, of %d-D with %lld pixels, cut-off %g", released ? "released" : "paper", ndim,
                         static_cast<long long>(pixels), cutoff);
        MethodRow row{};
        row.method = released ? kFMixReleased : kFMixPaper;
        row.decay = 2.5;
        row.cutoff = cutoff;
        Fourier mask{};
        mask.kind = released ? kFourierReleased : kFourier;
        mask.decay = 2.5f;
        mask.cutoff = static_cast<float>(cutoff);
        std::vector<Record> masks;
        for (int64_t i = 0; i < batch; ++i) {
          mask.number = static_cast<int32_t>(i == 0 ? pixels : random.below(pixels + 1));
          masks.push_back(bit_cast<Record>(mask));
        }
        masks[3].kind = kConstant;
        std::vector<uint32_t> bits(batch * words, 0xDEADBEEFu);
        const uint64_t seed = random.next();
        const FourierMasks args{&row,          1,          {ndim, {size[0], size[1], size[2]}}, batch, kPerSample, kPerSample,
                                {nullptr, seed}, masks.data(), bits.data(),                     nullptr};
        cpu::fourier(args, random.below(2) ? kOneThread : kThreeThreads);
        const Spectrum spectrum = spectrum_of(released, ndim, size, 2.5, cutoff);
        for (int64_t i = 0; i < batch; ++i) {
          const int64_t number = masks[i].kind == kConstant ? 0 : bit_cast<Fourier>(masks[i]).number;
          const std::vector<bool> want = naive_bits(spectrum, seed, static_cast<uint64_t>(i), number);
          int64_t ones = 0, differ = 0, beyond = 0;
          for (int64_t q = 0; q < 32 * words; ++q) {
            const bool one = (bits[i * words + q / 32] >> (q % 32) & 1u) != 0;
            ones += one;
            beyond += one && q >= pixels;
            differ += q < pixels && one != want[q];
          }
          expect(ones == number && beyond == 0, "not as many ones as were asked for");
          expect(differ <= 2, "other pixels than a plain sum says");  // two that change places are as good as equal
        }
      }
    }
  }
}

// ---- labels of blocks ----

void test_grids() {
  Random random(31);
  const int32_t sides[][2] = {{1, 1}, {1, 5}, {4, 1}, {2, 2}, {2, 3}};
  for (const auto& side : sides) {
    for (const int64_t most : {1, 4, 1000, INT32_MAX - 1}) {
      context = format("labels of %dx%d blocks, costs up to %lld", side[0], side[1], static_cast<long long>(most));
      const Grids grids(random, 5, side[0], side[1], most);
      std::vector<int32_t> labels(5 * grids.blocks(), -1);
      cpu::label_grid(grids.args(labels.data()), random.below(2) ? kOneThread : kThreeThreads);
      for (int64_t i = 0; i < 5; ++i) {
        const std::vector<int32_t> want = grids.naive(i);
        expect(std::equal(want.begin(), want.end(), labels.begin() + i * grids.blocks()), "other labels than the least");
      }
    }
  }
}

// Numbers drawn elsewhere are used as they are.
void test_drawn() {
  context = "numbers drawn elsewhere";
  const MethodRow row = row_of(kCutMix, 1.0);
  Sampling args = request(&row, 5, kRandom, kPerBatch, 0);
  const double drawn[kDrawnWidth] = {0.0, 1.0, 0.3, 0.0, 20.0, 10.0};
  const int64_t partner[5] = {4, 2, 1, 0, 3};
  args.drawn = drawn;
  args.partner = partner;
  const Sampled plan(args);
  // √0.7 of 37 and 50: 30.96 and 41.8, halved 15 and 20, around (20, 10), clipped to the image.
  const int32_t box[6] = {0, 5, 0, 1, 35, 30};
  for (int64_t i = 0; i < 5; ++i) {
    expect(plan.partner[i] == partner[i] && plan.lam[i] == 0.3f && plan.masks[i].kind == kBox, "partner, lam or kind");
    expect(std::equal(box, box + 6, plan.masks[i].words), "box");
    expect(std::fabs(plan.weight[i] - (1.0 - 30.0 * 30.0 / (37.0 * 50.0))) < 1e-6, "weight");
  }
}

}  // namespace
}  // namespace fusedmix::test

int main() {
  using namespace fusedmix::test;
  test_mixes();
  test_refusal();
  test_parts_of_a_walk();
  test_errors_of_threads();
  test_masks();
  test_families();
  test_unknown_kinds();
  test_finishes();
  test_draws_of_finishes();
  test_gathers();
  test_targets();
  test_weights();
  test_partners();
  test_numbers_of_families();
  test_moments();
  test_drawn();
  test_fourier();
  test_grids();
  test_pixel_losses();
  test_border_costs();
  return summary(("fusedmix_cpu_test (" + std::string(fusedmix::cpu::kernels().name) + ")").c_str());
}
