// Everything random about a batch, from a seed, in one launch.
//
// A block serves kSamples samples with kLanes threads each. Every number is a function of (seed, logical index), so blocks
// share nothing: a random partner is the rank of a sample's key among all keys, and each block makes all of the keys anew, a
// shared-memory tile at a time.
#include <stdexcept>

#include "vector.h"

namespace fusedmix::cuda {
namespace {

constexpr int kSamples = 16, kLanes = kThreads / kSamples;

struct SampleArgs {
  Sampling sampling;
  bool rows_inline;
  MethodRow inline_rows[kInlineRows];
};
static_assert(sizeof(SampleArgs) <= 4096, "kernel arguments");

// A sample's place in an order: by class key, class, own key, index.
struct Rank {
  int64_t group, label, key, index;
};

FUSEDMIX_DEVICE bool before(const Rank& a, const Rank& b) {
  if (a.group != b.group) return a.group < b.group;
  if (a.label != b.label) return a.label < b.label;
  if (a.key != b.key) return a.key < b.key;
  return a.index < b.index;
}

FUSEDMIX_DEVICE int64_t class_key(uint64_t seed, int64_t label) {
  const Words w = words(seed, static_cast<uint64_t>(label), kStreamClass);
  return sort_key(w.a, w.b);
}

FUSEDMIX_DEVICE uint64_t seed_of(const Sampling& s) {
  return s.seed == nullptr ? s.seed_value : static_cast<uint64_t>(device::load(s.seed));
}

// The partners of the kSamples samples from `base`. For kCrossClass: their places on the circle of classes, into scratch, and
// the size of the largest class among them.
FUSEDMIX_DEVICE int64_t find_partners(const Sampling& s, uint64_t seed, int64_t base, int64_t largest) {
  FUSEDMIX_SHARED(int64_t, keys, kThreads);
  FUSEDMIX_SHARED(int64_t, labels, kThreads);
  FUSEDMIX_SHARED(int64_t, groups, kThreads);
  FUSEDMIX_SHARED(int64_t, partial, kThreads);
  FUSEDMIX_SHARED(int64_t, partial_more, kThreads);
  const int32_t thread = static_cast<int32_t>(device::thread());
  const int32_t sample = thread % kSamples, lane = thread / kSamples;
  const int64_t i = base + sample;
  const bool by_class = s.pairing != kRandom, cross = s.pairing == kCrossClass;
  const bool valid = i < s.batch;
  Rank mine{0, 0, valid ? partner_key(seed, i) : 0, i};
  if (by_class && valid) mine.label = device::load(s.classes + i);
  if (cross && valid) mine.group = class_key(seed, mine.label);

  int64_t count = 0;      // random, cross: samples before this one; then cross: samples of its class
  int64_t members = 0;
  Rank next{0, 0, 0, -1}, least{0, 0, 0, -1};  // same: the following and the first sample of its class
  for (int64_t from = 0; from < s.batch; from += kThreads) {
    device::sync();
    const int64_t j = from + thread;
    if (j < s.batch) {
      keys[thread] = partner_key(seed, j);
      const int64_t label = by_class ? device::load(s.classes + j) : 0;
      labels[thread] = label;
      groups[thread] = cross ? class_key(seed, label) : 0;
    }
    device::sync();
    const int32_t n = static_cast<int32_t>(s.batch - from < kThreads ? s.batch - from : kThreads);
    for (int32_t k = lane; k < n; k += kLanes) {
      const Rank other{groups[k], labels[k], keys[k], from + k};
      if (s.pairing != kSameClass) {
        count += before(other, mine) ? 1 : 0;
        members += other.label == mine.label ? 1 : 0;
      } else if (other.label == mine.label) {
        if (before(mine, other) && (next.index < 0 || before(other, next))) next = other;
        if (least.index < 0 || before(other, least)) least = other;
      }
    }
  }

  // The lanes of a sample put their parts together.
  if (s.pairing != kSameClass) {
    device::sync();
    partial[thread] = count;
    partial_more[thread] = members;
    device::sync();
    for (int32_t other = 1; other < kLanes && lane == 0; ++other) {
      count += partial[other * kSamples + sample];
      members += partial_more[other * kSamples + sample];
    }
    if (cross) {
      if (lane == 0 && valid) device::store(s.scratch + count, static_cast<int32_t>(i));
      device::sync();
      if (lane == 0) partial[sample] = valid ? members : 0;
      device::sync();
      for (int32_t k = 0; k < kSamples; ++k) {
        const int64_t size = partial[k];
        largest = size > largest ? size : largest;
      }
    } else if (lane == 0 && valid) {
      device::store(s.out.partner + i, count);
    }
    return largest;
  }
  device::sync();
  partial[thread] = next.index;
  partial_more[thread] = least.index;
  device::sync();
  if (lane == 0 && valid) {
    for (int32_t other = 1; other < kLanes; ++other) {
      const int64_t a = partial[other * kSamples + sample], b = partial_more[other * kSamples + sample];
      const Rank candidate{0, mine.label, a < 0 ? 0 : partner_key(seed, a), a};
      if (a >= 0 && (next.index < 0 || before(candidate, next))) next = candidate;
      const Rank first{0, mine.label, b < 0 ? 0 : partner_key(seed, b), b};
      if (b >= 0 && (least.index < 0 || before(first, least))) least = first;
    }
    device::store(s.out.partner + i, next.index >= 0 ? next.index : least.index);
  }
  return largest;
}

// Across classes the partner is a fixed step further on the circle, so every place must be known first: one block does it
// all, through scratch. A batch of 1024 takes it some 50 µs on paper; the other pairings share the work.
FUSEDMIX_DEVICE void find_partners_across(const Sampling& s, uint64_t seed) {
  int64_t largest = 0;
  for (int64_t base = 0; base < s.batch; base += kSamples) largest = find_partners(s, seed, base, largest);
  device::sync();
  const int64_t choices = s.batch - 2 * largest + 1;
  const Words w = words(seed, 0, kStreamShift);
  const int64_t shift = largest + static_cast<int64_t>(uniform(w.a, w.b) * static_cast<double>(choices < 1 ? 1 : choices));
  for (int64_t place = device::thread(); place < s.batch; place += kThreads) {
    const int64_t from = device::load(s.scratch + place), to = device::load(s.scratch + (place + shift) % s.batch);
    device::store(s.out.partner + from, to);
  }
}

FUSEDMIX_DEVICE void sample_block(const SampleArgs& args, int64_t block) {
  const Sampling& s = args.sampling;
  const uint64_t seed = seed_of(s);
  const int64_t base = block * kSamples;
  if (s.pairing == kCrossClass) {
    if (block == 0) find_partners_across(s, seed);
  } else if (!is_formula(s.pairing)) {
    find_partners(s, seed, base, 0);
  }

  FUSEDMIX_SHARED(Record, records, kSamples);
  FUSEDMIX_SHARED(double, parts, 3 * kThreads);
  const int32_t thread = static_cast<int32_t>(device::thread());
  const int32_t sample = thread % kSamples, lane = thread / kSamples;
  const int64_t i = base + sample;
  const bool writes = lane == 0 && i < s.batch;
  Made made{};
  device::sync();
  if (lane == 0) {
    if (writes) {
      const auto row_at = [&](int32_t row) {
        return args.rows_inline ? args.inline_rows[row] : device::load(s.device_rows + row);
      };
      const Draw drawn = draw(seed, draw_index(s.per, i, s.batch), row_at, s.methods, s.p, s.lam == nullptr, s.extent);
      const MethodRow row = used_row(row_at(drawn.choice), s.lam != nullptr);
      const float given = s.lam == nullptr ? 0.0f : device::load(s.lam + (s.lam_each ? i : 0));
      // Not by a pointer that may be either: `given` would have to lie on a stack.
      const float lam = s.lam == nullptr ? used_lam(row, drawn, nullptr) : used_lam(row, drawn, &given);
      made = make_mask(row, lam, drawn, s.extent);
      if (is_formula(s.pairing)) device::store(s.out.partner + i, formula_partner(s.pairing, i, s.batch));
      device::store(s.out.lam + i, realised_lam(row, drawn, lam, made));
      store_mask(s.out.masks + i, made.record);
    }
    records[sample] = made.record;
  }
  device::sync();
  // The sums behind a weight (of a Gaussian H+W exponentials), shared among the lanes.
  const Record record = records[sample];
  const bool summed = is_summed(record);
  if (summed) {
    const Sums sums = sums_of(record, s.extent, lane, kLanes);
    FUSEDMIX_UNROLL
    for (int axis = 0; axis < 3; ++axis) parts[axis * kThreads + thread] = sums.part[axis];
  }
  device::sync();
  if (!writes) return;
  if (summed) {
    Sums total{};
    FUSEDMIX_UNROLL
    for (int axis = 0; axis < 3; ++axis) {
      for (int32_t other = 0; other < kLanes; ++other) total.part[axis] += parts[axis * kThreads + other * kSamples + sample];
    }
    made.weight = summed_weight(record, total, s.extent);
  }
  device::store(s.out.weight + i, made.weight);
}

FUSEDMIX_KERNEL(kThreads) sample_kernel(FUSEDMIX_ARGS(SampleArgs, args)) { sample_block(args, device::block()); }

}  // namespace

int sample(const Sampling& sampling, void* stream) {
  SampleArgs args{};
  args.sampling = sampling;
  args.rows_inline = sampling.device_rows == nullptr;
  if (args.rows_inline) {
    if (sampling.methods > kInlineRows) throw std::invalid_argument("the rows of so many methods must be on the device");
    std::copy(sampling.rows, sampling.rows + sampling.methods, args.inline_rows);
  }
  const int64_t blocks = launchable((sampling.batch + kSamples - 1) / kSamples);
  return blocks == 0 ? 0 : device::launch(sample_kernel, blocks, kThreads, stream, args);
}

}  // namespace fusedmix::cuda
