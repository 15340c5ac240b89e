// Everything random about a batch, from a seed, in one launch.
//
// It runs once a step, by when other kernels have taken its place in the instruction cache: code that is met for the first time may
// well take longer than what it does. So kernels are compiled for one family of masks, with partners by formula or random ones, and
// for all families; and there is one copy of what is long (Philox, a logarithm), which lanes run side by side, each for another
// number.
//
// Every number is a function of (seed, logical index), so blocks share nothing: some find partners, the others draw.
#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "vector.h"

namespace fusedmix::cuda {
namespace {

struct SampleArgs {
  Sampling sampling;
  const MethodRow* device_rows;  // null: they are inline_rows
  int32_t* scratch;
  int64_t partner_blocks;
  MethodRow inline_rows[kInlineRows];
};
static_assert(sizeof(SampleArgs) <= 4096, "kernel arguments");

// ---- partners ----

enum class Partners { kByFormula, kRandom, kByClass };

// A random partner is the rank of a sample's key among all keys. A block serves kRanked samples with kRankLanes threads each, and
// makes all of the keys anew, a shared-memory tile at a time.
constexpr int kRanked = 16, kRankLanes = kThreads / kRanked;

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

// The partners of the kRanked samples from `base`. For kCrossClass: their places on the circle of classes, into scratch, and the
// size of the largest class among them. All of these samples are in one tile, the first that is made. One long function: where its
// two halves are functions, nvcc makes more instructions of them.
template <Partners kPartners>
FUSEDMIX_DEVICE int64_t find_partners(const SampleArgs& args, uint64_t seed, int64_t base, int64_t largest) {
  const Sampling& s = args.sampling;
  constexpr bool kByClass = kPartners == Partners::kByClass;
  FUSEDMIX_SHARED(int64_t, keys, kThreads);
  FUSEDMIX_SHARED(int64_t, labels, kThreads);
  FUSEDMIX_SHARED(int64_t, groups, kThreads);
  FUSEDMIX_SHARED(int64_t, partial, kThreads);
  FUSEDMIX_SHARED(int64_t, partial_more, kThreads);
  const int32_t thread = static_cast<int32_t>(device::thread());
  const int32_t sample = thread % kRanked, lane = thread / kRanked;
  const int64_t i = base + sample;
  const bool cross = kByClass && s.pairing == kCrossClass, same = kByClass && s.pairing == kSameClass;
  const bool valid = i < s.batch;
  Rank mine{};

  int64_t count = 0;      // random, cross: samples before this one; then cross: samples of its class
  int64_t members = 0;
  Rank next{0, 0, 0, -1}, least{0, 0, 0, -1};  // same: the following and the first sample of its class
  const int64_t tiles = (s.batch + kThreads - 1) / kThreads, own = base / kThreads;
  for (int64_t turn = 0; turn < tiles; ++turn) {
    const int64_t from = (own + turn < tiles ? own + turn : own + turn - tiles) * kThreads, j = from + thread;
    device::sync();
    if (j < s.batch) {
      keys[thread] = partner_key(seed, j);
      if constexpr (kByClass) {
        const int64_t label = device::load(s.classes + j);
        labels[thread] = label;
        if (cross) groups[thread] = class_key(seed, label);
      }
    }
    device::sync();
    const auto rank = [&](int32_t k) {
      return Rank{cross ? groups[k] : int64_t{0}, kByClass ? labels[k] : int64_t{0}, keys[k], from + k};
    };
    if (turn == 0 && valid) mine = rank(static_cast<int32_t>(i - from));
    const int32_t n = static_cast<int32_t>(s.batch - from < kThreads ? s.batch - from : kThreads);
    FUSEDMIX_UNROLL_2
    for (int32_t k = lane; k < n; k += kRankLanes) {
      const Rank other = rank(k);
      if (!same) {
        count += before(other, mine) ? 1 : 0;
        if (cross) members += other.label == mine.label ? 1 : 0;
      } else if (other.label == mine.label) {
        if (before(mine, other) && (next.index < 0 || before(other, next))) next = other;
        if (least.index < 0 || before(other, least)) least = other;
      }
    }
  }

  // The lanes of a sample put their parts together.
  if (!same) {
    device::sync();
    partial[thread] = count;
    if (cross) partial_more[thread] = members;
    device::sync();
    for (int32_t other = 1; other < kRankLanes && lane == 0; ++other) {
      count += partial[other * kRanked + sample];
      if (cross) members += partial_more[other * kRanked + sample];
    }
    if (cross) {
      if (lane == 0 && valid) device::store(args.scratch + count, static_cast<int32_t>(i));
      device::sync();
      if (lane == 0) partial[sample] = valid ? members : 0;
      device::sync();
      for (int32_t k = 0; k < kRanked; ++k) {
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
    for (int32_t other = 1; other < kRankLanes; ++other) {
      const int64_t a = partial[other * kRanked + sample], b = partial_more[other * kRanked + sample];
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
FUSEDMIX_DEVICE void find_partners_across(const SampleArgs& args, uint64_t seed) {
  const Sampling& s = args.sampling;
  int64_t largest = 0;
  for (int64_t base = 0; base < s.batch; base += kRanked) largest = find_partners<Partners::kByClass>(args, seed, base, largest);
  device::sync();
  const int64_t choices = s.batch - 2 * largest + 1;
  const Words w = words(seed, 0, kStreamShift);
  const int64_t shift = largest + static_cast<int64_t>(uniform(w.a, w.b) * static_cast<double>(choices < 1 ? 1 : choices));
  for (int64_t place = device::thread(); place < s.batch; place += kThreads) {
    const int64_t from = device::load(args.scratch + place), to = device::load(args.scratch + (place + shift) % s.batch);
    device::store(s.out.partner + from, to);
  }
}

template <Partners kPartners>
FUSEDMIX_DEVICE void partner_block(const SampleArgs& args, uint64_t seed) {
  if (kPartners == Partners::kByClass && args.sampling.pairing == kCrossClass) return find_partners_across(args, seed);
  find_partners<kPartners>(args, seed, int64_t{device::block()} * kRanked, 0);
}

// ---- draws ----

// The family of all masks.
struct Every {
  static constexpr bool kHasSums = true;
};

// Samples that a block draws. For sums over pixels a sample has all of its threads.
template <class F>
constexpr int kDrawn = F::kHasSums ? 1 : 8;

// What the lanes of a sample make: the first six the words of two Betas (λ, HMix's ratio) and one of their logarithms each, the
// others the words of a stream each, four bits of kStreams.
constexpr int kBetas = 2, kLogs = 3, kOthers = kBetas * kLogs, kMakers = kOthers + 6;
constexpr uint32_t kStreams =
    kStreamChoice | kStreamApply << 4 | kStreamSwap << 8 | kStreamCentre << 12 | kStreamSides << 16 | kStreamAspect << 20;
FUSEDMIX_DEVICE Stream stream_of(int32_t maker) {
  if (maker < kOthers) return maker < kLogs ? kStreamLam : kStreamRatio;
  return static_cast<Stream>(kStreams >> 4 * (maker - kOthers) & 15);
}

// What Numbers has, where lanes have left it.
template <class WordArray, class LogArray, class Log1pArray>
struct FoundNumbers {
  const WordArray& found;
  const LogArray& logs;
  const Log1pArray& log1ps;
  int32_t sample;
  uint64_t seed, index;

  FUSEDMIX_DEVICE Words words(Stream stream) const {
    int32_t maker = kOthers;
    while (maker < kMakers && stream_of(maker) != stream) ++maker;
    if (maker == kMakers) return fusedmix::words(seed, index, stream);
    return found[sample * kMakers + maker];
  }
  FUSEDMIX_DEVICE double beta(Stream stream, double alpha) const {
    const int32_t which = sample * kBetas + (stream == kStreamRatio ? 1 : 0);
    return beta_of(log1ps[2 * which], log1ps[2 * which + 1], logs[which * kLogs + 1], logs[which * kLogs + 2], alpha);
  }
};

// What is rare is left to the kernels of all families: volumes (cube roots), and boxes whose sides, shape or ratio are drawn. The
// others are told that it is not there.
FUSEDMIX_HD bool is_rare(const MethodRow& row) { return row.side_high > 0.0 || row.aspect_high > 0.0 || row.ratio_alpha > 0.0; }
template <class F>
FUSEDMIX_DEVICE MethodRow row_for(MethodRow row) {
  if constexpr (!std::is_same_v<F, Every>) row.side_high = row.aspect_high = row.ratio_alpha = 0.0;
  return row;
}
template <class F>
FUSEDMIX_DEVICE Extent extent_for(Extent extent) {
  if constexpr (!std::is_same_v<F, Every>) extent.ndim = extent.ndim == 1 ? 1 : 2;
  return extent;
}

template <class F>
FUSEDMIX_DEVICE Made make_of(const MethodRow& row, float lam, const Draw& drawn, const Extent& extent) {
  if constexpr (std::is_same_v<F, Every>) {
    return make_mask(row, lam, drawn, extent);
  } else {
    return drawn.applied ? F::make(row, lam, drawn, extent) : Constant::make(row, lam, drawn, extent);
  }
}

// f of a record that has sums, as its family.
template <class F, class G>
FUSEDMIX_DEVICE auto of_summed(const Record& record, const G& g) {
  if constexpr (std::is_same_v<F, Every>) {
    return of_kind(record, g);
  } else {
    return g(bit_cast<F>(record));
  }
}

// The weight of the mask of a block's only sample. Eight lanes add up a row, and several rows are under way; what a sum is made of,
// and in which order, does not depend on how many.
template <class F>
FUSEDMIX_DEVICE double summed_weight_of(const Record& record, const Extent& extent) {
  constexpr int kLanes = 8, kRows = kThreads / kLanes;
  FUSEDMIX_SHARED(double, parts, kThreads);
  FUSEDMIX_SHARED(double, sums, 3);
  const int32_t thread = static_cast<int32_t>(device::thread()), lane = thread % kLanes;
  const int64_t rows = of_summed<F>(record, [&](const auto& mask) { return mask.rows(extent); });
  double total = 0.0;  // of a part and a lane
  FUSEDMIX_NO_UNROLL
  for (int64_t base = 0; base < rows; base += kRows) {
    const int64_t row = base + thread / kLanes;
    device::sync();
    if (row < rows) {
      parts[thread] = of_summed<F>(record, [&](const auto& mask) { return mask.row_sum(extent, row, lane, kLanes); });
    }
    device::sync();
    FUSEDMIX_NO_UNROLL
    for (int32_t k = 0; k < kRows && base + k < rows && thread < 3 * kLanes; ++k) {
      const int part = of_summed<F>(record, [&](const auto& mask) { return mask.part_of(base + k); });
      if (part == thread / kLanes) total += parts[k * kLanes + lane];
    }
  }
  device::sync();
  parts[thread] = total;
  device::sync();
  if (thread < 3) {
    double sum = 0.0;
    for (int32_t other = 0; other < kLanes; ++other) sum += parts[thread * kLanes + other];
    sums[thread] = sum;
  }
  device::sync();
  return of_summed<F>(record, [&](const auto& mask) { return mask.weight(Sums{{sums[0], sums[1], sums[2]}}, extent); });
}

template <class F>
FUSEDMIX_DEVICE void draw_block(const SampleArgs& args, uint64_t seed, int64_t block) {
  constexpr int kSamples = kDrawn<F>, kLanes = kThreads / kSamples;
  static_assert(kMakers <= kLanes);
  FUSEDMIX_SHARED(Words, found, kSamples * kMakers);
  FUSEDMIX_SHARED(double, logs, kSamples * kOthers);
  FUSEDMIX_SHARED(double, log1ps, kSamples * kBetas * 2);
  const Sampling& s = args.sampling;
  const int32_t thread = static_cast<int32_t>(device::thread());
  const int32_t sample = thread % kSamples, lane = thread / kSamples;
  const int64_t i = block * kSamples + sample;
  const bool there = i < s.batch;
  const auto at = static_cast<uint64_t>(draw_index(s.per, i, s.batch));
  if (there && lane < kMakers) {
    const int32_t number = lane % kLogs;
    const Words w = words(seed, at, stream_of(lane), lane < kOthers && number > 0 ? 1 : 0);
    found[sample * kMakers + lane] = w;
    if (lane < kOthers) logs[sample * kOthers + lane] = log(number == 2 ? uniform(w.c, w.d) : uniform(w.a, w.b));
  }
  device::sync();
  const FoundNumbers<decltype(found), decltype(logs), decltype(log1ps)> numbers{found, logs, log1ps, sample, seed, at};
  const MethodRow* rows = args.device_rows == nullptr ? args.inline_rows : args.device_rows;
  const auto row_at = [&](int32_t row) { return device::load(rows + row); };
  int32_t choice = 0;
  if (there && lane < 2 * kBetas) {
    choice = choose(numbers, row_at, s.methods);
    const MethodRow row = row_at(choice);
    const int32_t which = lane / 2;
    const Words w = found[sample * kMakers + which * kLogs];
    const double t = beta_polar(logs[sample * kOthers + which * kLogs], uniform(w.c, w.d), which == 0 ? row.alpha : row.ratio_alpha);
    log1ps[sample * kBetas * 2 + lane] = log1p(lane % 2 == 0 ? t : -t);
  }
  device::sync();
  Made made{};
  if (there && lane == 0) {
    const Extent extent = extent_for<F>(s.extent);
    const MethodRow drawn_row = row_for<F>(row_at(choice));
    const Draw drawn = draw(numbers, choice, drawn_row, s.p, s.lam == nullptr, extent);
    const MethodRow row = used_row(drawn_row, s.lam != nullptr);
    const float given = s.lam == nullptr ? 0.0f : device::load(s.lam + (s.lam_each ? i : 0));
    // Not by a pointer that may be either: `given` would have to lie on a stack.
    const float lam = s.lam == nullptr ? used_lam(row, drawn, nullptr) : used_lam(row, drawn, &given);
    made = make_of<F>(row, lam, drawn, extent);
    if (is_formula(s.pairing)) device::store(s.out.partner + i, formula_partner(s.pairing, i, s.batch));
    device::store(s.out.lam + i, realised_lam(row, drawn, lam, made));
    store_mask(s.out.masks + i, made.record);
  }
  if constexpr (F::kHasSums) {
    FUSEDMIX_SHARED(Record, records, 1);
    if (lane == 0) records[0] = made.record;
    device::sync();
    const Record record = records[0];
    if (is_summed(record)) made.weight = summed_weight_of<F>(record, s.extent);
  }
  if (there && lane == 0) device::store(s.out.weight + i, made.weight);
}

// First of all it lets the launch that mixes start, which waits for the plan.
template <class F, Partners kPartners>
FUSEDMIX_KERNEL(kThreads) sample_kernel(FUSEDMIX_ARGS(SampleArgs, args)) {
  device::let_next_start();
  const uint64_t seed = seed_of(args.sampling.seed);
  if constexpr (kPartners != Partners::kByFormula) {
    if (device::block() < args.partner_blocks) return partner_block<kPartners>(args, seed);
  }
  draw_block<F>(args, seed, device::block() - args.partner_blocks);
}

int64_t blocks_of(int64_t batch, int64_t samples) { return (batch + samples - 1) / samples; }

template <class F, Partners kPartners>
int launch(SampleArgs& args, int64_t partner_blocks, void* stream) {
  args.partner_blocks = partner_blocks;
  const int64_t blocks = launchable(partner_blocks + blocks_of(args.sampling.batch, kDrawn<F>));
  return device::launch(sample_kernel<F, kPartners>, blocks, kThreads, stream, args);
}

template <class F>
int launch_family(SampleArgs& args, void* stream) {
  const Sampling& s = args.sampling;
  const int64_t ranked = blocks_of(s.batch, kRanked);
  if (is_formula(s.pairing)) return launch<F, Partners::kByFormula>(args, 0, stream);
  if (s.pairing == kRandom) return launch<F, Partners::kRandom>(args, ranked, stream);
  return launch<Every, Partners::kByClass>(args, s.pairing == kCrossClass ? 1 : ranked, stream);
}

// Launches the kernel of the first family that all methods are of.
template <class F, class... Others>
int launch_first(SampleArgs& args, void* stream) {
  const MethodRow* rows = args.sampling.rows;
  const auto fits = [](const MethodRow& row) { return makes<F>(row.method) && !is_rare(row); };
  if constexpr (sizeof...(Others) > 0) {
    const bool all = args.sampling.extent.ndim < 3 && std::all_of(rows, rows + args.sampling.methods, fits);
    if (!all) return launch_first<Others...>(args, stream);
  }
  return launch_family<F>(args, stream);
}

}  // namespace

int sample(const Sampling& sampling, const MethodRow* device_rows, int32_t* scratch, void* stream) {
  if (sampling.batch == 0) return 0;
  SampleArgs args{};
  args.sampling = sampling;
  args.device_rows = device_rows;
  args.scratch = scratch;
  if (device_rows == nullptr) {
    if (sampling.methods > kInlineRows) throw std::invalid_argument("the rows of so many methods must be on the device");
    std::copy(sampling.rows, sampling.rows + sampling.methods, args.inline_rows);
  }
  return launch_first<Constant, Box, Gaussian, Fourier, Smooth, Grid, Every>(args, stream);
}

}  // namespace fusedmix::cuda
