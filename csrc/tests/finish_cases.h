// Batches that are finished on the CPU (csrc/cpu/finish.h) against naive loops, and what is drawn for them.
#pragma once

#include "../cpu/finish.h"
#include "naive.h"
#include "threads.h"

namespace fusedmix::test {

// Records of flips and up to three holes, anywhere in or beyond the image, with room for one more.
inline std::vector<int32_t> make_draws(Random& random, int64_t batch, int64_t height, int64_t width) {
  const auto side = [&](int64_t n) { return static_cast<int32_t>(random.below(n + 4) - 2); };
  std::vector<int32_t> draws;
  for (int64_t i = 0; i < batch; ++i) {
    const auto word = [&] { draws.push_back(static_cast<int32_t>(random.next())); };
    draws.push_back(static_cast<int32_t>(random.below(2)));
    draws.push_back(static_cast<int32_t>(random.below(4)));
    word(), word();
    for (int k = 0; k < 4; ++k) {
      draws.push_back(side(height)), draws.push_back(side(width));
      draws.push_back(std::max(0, side(height))), draws.push_back(std::max(0, side(width)));
    }
  }
  return draws;
}

// The numbers of a sample by itself: `raw` before normalisation, after its flip; `alone` after it, or the fill of a hole.
struct NaiveSample {
  double raw, alone;
  bool erased;
};

inline NaiveSample naive_sample(const Batch& x, const Finishing& args, int64_t i, int64_t c, int64_t row, int64_t column) {
  const int32_t* record = args.draws == nullptr ? nullptr : args.draws + i * args.draw_words;
  const int64_t from = record != nullptr && record[0] != 0 ? args.width - 1 - column : column;
  const double raw = read_element(x.type, x.data(), i * x.strides[0] + c * x.strides[1] + row * x.strides[2] + from * x.strides[3]);
  const float scale = args.affine[c], shift = args.affine[args.channels + c];
  NaiveSample made{raw, std::fma(static_cast<float>(raw), scale, shift), false};
  for (int32_t k = 0; record != nullptr && k < record[1]; ++k) {
    const int32_t* hole = record + 4 + 4 * k;
    if (row < hole[0] || row >= hole[0] + hole[2] || column < hole[1] || column >= hole[1] + hole[3]) continue;
    const uint64_t seed = static_cast<uint32_t>(record[2]) | static_cast<uint64_t>(static_cast<uint32_t>(record[3])) << 32;
    const auto index = static_cast<uint64_t>(args.fill == kFillEachHole ? k : row * args.width + column);
    const Words w = words(seed, index, kStreamFill, static_cast<uint32_t>(c / 4));
    const uint32_t high = c % 4 < 2 ? w.a : w.c, low = c % 4 < 2 ? w.b : w.d;
    const double radius = std::sqrt(-2.0 * std::log((2.0 * (high >> 9) + 1.0) * 0x1p-24));
    const double angle = (low >> 8) * 0x1p-24 * 6.283185307179586;
    const double normal = radius * (c % 2 == 0 ? std::cos(angle) : std::sin(angle));
    made = {raw, args.fill == kFillNumber ? args.affine[2 * args.channels + c] : normal, true};
  }
  return made;
}

inline void test_finish(Random& random, ElementType type, ElementType made, const std::vector<int64_t>& shape, const Masks* masks) {
  const Order order = kOrders[random.below(static_cast<int64_t>(std::size(kOrders)))];
  Batch x(type, shape, order);
  x.fill(random, false);
  std::vector<float> affine;
  for (int64_t k = 0; k < 3 * shape[1]; ++k) {
    const double scale = random.uniform(0.5, 1.0) / (type == ElementType::kUInt8 ? 32 : 1);
    affine.push_back(static_cast<float>(k < shape[1] ? scale : random.uniform(-1.0, 1.0)));
  }
  const std::vector<int32_t> draws = make_draws(random, shape[0], shape[2], shape[3]);
  const int64_t size[3] = {1, shape[2], shape[3]}, elements = x.elements(), guard = 64;
  const bool shared = random.below(3) == 0, last = random.below(2) == 0;
  const HostPlan plan = make_plan(random, shape[0], size, kRandom, masks == nullptr ? Masks::kConstant : *masks, shared);
  const PlanView view = plan.view();
  std::vector<char> memory(elements * element_size(made) + 2 * guard, '\x7B');
  const Parallel& parallel = random.below(4) ? kOneThread : kThreeThreads;
  Finishing args{};
  args.type = type, args.made = made;
  args.src = x.data(), args.dst = memory.data() + guard;
  std::copy(x.strides.begin(), x.strides.end(), args.step);
  args.channels_last = last;
  args.batch = shape[0], args.channels = shape[1], args.height = shape[2], args.width = shape[3];
  args.affine = affine.data();
  if (random.below(4)) args.draws = draws.data(), args.draw_words = finish_words(4);
  args.fill = static_cast<Fill>(random.below(3));
  args.constant = masks != nullptr && *masks == Masks::kConstant && random.below(2) == 0;
  context = format("%s finished as %s, %s, %s, %s%s, fill %d%s%s, %d threads", name_of(type), name_of(made), name_of(order),
                   masks == nullptr ? "alone" : name_of(*masks), shared ? "shared" : "each its own", last ? ", channels last" : "",
                   args.fill, args.draws == nullptr ? "" : ", drawn", args.constant ? ", a number" : "", parallel.threads);
  cpu::finish(args, masks == nullptr ? nullptr : &view, parallel);

  for (int64_t n = 0; n < elements; ++n) {
    int64_t index[4];
    x.at(n, index);
    const int64_t i = index[0], c = index[1], pixel[3] = {0, index[2], index[3]};
    const double w = masks == nullptr ? 1.0 : naive_mask(view, i, pixel);
    const NaiveSample own = naive_sample(x, args, i, c, pixel[1], pixel[2]);
    const NaiveSample lent = naive_sample(x, args, plan.partner[i], c, pixel[1], pixel[2]);
    const bool erased = own.erased || lent.erased;
    const double v = naive_blend(ElementType::kFloat32, w, erased ? own.alone : own.raw, erased ? lent.alone : lent.raw);
    const double y = erased ? v : std::fma(static_cast<float>(v), affine[c], affine[shape[1] + c]), want = round_to(made, y);
    const int64_t at = last ? ((i * shape[2] + pixel[1]) * shape[3] + pixel[2]) * shape[1] + c : n;
    const double got = read_element(made, args.dst, at);
    const bool exact = !(masks != nullptr && is_gaussian(plan.masks[shared ? 0 : i])) && (!erased || args.fill == kFillNumber);
    const double places[] = {0x1p-22, 0x1p-10, 0x1p-7};
    const bool ok = exact ? same(got, want) : std::fabs(got - want) <= 0x1p-16 + places[static_cast<int>(made)] * std::fabs(want);
    expect(ok, "an element is off");
  }
  const auto untouched = [](char byte) { return byte == '\x7B'; };
  const bool whole = std::all_of(memory.begin(), memory.begin() + guard, untouched);
  expect(whole && std::all_of(memory.end() - guard, memory.end(), untouched), "written beside the new batch");
}

inline void test_finishes() {
  Random random(30);
  const std::vector<int64_t> shapes[] = {{5, 3, 7, 9}, {4, 1, 3, 33}, {2, 9, 5, 8}, {3, 3, 16, 64}, {1, 2, 1, 1}};
  for (const ElementType type : {ElementType::kUInt8, ElementType::kFloat32, ElementType::kFloat16, ElementType::kBFloat16}) {
    for (const ElementType made : {ElementType::kFloat32, ElementType::kFloat16, ElementType::kBFloat16}) {
      for (const auto& shape : shapes) {
        test_finish(random, type, made, shape, nullptr);
        for (const Masks masks : kMasks) test_finish(random, type, made, shape, &masks);
      }
    }
  }
}

// Every hole lies inside of the image, and there are as many as asked for, or as find room.
inline void test_draws_of_finishes() {
  context = "flips and holes";
  FinishDraws args{};
  args.draw = {0.5, 0.5, 0.02, 0.9, 0.3, 2.4, 2.0, 5.0};
  args.seed.value = 3;
  args.batch = 5000, args.height = 24, args.width = 40;
  const int64_t row = finish_words(5), guard = 8;
  std::vector<int32_t> one(args.batch * row + guard, 77), other = one;
  args.records = one.data();
  cpu::draw_finish(args, kOneThread);
  args.records = other.data();
  cpu::draw_finish(args, kThreeThreads);
  expect(one == other, "threads draw otherwise");
  expect(std::all_of(one.end() - guard, one.end(), [](int32_t word) { return word == 77; }), "written behind the records");
  int64_t flips = 0, erased = 0;
  for (int64_t i = 0; i < args.batch; ++i) {
    const int32_t* record = one.data() + i * row;
    flips += record[0], erased += record[1] > 0;
    expect(record[0] == 0 || record[0] == 1, "a flip");
    expect(record[1] == 0 || (record[1] >= 2 && record[1] <= 5), "how many holes");
    for (int k = 0; k < 5; ++k) {
      const int32_t* hole = record + 4 + 4 * k;
      expect(hole[0] >= 0 && hole[1] >= 0 && hole[0] + hole[2] <= 24 && hole[1] + hole[3] <= 40, "outside of the image");
      expect(k < record[1] || (hole[2] == 0 && hole[3] == 0), "a hole after the last");
    }
  }
  const double error = 5.0 * std::sqrt(0.25 / static_cast<double>(args.batch));
  for (const int64_t count : {flips, erased}) expect(std::fabs(static_cast<double>(count) / 5000 - 0.5) < error, "how often");
}

}  // namespace fusedmix::test
