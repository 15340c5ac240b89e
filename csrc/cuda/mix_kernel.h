// Mixes a batch. The kernels, one for each way through it (kernels.h); mix_float.cu and its like compile them, for sets of families of
// masks, of which a kernel has the code and no more; mix.cu launches them.
//
// A thread moves vectors of 16 bytes, and some of them are under way before the first is used: a multiprocessor of an H100 needs
// about 40 KB in flight. What bounds a kernel besides is the number of instructions a vector: 300 are issued in the time that
// memory takes to move one.
//
// In place every thread reads what it needs of a column (some vectors of every sample, which lie above each other) before any
// thread writes any of it: the block owns the column, and waits once in between.
#pragma once

#include "targets.h"
#include "vector.h"

namespace fusedmix::cuda {

struct MixArgs {
  const char* src;
  char* dst;
  Loops loops;
  uint32_t batch;
  const int32_t* inverse;  // of the adjoint, where no formula has it
  bool by_tile;            // kEach
  Divisor inner;           // of blocks, the number of those that follow each other: tiles of a sample, or groups of samples
  uint32_t first_column, columns;  // that this launch mixes
  bool packed;             // samples of dst have only those columns, one after the other
  int32_t log_column;      // of the vectors of a sample that a block has
  uint32_t mix_blocks;
  ClassTargets targets;
  LaunchPlan plan;
};
static_assert(sizeof(MixArgs) <= 4096, "kernel arguments");

constexpr int kEachSamples = 2;

// Sets of families with so much code that a kernel has it once, and asks one mask after the other.
template <int32_t kFamilies>
constexpr bool kMany = kFamilies == kFormulaSet || kFamilies == kAnySet;

// Sets whose masks leave whole vectors as they are, or replace them: then less is read.
template <int32_t kFamilies>
constexpr bool kSkips = kFamilies == kCutSet || kFamilies == kStoredSet || kMany<kFamilies>;

// Samples of a column that a thread has loads of under way.
template <int32_t kFamilies>
constexpr int kAheadOf = kFamilies == kCutSet ? 2 : (kSkips<kFamilies> ? 1 : 4);

// Samples that a thread of kTile mixes at a time, after all are in shared memory. Not by unrolling a loop: on GPUs from sm_100 on
// nvcc then has code for a third, which is what is left over. Two of bytes by Gaussians would take more registers than there are.
template <class T, int32_t kFamilies>
constexpr int kAfter = sizeof(T) == 1 && kFamilies == kGaussianSet ? 1 : 2;

// Blocks that are to fit a multiprocessor: the more there are, the fewer registers each has. Sixteen bytes take more of them than
// four floats, all families more than one, and the adjoint, in float64, more than what it is of.
template <class T, int32_t kFamilies, bool kAdjoint = false>
constexpr int kEachBlocks = kFamilies == kAnySet ? (kAdjoint ? 2 : 3) : (sizeof(T) == 1 || (kAdjoint && sizeof(T) == 2) ? 3 : 4);
template <class T, int32_t kFamilies>
constexpr int kRollBlocks = kFamilies == kAnySet || sizeof(T) == 1 ? 2 : 3;
template <class T, int32_t kFamilies>
constexpr int kTileBlocks = kFamilies == kConstantSet ? 3 : (kFamilies == kStoredSet && sizeof(T) == 1 ? 1 : 2);

// Right after a sampler a launch may begin before the plan is there (device::wait_for_plan). What a kernel loads whatever the plan
// says, it then loads before: only images, and past the caches that are nearer than the L2 cache.
template <class T, int V, int32_t kFamilies>
constexpr bool kEarly = !kSkips<kFamilies> && sizeof(T) * V == 16;

// A thread's vector of every sample, and what masks do to it. In place it is written where it was read.
template <class T, int V, int32_t kFamilies, bool kInPlace = false>
struct Column {
  static constexpr bool kHasStored = (kFamilies & (kStored | kLevels)) != 0;
  const MixArgs& args;
  const PlanView plan;
  const Place<V> place;
  OnPixels on;

  // What sample i's mask does to its vector. Where it `picks`, lanes that are `taken` are the partner's, and the others its own.
  struct Look {
    Reach reach;
    bool picks;
    uint32_t taken;
    float w[kMany<kFamilies> ? V : 1];
  };

  FUSEDMIX_DEVICE Column(const MixArgs& given, const Place<V>& its)
      : args(given), plan(view_of(given.plan)), place(its), on{} {
    if constexpr (kHasStored) {
      if (has_pixels()) on = on_pixels<V>(plan.pixels, place, args.loops.row_axis);
    }
  }
  FUSEDMIX_DEVICE Column(const MixArgs& given, uint32_t column) : Column(given, place_of<V>(given.loops, column)) {}

  FUSEDMIX_DEVICE const char* source(uint32_t i) const { return args.src + i * args.loops.src_batch + place.src; }
  FUSEDMIX_DEVICE char* target(uint32_t i) const {
    return kInPlace ? const_cast<char*>(source(i)) : args.dst + i * args.loops.dst_batch + place.dst;
  }
  FUSEDMIX_DEVICE Vec<T, V> load(uint32_t i) const { return load_vector<T, V>(source(i)); }
  FUSEDMIX_DEVICE Vec<T, V> load_early(uint32_t i) const {
    return from_raw<T, V>(device::load_far(reinterpret_cast<const RawVec<T, V>*>(source(i))));
  }
  FUSEDMIX_DEVICE void store(uint32_t i, const Vec<T, V>& value) const { store_vector<T, V>(target(i), value); }
  FUSEDMIX_DEVICE uint32_t partner(uint32_t i) const { return partner_of(plan, i, args.batch); }

  // Whether pixels are stored, not cells alone.
  FUSEDMIX_DEVICE bool has_pixels() const { return kFamilies == kStoredSet ? is_stored(plan) : may_be_stored(plan); }
  // Whether a look at one sample is one at all.
  FUSEDMIX_DEVICE bool one_look() const { return kFamilies == kCutSet && plan.shared; }
  // A mask is looked at in two steps, so that loads of several samples are under way together.
  FUSEDMIX_DEVICE Glimpse glimpse(uint32_t i) const {
    if constexpr (kHasStored) {
      if (has_pixels()) return cuda::glimpse(plan, on, i);
    }
    return {};
  }
  FUSEDMIX_DEVICE Look look(uint32_t i, const Glimpse& seen) const {
    Look found{};
    if constexpr (kMany<kFamilies>) {
      found.reach = weigh<kFamilies>(plan, i, on, seen, place, args.loops, found.w);
    } else if constexpr (kFamilies == kCutSet) {
      const Box box = bit_cast<Box>(load_mask(plan, i));
      look_at(found, lanes_in(box.along(place.at, args.loops.row_axis), place, args.loops));
    } else if constexpr (kFamilies == kStoredSet) {
      if (!is_stored(plan) || !is_stored(Record{seen.kind, {}})) {
        found.reach = reach_of(uniform(i));
        if (found.reach != kBlend) look_at(found, found.reach == kKeep ? 0 : kAllLanes<V>);
      } else if (plan.pixels.levels == nullptr) {
        look_at(found, ~lanes_of(plan, on, place, args.loops, seen) & kAllLanes<V>);
      } else {
        found.reach = kBlend;  // levels are not looked at so early
      }
    }
    return found;
  }
  // At two, by the code that there is for one if that is long.
  FUSEDMIX_DEVICE void look_at_both(const uint32_t (&i)[2], Look (&look)[2]) const {
    if constexpr (kMany<kFamilies>) {
      look[1] = {};
      FUSEDMIX_NO_UNROLL
      for (int k = 0; k < 2; ++k) {
        const uint32_t of = k == 0 ? i[0] : i[1];
        look[0] = look[1];
        look[1] = this->look(of, glimpse(of));
      }
    } else {
      const Glimpse seen[2] = {glimpse(i[0]), glimpse(i[1])};
      look[0] = this->look(i[0], seen[0]);
      look[1] = one_look() ? look[0] : this->look(i[1], seen[1]);
    }
  }

  FUSEDMIX_DEVICE Vec<T, V> mixed(uint32_t i, const Look& look, const Vec<T, V>& own, const Vec<T, V>& lent) const {
    if constexpr (kFamilies == kCutSet) {
      return pick(look.taken, own, lent);
    } else if constexpr (kFamilies == kConstantSet) {
      const float w = bit_cast<Constant>(load_mask(plan, i)).value;
      const Vec<T, V> blended = blend_lanes(args.loops, [&](int) { return w; }, own, lent);
      return w == 1.0f ? own : (w == 0.0f ? lent : blended);
    } else {
      if (kFamilies == kStoredSet && look.picks) return pick(look.taken, own, lent);
      float w[V];
      weights_at(i, look, w);
      return blend_lanes(args.loops, [&](int l) { return w[l]; }, own, lent);
    }
  }

  FUSEDMIX_DEVICE void weights_at(uint32_t i, const Look& look, float (&w)[V]) const {
    if constexpr (kMany<kFamilies>) {
      FUSEDMIX_UNROLL
      for (int l = 0; l < V; ++l) w[l] = look.w[l];
    } else if constexpr (kFamilies == kStoredSet) {
      if (look.picks) return two_weights(look.taken, 0.0f, 1.0f, w);
      if (is_stored(plan) && is_stored(Record{kind(i), {}})) return level_weights(plan, on, place, args.loops, stored_row(plan, i), w);
      row_weights(Uniform{uniform(i)}, place, args.loops, w);
    } else {
      weights<kFamilies>(load_mask(plan, i), place, args.loops, w);
    }
  }

  // What a sample kept of its gradient, and what another one lent of its own.
  FUSEDMIX_DEVICE Vec<T, V> gradient(uint32_t i, const Look& own, const Vec<T, V>& g, uint32_t j, const Look& lent,
                                     const Vec<T, V>& h) const {
    // The sum of two numbers is what their sum in float64, rounded to their type, is.
    if (kFamilies == kCutSet || (kFamilies == kStoredSet && own.picks && lent.picks)) {
      const Vec<T, V> a = pick(own.taken, g, {}), b = pick(lent.taken, {}, h);
      Compute<T> sum[V];
      FUSEDMIX_UNROLL
      for (int l = 0; l < V; ++l) sum[l] = to_compute(a.get(l)) + to_compute(b.get(l));
      return Vec<T, V>::of(sum);
    }
    float kept[V], given[V];
    weights_at(i, own, kept);
    weights_at(j, lent, given);
    Vec<T, V> out{};
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) out.set(l, blend_adjoint<T>(kept[l], g.get(l), given[l], h.get(l)));
    return out;
  }

 private:
  static FUSEDMIX_DEVICE void look_at(Look& found, uint32_t taken) {
    found.picks = true;
    found.taken = taken;
    found.reach = taken == 0 ? kKeep : (taken == kAllLanes<V> ? kTake : kBlend);
  }
  FUSEDMIX_DEVICE int32_t kind(uint32_t i) const { return device::load(&plan.masks[plan.shared ? 0 : i].kind); }
  // The weight of a mask that is one number.
  FUSEDMIX_DEVICE float uniform(uint32_t i) const {
    return of_kind_in<kStoredSet>(load_mask(plan, i), [&](const auto& mask) { return mask.along(place.at, -1).w; });
  }
};

FUSEDMIX_DEVICE bool writes_targets(const MixArgs& args, uint32_t threads) {
  if (device::block() < args.mix_blocks) return false;
  device::wait_for_plan();
  write_classes(args.targets, args.plan, device::block() - args.mix_blocks, threads);
  return true;
}

// Out of place: a thread has a vector of two samples, and reads their partners' too. Those of roll are the neighbours, which are
// in a cache; those of all others are too if blocks of one tile of all samples follow each other, and a tile of all samples fits
// the cache: then a block has a narrow tile of several pairs of samples. The adjoint: what a sample kept, and what it lent.
// One long function: its stages hand on arrays, which must stay in registers.
template <class T, int V, int32_t kFamilies, bool kAdjoint>
FUSEDMIX_WIDE_KERNEL(kEachThreads, (kEachBlocks<T, kFamilies, kAdjoint>)) each_kernel(FUSEDMIX_ARGS(MixArgs, args)) {
  if (writes_targets(args, kEachThreads)) return;
  const uint32_t outer = divide(device::block(), args.inner), inner = device::block() - outer * args.inner.number;
  const uint32_t tile = args.by_tile ? outer : inner, groups = (args.by_tile ? inner : outer) << (kEachLog - args.log_column);
  const uint32_t at = (tile << args.log_column) + (device::thread() & ((1u << args.log_column) - 1));
  const uint32_t first = (groups + (device::thread() >> args.log_column)) * kEachSamples;
  if (at >= args.columns || first >= args.batch) return;
  device::wait_for_plan();
  Place<V> place = place_of<V>(args.loops, args.first_column + at);
  if (args.packed) place.dst = static_cast<int64_t>(at) * static_cast<int64_t>(sizeof(T) * V);
  const Column<T, V, kFamilies> column(args, place);
  using Look = typename Column<T, V, kFamilies>::Look;
  const auto there = [&](uint32_t k) { return k == 0 || first + 1 < args.batch; };
  const auto other = [&](uint32_t i) -> uint32_t {
    if constexpr (!kAdjoint) {
      return column.partner(i);
    } else {  // whose partner it is
      uint32_t taker = column.plan.pairing == kRoll ? (i + 1 == args.batch ? 0 : i + 1) : args.batch - 1 - i;
      if (args.inverse != nullptr) taker = static_cast<uint32_t>(device::load(args.inverse + i));
      return taker;
    }
  };
  const auto wants_own = [&](const Look& look) { return !kSkips<kFamilies> || look.reach != kTake; };
  const auto wants_lent = [&](const Look& look) { return !kSkips<kFamilies> || look.reach != kKeep; };
  if constexpr (kMany<kFamilies>) {  // one after the other: the code of many families once
    FUSEDMIX_NO_UNROLL
    for (uint32_t k = 0; k < kEachSamples && there(k); ++k) {
      const uint32_t i[2] = {first + k, other(first + k)};
      Look look[2];
      if constexpr (kAdjoint) {
        column.look_at_both(i, look);
      } else {
        look[0] = look[1] = column.look(i[0], column.glimpse(i[0]));
      }
      Vec<T, V> own{}, lent{};
      if (wants_own(look[0])) own = column.load(i[0]);
      if (wants_lent(look[1])) lent = column.load(i[1]);
      if constexpr (kAdjoint) {
        column.store(i[0], column.gradient(i[0], look[0], own, i[1], look[1], lent));
      } else {
        Vec<T, V> out = look[0].reach == kTake ? lent : own;
        if (look[0].reach == kBlend) out = column.mixed(i[0], look[0], own, lent);
        column.store(i[0], out);
      }
    }
  } else {
    uint32_t i[kEachSamples], j[kEachSamples];
    Vec<T, V> own[kEachSamples], lent[kEachSamples];
    Look look[kEachSamples], of_lent[kEachSamples];
    // Of a sample that is not there no more than the mask is looked at.
    FUSEDMIX_UNROLL
    for (uint32_t k = 0; k < kEachSamples; ++k) i[k] = there(k) ? first + k : first, j[k] = other(i[k]);
    if constexpr (kSkips<kFamilies>) {
      column.look_at_both(i, look);
      if constexpr (kAdjoint) column.look_at_both(j, of_lent);
    }
    FUSEDMIX_UNROLL
    for (uint32_t k = 0; k < kEachSamples; ++k) {
      if (there(k) && wants_own(look[k])) own[k] = column.load(i[k]);
      if (there(k) && wants_lent(kAdjoint ? of_lent[k] : look[k])) lent[k] = column.load(j[k]);
    }
    FUSEDMIX_UNROLL
    for (uint32_t k = 0; k < kEachSamples; ++k) {
      if (!there(k)) break;
      if constexpr (kAdjoint) {
        column.store(i[k], column.gradient(i[k], look[k], own[k], j[k], of_lent[k], lent[k]));
      } else if constexpr (kSkips<kFamilies>) {
        Vec<T, V> out = look[k].reach == kTake ? lent[k] : own[k];
        if (look[k].reach == kBlend) out = column.mixed(i[k], look[k], own[k], lent[k]);
        column.store(i[k], out);
      } else {
        column.store(i[k], column.mixed(i[k], look[k], own[k], lent[k]));
      }
    }
  }
}

// flip, in place or not: a block has a tile of both samples of a pair.
template <class T, int V, int32_t kFamilies>
FUSEDMIX_WIDE_KERNEL(kPairThreads, (kEachBlocks<T, kFamilies>)) pairs_kernel(FUSEDMIX_ARGS(MixArgs, args)) {
  if (writes_targets(args, kPairThreads)) return;
  const uint32_t pair = divide(device::block(), args.inner), tile = device::block() - pair * args.inner.number;
  const uint32_t at = tile * kPairThreads + device::thread();
  if (at >= args.columns) return;
  const Column<T, V, kFamilies> column(args, at);
  const bool in_place = args.src == args.dst;
  const uint32_t i[2] = {pair, args.batch - 1 - pair};
  typename Column<T, V, kFamilies>::Look look[2];
  Vec<T, V> x[2];
  if constexpr (kEarly<T, V, kFamilies>) {
    FUSEDMIX_UNROLL
    for (int k = 0; k < 2; ++k) x[k] = column.load_early(i[k]);
  }
  device::wait_for_plan();
  if constexpr (kSkips<kFamilies>) column.look_at_both(i, look);
  FUSEDMIX_UNROLL
  for (int k = 0; k < 2; ++k) {
    if constexpr (kEarly<T, V, kFamilies>) break;
    const bool by_itself = !kSkips<kFamilies> || (look[k].reach != kTake && (look[k].reach != kKeep || !in_place));
    if (by_itself || look[1 - k].reach != kKeep) x[k] = column.load(i[k]);
  }
  FUSEDMIX_UNROLL
  for (int k = 0; k < 2; ++k) {
    if (k == 1 && i[1] == i[0]) break;  // its own partner
    if constexpr (kSkips<kFamilies>) {
      if (look[k].reach == kKeep && in_place) continue;
      const Vec<T, V> own = x[k], lent = x[1 - k];  // chosen of the array, they would lie in local memory
      Vec<T, V> out = look[k].reach == kTake ? lent : own;
      if (look[k].reach == kBlend) out = column.mixed(i[k], look[k], own, lent);
      column.store(i[k], out);
    } else {
      column.store(i[k], column.mixed(i[k], look[k], x[k], x[1 - k]));
    }
  }
}

// roll, in place: threads of a column share the samples, a span of neighbours each, and go from the last of it to the first: a
// sample's partner is the next that they read. Only that of the first is another thread's, and read before any is written.
template <class T, int V, int32_t kFamilies>
FUSEDMIX_WIDE_KERNEL(kRollThreads, (kRollBlocks<T, kFamilies>)) roll_kernel(FUSEDMIX_ARGS(MixArgs, args)) {
  if (writes_targets(args, kRollThreads)) return;
  constexpr int kAhead = kFamilies == kStoredSet ? 2 : kAheadOf<kFamilies>;  // here there are registers for it
  const auto batch = static_cast<int32_t>(args.batch), spans = kRollThreads >> args.log_column;
  const int32_t span = (batch + spans - 1) / spans;
  const int32_t first = static_cast<int32_t>(device::thread() >> args.log_column) * span;
  const int32_t stop = first + span < batch ? first + span : batch;
  const uint32_t at = (device::block() << args.log_column) + (device::thread() & ((1u << args.log_column) - 1));
  const bool active = at < args.columns && first < stop;
  device::wait_for_plan();
  const Column<T, V, kFamilies, true> column(args, active ? at : 0);
  using Look = typename Column<T, V, kFamilies, true>::Look;
  Vec<T, V> edge{}, own{};
  if (active) {
    edge = column.load(first == 0 ? batch - 1 : first - 1);
    if constexpr (!kSkips<kFamilies>) own = column.load(stop - 1);
  }
  device::sync();
  if (!active) return;
  // Where masks are looked at, the loop begins with one sample beyond the span, of which nothing is wanted: so the last sample of
  // the span is looked at as all others are.
  Look look{};
  for (int32_t top = kSkips<kFamilies> ? stop : stop - 1; top >= first; top -= kAhead) {
    Vec<T, V> lent[kAhead];
    Look next[kAhead];
    if constexpr (kSkips<kFamilies>) {
      Glimpse seen[kAhead];
      FUSEDMIX_UNROLL
      for (int k = 0; k < kAhead; ++k) seen[k] = top - k > first ? column.glimpse(top - k - 1) : Glimpse{};
      FUSEDMIX_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        next[k] = k == 0 ? look : next[k - 1];
        if (top - k > first && (!column.one_look() || top - k == stop)) next[k] = column.look(top - k - 1, seen[k]);
      }
    }
    FUSEDMIX_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      bool wanted = top - k > first;
      if constexpr (kSkips<kFamilies>) wanted = wanted && ((k == 0 ? look : next[k - 1]).reach != kKeep || next[k].reach == kBlend);
      if (wanted) lent[k] = column.load(top - k - 1);
    }
    FUSEDMIX_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      const int32_t i = top - k;
      if (i < first) break;
      if (i == first) lent[k] = edge;
      if constexpr (kSkips<kFamilies>) {
        if (look.reach == kTake) column.store(i, lent[k]);
        if (look.reach == kBlend) column.store(i, column.mixed(i, look, own, lent[k]));
        look = next[k];
      } else {
        column.store(i, column.mixed(i, look, own, lent[k]));
      }
      own = lent[k];
    }
  }
}

// In place, any partners: a block has a column of all samples. Where masks leave nothing out it loads them all into shared
// memory, waits, and mixes from there. Else it loads what a sample and its partner need (the partner's has been read by another
// thread of the block, and is in a cache), and results wait in shared memory until every thread has what it needs. One long
// function: its stages hand on arrays, which must stay in registers.
template <class T, int V, int32_t kFamilies>
FUSEDMIX_WIDE_KERNEL(kTileThreads, (kTileBlocks<T, kFamilies>)) tile_kernel(FUSEDMIX_ARGS(MixArgs, args)) {
  using Raw = RawVec<T, V>;
  FUSEDMIX_DYNAMIC_SHARED(Raw, shared);
  if (writes_targets(args, kTileThreads)) return;
  const auto batch = static_cast<int32_t>(args.batch), step = kTileThreads >> args.log_column;
  const int32_t first = static_cast<int32_t>(device::thread() >> args.log_column);
  const uint32_t lane = device::thread() & ((1u << args.log_column) - 1), at = (device::block() << args.log_column) + lane;
  const bool active = at < args.columns;
  const Column<T, V, kFamilies, true> column(args, active ? at : 0);
  using Look = typename Column<T, V, kFamilies, true>::Look;
  const auto place = [&](uint32_t i) { return static_cast<int32_t>((i << args.log_column) + lane); };
  const int32_t end = active ? batch : 0;
  if constexpr (!kEarly<T, V, kFamilies>) device::wait_for_plan();
  uint32_t waits = 0;  // bit n: the thread's n-th sample has a result
  if constexpr (!kSkips<kFamilies>) {
    FUSEDMIX_UNROLL_4
    for (int32_t i = first; i < end; i += step) {
      device::copy_to_shared(shared, place(i), reinterpret_cast<const Raw*>(column.source(i)));
    }
    if constexpr (kEarly<T, V, kFamilies>) device::wait_for_plan();
    device::copied();
  } else {
    constexpr int kAhead = kAheadOf<kFamilies>;
    Look once{};
    for (int32_t base = first, turn = 0; base < end; base += kAhead * step, turn += kAhead) {
      Vec<T, V> own[kAhead], lent[kAhead];
      Look look[kAhead];
      Glimpse seen[kAhead];
      FUSEDMIX_UNROLL
      for (int k = 0; k < kAhead; ++k) seen[k] = base + k * step < end ? column.glimpse(base + k * step) : Glimpse{};
      FUSEDMIX_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        look[k] = once;
        if (base + k * step < end && (!column.one_look() || turn + k == 0)) look[k] = column.look(base + k * step, seen[k]);
        if (k == 0) once = look[0];
        if (base + k * step >= end) look[k].reach = kKeep;
      }
      FUSEDMIX_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        const uint32_t i = base + k * step;
        if (look[k].reach != kKeep) lent[k] = column.load(column.partner(i));
        if (look[k].reach == kBlend) own[k] = column.load(i);
      }
      FUSEDMIX_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        const uint32_t i = base + k * step;
        if (look[k].reach == kKeep) continue;
        if (look[k].reach == kBlend) lent[k] = column.mixed(i, look[k], own[k], lent[k]);
        shared[place(i)] = to_raw(lent[k]);
        waits |= 1u << (turn + k);
      }
    }
  }
  device::sync();
  if constexpr (kSkips<kFamilies>) {
    FUSEDMIX_NO_UNROLL
    for (int32_t base = first, turn = 0; base < end; base += kAfter<T, kFamilies> * step, turn += kAfter<T, kFamilies>) {
      FUSEDMIX_UNROLL
      for (int k = 0; k < kAfter<T, kFamilies>; ++k) {
        const uint32_t i = base + k * step;
        if ((waits >> (turn + k) & 1u) != 0) column.store(i, from_raw<T, V>(device::from_shared(shared, place(i))));
      }
    }
  } else {
    for (int32_t base = first; base < end; base += kAfter<T, kFamilies> * step) {
      FUSEDMIX_UNROLL
      for (int k = 0; k < kAfter<T, kFamilies>; ++k) {
        const int32_t i = base + k * step;
        if (i >= end) break;
        const auto own = from_raw<T, V>(device::from_shared(shared, place(i)));
        const auto lent = from_raw<T, V>(device::from_shared(shared, place(column.partner(i))));
        column.store(i, column.mixed(i, Look{}, own, lent));
      }
    }
  }
}

// ---- launches ----

struct Launch {
  const MixArgs& args;
  Way way;
  bool adjoint;
  int64_t blocks, shared_bytes;
  bool after_sampler;  // and right after it
  void* stream;

  template <class Kernel>
  int start(Kernel kernel, int threads, int64_t shared = 0) const {
    return after_sampler ? device::launch_dependent(kernel, blocks, threads, stream, args, shared)
                         : device::launch(kernel, blocks, threads, stream, args, shared);
  }
};

template <class T, int V, int32_t kFamilies>
int launch_way(const Launch& l) {
  switch (l.way) {
    case Way::kPairs: return l.start(pairs_kernel<T, V, kFamilies>, kPairThreads);
    case Way::kRoll: return l.start(roll_kernel<T, V, kFamilies>, kRollThreads);
    case Way::kTile: return l.start(tile_kernel<T, V, kFamilies>, kTileThreads, l.shared_bytes);
    default: break;
  }
  if constexpr (sizeof(T) > 1) {
    if (l.adjoint) return l.start(each_kernel<T, V, kFamilies, true>, kEachThreads);
  }
  return l.start(each_kernel<T, V, kFamilies, false>, kEachThreads);
}

// Whole vectors of 16 bytes have a kernel for each set of families, but for all at once of bytes, which would be as long as three;
// all others have one for all.
template <class T, int V>
int launch_set(const Launch& l) {
  if constexpr (sizeof(T) * V == 16 && sizeof(T) < 8) {
    const int32_t families = l.args.plan.view.families;
    if (within(families, kConstantSet)) return launch_way<T, V, kConstantSet>(l);
    if (within(families, kCutSet)) return launch_way<T, V, kCutSet>(l);
    if (within(families, kBoxSet)) return launch_way<T, V, kBoxSet>(l);
    if (within(families, kGaussianSet)) return launch_way<T, V, kGaussianSet>(l);
    if (within(families, kFormulaSet)) return launch_way<T, V, kFormulaSet>(l);
    if (within(families, kStoredSet)) return launch_way<T, V, kStoredSet>(l);
  }
  if constexpr (V < 16) return launch_way<T, V, kAnySet>(l);
  no_kernel();
}

// Defined by mix_float.cu and its like for each width that the type has.
template <class T>
int launch_mix(const Launch& launch, int width);
// Integers of 16 bits, with and without a sign, have one kernel, out of place, for vectors of 16 bytes and one for elements: each
// of the others' would be some hundred kilobytes.
template <>
int launch_mix<uint16_t>(const Launch& launch, int width);

}  // namespace fusedmix::cuda
