// Mixes a batch. The kernels, one for each way through it (kernels.h); mix_<type>.cu compiles them, for sets of families of
// masks, of which a kernel has the code and no more; mix.cu launches them.
//
// A thread moves vectors of 16 bytes, and some of them are under way before the first is used: a multiprocessor of an H100 needs
// about 40 KB in flight. What bounds a kernel besides is the number of instructions a vector: 300 are issued in the time that
// memory takes to move one.
//
// In place every thread reads what it needs of a column (some vectors of every sample, which lie above each other) before any
// thread writes any of it: the block owns the column, and waits once in between.
#pragma once

#include <stdexcept>

#include "targets.h"
#include "vector.h"

namespace fusedmix::cuda {

struct MixArgs {
  const char* src;
  char* dst;
  Loops loops;
  int32_t batch;
  const int32_t* inverse;  // of the adjoint, where no formula has it
  bool by_tile;            // kEach
  Divisor inner;           // of blocks, the number of those that follow each other: tiles of a sample, or groups of samples
  uint32_t first_column, columns;  // that this launch mixes
  int64_t packed_batch;    // not 0: samples of dst lie so many bytes apart, and have only those columns, packed
  int32_t log_column;      // of the vectors of a sample that a block has
  int64_t mix_blocks;
  ClassTargets targets;
  LaunchPlan plan;
};
static_assert(sizeof(MixArgs) <= 4096, "kernel arguments");

constexpr int kEachSamples = 2;

// Sets whose masks leave whole vectors as they are, or replace them: then less is read.
template <int32_t kFamilies>
constexpr bool kSkips = kFamilies == kCutSet || kFamilies == kStoredSet || kFamilies == kAnySet;

// Samples of a column that a thread has loads of under way.
template <int32_t kFamilies>
constexpr int kAheadOf = kFamilies == kCutSet ? 2 : (kSkips<kFamilies> ? 1 : 4);

// Samples that a thread of kTile mixes at a time, after all are in shared memory. Not by unrolling a loop: on GPUs from sm_100 on
// nvcc then has code for a third, which is what is left over.
constexpr int kAfter = 2;

// Blocks that are to fit a multiprocessor: the more there are, the fewer registers each has. Sixteen bytes take more of them than
// four floats, and all families more than one. Of kTile two blocks are worth more than what then lies on the stack.
template <class T, int32_t kFamilies, bool kAdjoint = false>
constexpr int kEachBlocks = kFamilies == kAnySet ? (kAdjoint ? 2 : 3) : (sizeof(T) == 1 ? 3 : 4);
template <class T, int32_t kFamilies>
constexpr int kRollBlocks = kFamilies == kAnySet || sizeof(T) == 1 ? 2 : 3;
template <class T, int32_t kFamilies>
constexpr int kTileBlocks = kFamilies == kConstantSet ? 3 : (kFamilies == kStoredSet && sizeof(T) == 1 ? 1 : 2);

// Right after a sampler a launch may begin before the plan is there (device::wait_for_plan). What a kernel loads whatever the plan
// says, it then loads before: only images, and past the caches that are nearer than the L2 cache.
template <class T, int V, int32_t kFamilies>
constexpr bool kEarly = !kSkips<kFamilies> && sizeof(T) * V == 16;

// A thread's vector of every sample, and what masks do to it.
template <class T, int V, int32_t kFamilies>
struct Column {
  static constexpr bool kHasStored = (kFamilies & (kStored | kLevels)) != 0;
  const MixArgs& args;
  const PlanView plan;
  const Place<V> place;
  OnPixels on;

  // What sample i's mask does to its vector; the lanes that a box of kCutSet holds; the bits of a mask that is stored.
  struct Look {
    Reach reach;
    LaneRange cut;
    uint32_t ones;
    bool stored;
  };

  FUSEDMIX_DEVICE Column(const MixArgs& given, uint32_t column)
      : args(given), plan(view_of(given.plan)), place(place_of<V>(given.loops, column)), on{} {
    if constexpr (kHasStored) {
      if (is_stored(plan)) on = on_pixels<V>(plan.pixels, place, args.loops.row_axis);
    }
  }

  FUSEDMIX_DEVICE const char* source(int64_t i) const { return args.src + i * args.loops.src_batch + place.src; }
  FUSEDMIX_DEVICE char* target(int64_t i) const { return args.dst + i * args.loops.dst_batch + place.dst; }
  FUSEDMIX_DEVICE Vec<T, V> load(int64_t i) const { return load_vector<T, V>(source(i)); }
  FUSEDMIX_DEVICE Vec<T, V> load_early(int64_t i) const {
    return from_raw<T, V>(device::load_far(reinterpret_cast<const RawVec<T, V>*>(source(i))));
  }
  FUSEDMIX_DEVICE int64_t partner(int64_t i) const { return partner_of(plan, i, args.batch); }

  // Whether a look at one sample is one at all.
  FUSEDMIX_DEVICE bool one_look() const { return kFamilies == kCutSet && plan.shared; }
  // In two steps, so that loads of several samples are under way together.
  FUSEDMIX_DEVICE Glimpse glimpse(int64_t i) const {
    if constexpr (kHasStored) {
      if (is_stored(plan)) return cuda::glimpse(plan, on, i);
    }
    return {};
  }
  FUSEDMIX_DEVICE Look look(int64_t i, const Glimpse& seen) const {
    if constexpr (kHasStored) {
      if (is_stored(plan) && is_stored(Record{seen.kind, {}})) {
        const uint32_t ones = plan.pixels.levels != nullptr ? 0 : lanes_of<V>(plan, on, place, i, seen.word);
        return {stored_reach<V>(plan, ones), {}, ones, true};
      }
    }
    Look found{};
    of_kind_in<kFamilies>(load_mask(plan, i), [&](const auto& mask) {
      const auto row = mask.along(place.at, args.loops.row_axis);
      if constexpr (kFamilies == kCutSet) {
        found.cut = lanes_in(row, place, args.loops);
        found.reach = found.cut.holds_all(V) ? kTake : (found.cut.holds_none(V) ? kKeep : kBlend);
      } else {
        found.reach = reach_of_row(row, place, args.loops);
      }
    });
    return found;
  }

  FUSEDMIX_DEVICE Vec<T, V> mixed(int64_t i, const Look& look, const Vec<T, V>& own, const Vec<T, V>& lent) const {
    if constexpr (kFamilies == kCutSet) {
      return pick(look.cut, own, lent);
    } else if constexpr (kFamilies == kConstantSet) {
      const float w = bit_cast<Constant>(load_mask(plan, i)).value;
      const Vec<T, V> blended = blend_lanes([&](int) { return w; }, own, lent);
      return w == 1.0f ? own : (w == 0.0f ? lent : blended);
    } else if constexpr (kFamilies == kBoxSet) {
      const Box::Row row = bit_cast<Box>(load_mask(plan, i)).along(place.at, args.loops.row_axis);
      const LaneRange in = lanes_in(row, place, args.loops);
      return blend_lanes([&](int l) { return in.holds(l) ? row.inner : row.outer; }, own, lent);
    } else {
      float w[V];
      weights_at(i, look, w);
      return blend_lanes([&](int l) { return w[l]; }, own, lent);
    }
  }

  FUSEDMIX_DEVICE void weights_at(int64_t i, const Look& look, float (&w)[V]) const {
    if constexpr (kHasStored) {
      if (look.stored) return stored_weights(plan, on, place, args.loops, i, look.ones, w);
    }
    weights<kFamilies>(load_mask(plan, i), place, args.loops, w);
  }
};

FUSEDMIX_DEVICE bool writes_targets(const MixArgs& args, int32_t threads) {
  if (device::block() < args.mix_blocks) return false;
  device::wait_for_plan();
  write_classes(args.targets, args.plan, static_cast<int32_t>(device::block() - args.mix_blocks), threads);
  return true;
}

// Out of place: a thread has a vector of two samples, and reads their partners' too. Those of roll are the neighbours, which are
// in a cache; those of all others are too if blocks of one tile of all samples follow each other, and a tile of all samples fits
// the cache: then a block has a narrow tile of several pairs of samples. The adjoint: what a sample kept, and what it lent.
template <class T, int V, int32_t kFamilies, bool kAdjoint>
FUSEDMIX_WIDE_KERNEL(kEachThreads, (kEachBlocks<T, kFamilies, kAdjoint>)) each_kernel(FUSEDMIX_ARGS(MixArgs, args)) {
  if (writes_targets(args, kEachThreads)) return;
  const uint32_t outer = divide(device::block(), args.inner), inner = device::block() - outer * args.inner.number;
  const uint32_t tile = args.by_tile ? outer : inner, groups = (args.by_tile ? inner : outer) << (kEachLog - args.log_column);
  const uint32_t at = (tile << args.log_column) + (device::thread() & ((1u << args.log_column) - 1));
  const uint32_t group = groups + (device::thread() >> args.log_column);
  if (at >= args.columns || static_cast<int64_t>(group) * kEachSamples >= args.batch) return;
  device::wait_for_plan();
  const Column<T, V, kFamilies> column(args, args.first_column + at);
  using Look = typename Column<T, V, kFamilies>::Look;
  const auto there = [&](int k) { return k == 0 || static_cast<int64_t>(group) * kEachSamples + k < args.batch; };
  // Of one that is not there the mask is looked at, and no more.
  const auto sample = [&](int k) { return there(k) ? static_cast<int64_t>(group) * kEachSamples + k : args.batch - 1; };
  const auto store = [&](int k, const Vec<T, V>& out) {
    if (!there(k)) return;
    char* to = column.target(sample(k));
    if (args.packed_batch != 0) to = args.dst + sample(k) * args.packed_batch + static_cast<int64_t>(at) * static_cast<int64_t>(sizeof(T) * V);
    store_vector<T, V>(to, out);
  };
  int64_t i[kEachSamples], j[kEachSamples];
  Vec<T, V> own[kEachSamples], lent[kEachSamples];
  if constexpr (kAdjoint) {
    const auto taker = [&](int64_t of) -> int64_t {  // whose partner it is
      if (column.plan.pairing == kRoll) return of + 1 == args.batch ? 0 : of + 1;
      return args.inverse == nullptr ? args.batch - 1 - of : device::load(args.inverse + of);
    };
    const auto gradient = [&](int64_t of, const Vec<T, V>& g, int64_t by, const Vec<T, V>& h) {
      const auto looked = [&](int64_t mask) {  // at masks that are stored
        return Column<T, V, kFamilies>::kHasStored ? column.look(mask, column.glimpse(mask)) : Look{};
      };
      float kept[V], given[V];
      column.weights_at(of, looked(of), kept);
      column.weights_at(by, looked(by), given);
      Vec<T, V> out{};
      FUSEDMIX_UNROLL
      for (int l = 0; l < V; ++l) out.set(l, blend_adjoint<T>(kept[l], g.get(l), given[l], h.get(l)));
      return out;
    };
    if constexpr (kFamilies == kAnySet) {  // one after the other: the code of all families twice, not four times
      FUSEDMIX_NO_UNROLL
      for (int k = 0; k < kEachSamples && there(k); ++k) {
        const int64_t of = sample(k), by = taker(of);
        store(k, gradient(of, column.load(of), by, column.load(by)));
      }
    } else {
      FUSEDMIX_UNROLL
      for (int k = 0; k < kEachSamples; ++k) i[k] = sample(k), j[k] = taker(i[k]);
      FUSEDMIX_UNROLL
      for (int k = 0; k < kEachSamples; ++k) {
        if (there(k)) own[k] = column.load(i[k]), lent[k] = column.load(j[k]);
      }
      FUSEDMIX_UNROLL
      for (int k = 0; k < kEachSamples; ++k) store(k, gradient(i[k], own[k], j[k], lent[k]));
    }
  } else {
    FUSEDMIX_UNROLL
    for (int k = 0; k < kEachSamples; ++k) i[k] = sample(k), j[k] = column.partner(i[k]);
    Look look[kEachSamples];
    if constexpr (kSkips<kFamilies>) {
      Glimpse seen[kEachSamples];
      FUSEDMIX_UNROLL
      for (int k = 0; k < kEachSamples; ++k) seen[k] = column.glimpse(i[k]);
      FUSEDMIX_UNROLL
      for (int k = 0; k < kEachSamples; ++k) look[k] = k > 0 && column.one_look() ? look[0] : column.look(i[k], seen[k]);
    }
    FUSEDMIX_UNROLL
    for (int k = 0; k < kEachSamples; ++k) {
      if (there(k) && (!kSkips<kFamilies> || look[k].reach != kTake)) own[k] = column.load(i[k]);
      if (there(k) && (!kSkips<kFamilies> || look[k].reach != kKeep)) lent[k] = column.load(j[k]);
    }
    FUSEDMIX_UNROLL
    for (int k = 0; k < kEachSamples; ++k) {
      if constexpr (kSkips<kFamilies>) {
        Vec<T, V> out = look[k].reach == kTake ? lent[k] : own[k];
        if (look[k].reach == kBlend) out = column.mixed(i[k], look[k], own[k], lent[k]);
        store(k, out);
      } else {
        store(k, column.mixed(i[k], look[k], own[k], lent[k]));
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
  const int64_t i[2] = {pair, args.batch - 1 - static_cast<int64_t>(pair)};
  typename Column<T, V, kFamilies>::Look look[2];
  Vec<T, V> x[2];
  if constexpr (kEarly<T, V, kFamilies>) {
    FUSEDMIX_UNROLL
    for (int k = 0; k < 2; ++k) x[k] = column.load_early(i[k]);
  }
  device::wait_for_plan();
  if constexpr (kSkips<kFamilies>) {
    const Glimpse seen[2] = {column.glimpse(i[0]), column.glimpse(i[1])};
    FUSEDMIX_UNROLL
    for (int k = 0; k < 2; ++k) look[k] = k > 0 && column.one_look() ? look[0] : column.look(i[k], seen[k]);
  }
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
      Vec<T, V> out = look[k].reach == kTake ? x[1 - k] : x[k];
      if (look[k].reach == kBlend) out = column.mixed(i[k], look[k], x[k], x[1 - k]);
      store_vector<T, V>(column.target(i[k]), out);
    } else {
      store_vector<T, V>(column.target(i[k]), column.mixed(i[k], look[k], x[k], x[1 - k]));
    }
  }
}

// roll, in place: threads of a column share the samples, a span of neighbours each, and go from the last of it to the first: a
// sample's partner is the next that they read. Only that of the first is another thread's, and read before any is written.
template <class T, int V, int32_t kFamilies>
FUSEDMIX_WIDE_KERNEL(kRollThreads, (kRollBlocks<T, kFamilies>)) roll_kernel(FUSEDMIX_ARGS(MixArgs, args)) {
  if (writes_targets(args, kRollThreads)) return;
  constexpr int kAhead = kFamilies == kStoredSet ? 2 : kAheadOf<kFamilies>;  // here there are registers for it
  const int32_t batch = args.batch, spans = kRollThreads >> args.log_column;
  const int32_t span = (batch + spans - 1) / spans;
  const int32_t first = static_cast<int32_t>(device::thread() >> args.log_column) * span;
  const int32_t stop = first + span < batch ? first + span : batch;
  const uint32_t at = (device::block() << args.log_column) + (device::thread() & ((1u << args.log_column) - 1));
  const bool active = at < args.columns && first < stop;
  device::wait_for_plan();
  const Column<T, V, kFamilies> column(args, active ? at : 0);
  using Look = typename Column<T, V, kFamilies>::Look;
  Vec<T, V> edge{}, own{};
  Look look{};
  if (active) {
    edge = column.load(first == 0 ? batch - 1 : first - 1);
    if constexpr (kSkips<kFamilies>) look = column.look(stop - 1, column.glimpse(stop - 1));
    own = column.load(stop - 1);
  }
  device::sync();
  if (!active) return;
  for (int32_t top = stop - 1; top >= first; top -= kAhead) {
    Vec<T, V> lent[kAhead];
    Look next[kAhead];
    if constexpr (kSkips<kFamilies>) {
      Glimpse seen[kAhead];
      FUSEDMIX_UNROLL
      for (int k = 0; k < kAhead; ++k) seen[k] = top - k > first ? column.glimpse(top - k - 1) : Glimpse{};
      FUSEDMIX_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        next[k] = look;
        if (!column.one_look() && top - k > first) next[k] = column.look(top - k - 1, seen[k]);
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
        if (look.reach == kTake) store_vector<T, V>(column.target(i), lent[k]);
        if (look.reach == kBlend) store_vector<T, V>(column.target(i), column.mixed(i, look, own, lent[k]));
        look = next[k];
      } else {
        store_vector<T, V>(column.target(i), column.mixed(i, look, own, lent[k]));
      }
      own = lent[k];
    }
  }
}

// In place, any partners: a block has a column of all samples. Where masks leave nothing out it loads them all into shared
// memory, waits, and mixes from there. Else it loads what a sample and its partner need (the partner's has been read by another
// thread of the block, and is in a cache), and results wait in shared memory until every thread has what it needs.
template <class T, int V, int32_t kFamilies>
FUSEDMIX_WIDE_KERNEL(kTileThreads, (kTileBlocks<T, kFamilies>)) tile_kernel(FUSEDMIX_ARGS(MixArgs, args)) {
  using Raw = RawVec<T, V>;
  FUSEDMIX_DYNAMIC_SHARED(Raw, shared);
  if (writes_targets(args, kTileThreads)) return;
  const int32_t batch = args.batch, step = kTileThreads >> args.log_column;
  const int32_t first = static_cast<int32_t>(device::thread() >> args.log_column);
  const uint32_t lane = device::thread() & ((1u << args.log_column) - 1), at = (device::block() << args.log_column) + lane;
  const bool active = at < args.columns;
  const Column<T, V, kFamilies> column(args, active ? at : 0);
  using Look = typename Column<T, V, kFamilies>::Look;
  const auto place = [&](int64_t i) { return static_cast<int32_t>(i << args.log_column) + static_cast<int32_t>(lane); };
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
    const Look once = column.one_look() ? column.look(0, {}) : Look{};
    for (int32_t base = first, turn = 0; base < end; base += kAhead * step, turn += kAhead) {
      Vec<T, V> own[kAhead], lent[kAhead];
      Look look[kAhead];
      Glimpse seen[kAhead];
      FUSEDMIX_UNROLL
      for (int k = 0; k < kAhead; ++k) seen[k] = base + k * step < end ? column.glimpse(base + k * step) : Glimpse{};
      FUSEDMIX_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        look[k] = once;
        if (base + k * step >= end) look[k].reach = kKeep;
        if (base + k * step < end && !column.one_look()) look[k] = column.look(base + k * step, seen[k]);
      }
      FUSEDMIX_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        const int64_t i = base + k * step;
        if (look[k].reach != kKeep) lent[k] = column.load(column.partner(i));
        if (look[k].reach == kBlend) own[k] = column.load(i);
      }
      FUSEDMIX_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        const int64_t i = base + k * step;
        if (look[k].reach == kKeep) continue;
        if (look[k].reach == kBlend) lent[k] = column.mixed(i, look[k], own[k], lent[k]);
        shared[place(i)] = to_raw(lent[k]);
        waits |= 1u << (turn + k);
      }
    }
  }
  device::sync();
  if constexpr (kSkips<kFamilies>) {
    FUSEDMIX_UNROLL_2
    for (int32_t i = first, turn = 0; i < end; i += step, ++turn) {
      if ((waits >> turn & 1u) != 0) store_vector<T, V>(column.target(i), from_raw<T, V>(device::from_shared(shared, place(i))));
    }
  } else {
    for (int32_t base = first; base < end; base += kAfter * step) {
      FUSEDMIX_UNROLL
      for (int k = 0; k < kAfter; ++k) {
        const int32_t i = base + k * step;
        if (i >= end) break;
        const auto own = from_raw<T, V>(device::from_shared(shared, place(i)));
        const auto lent = from_raw<T, V>(device::from_shared(shared, place(column.partner(i))));
        store_vector<T, V>(column.target(i), column.mixed(i, Look{}, own, lent));
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
    if (within(families, kStoredSet)) return launch_way<T, V, kStoredSet>(l);
  }
  if constexpr (V < 16) return launch_way<T, V, kAnySet>(l);
  throw std::logic_error("no kernel mixes 16 bytes by all families of masks");
}

// Defined by mix_<type>.cu for each width that the type has.
template <class T>
int launch_mix(const Launch& launch, int width);

}  // namespace fusedmix::cuda
