// Mixes a batch: images and targets in one launch. The kernel; mix_<type>.cu compiles it for a type, mix.cu launches it.
//
// A block owns kThreads vectors of every sample (a tile) in one unit of the batch; walk.h has the order in which it goes
// through the samples. kAhead loads are under way before the first is used: at 16 bytes a thread and 128 threads a block
// that is 16 KiB, and three blocks on a multiprocessor have the 48 KiB in flight that an H200 needs.
#pragma once

#include "../include/fusedmix/blend.h"
#include "stage.h"
#include "targets.h"
#include "walk.h"

namespace fusedmix::cuda {

struct MixArgs {
  const char* src;
  char* dst;
  const char* staged;  // (heads, columns) vectors, or null: heads are as they were in src
  Loops loops;
  WalkArgs walk;
  int64_t mix_blocks;
  int64_t limit;  // samples, or pairs, that units divide
  Targets targets;
  LaunchPlan plan;
};
static_assert(sizeof(MixArgs) <= 4096, "kernel arguments");

template <class T>
constexpr int kAhead = sizeof(T) == 1 ? 4 : 8;  // 16 bytes of uint8 are 16 blends: 8 times that are 260 KB of code

// kPixels: the plan may have masks that are stored. Apart from the other kernel, which none of that may cost a register.
template <class T, int V, bool kAdjoint, bool kPixels>
FUSEDMIX_KERNEL(kThreads) mix_kernel(FUSEDMIX_ARGS(MixArgs, args)) {
  FUSEDMIX_SHARED(uint8_t, starts, kThreads);
  const PlanView plan = view_of(args.plan);
  if (device::block() >= args.mix_blocks) return write_targets(args.targets, args.plan, device::block() - args.mix_blocks);
  const int64_t unit = device::block() / args.walk.tiles, tile = device::block() % args.walk.tiles;
  const int64_t column = tile * kThreads + device::thread();
  const bool active = column < args.loops.columns;
  const Place<V> place = place_of<V>(args.loops, active ? column : 0);
  const int32_t axis = args.loops.row_axis;
  const bool in_place = args.src == args.dst;
  constexpr int64_t kSize = sizeof(T);

  const auto source = [&](int64_t i) { return args.src + (i * args.loops.src_batch + place.src) * kSize; };
  const auto target = [&](int64_t i) { return args.dst + (i * args.loops.dst_batch + place.dst) * kSize; };
  const auto head = [&](int64_t i) {
    if (args.staged == nullptr) return source(i);
    return args.staged + (i / args.walk.span * args.loops.columns + column) * (V * kSize);
  };

  OnPixels on{};
  if constexpr (kPixels) on = on_pixels<V>(plan.pixels, place, axis);
  // One mask for the batch: evaluated once. Stored ones are not, which would take the registers of another vector.
  const bool once = !kPixels && plan.shared;
  Record one{};
  Reach one_reach = kBlend;
  float one_w[V] = {};
  if (once) {
    one = load_mask(plan, 0);
    one_reach = reach<V>(one, place, axis);
    weights<V>(one, place, axis, one_w);
  }
  const auto reach_at = [&](int64_t i, const Glimpse& seen, uint32_t& lanes) {
    if constexpr (kPixels) {
      lanes = 0;
      if (is_stored(Record{seen.kind, {}})) return stored_reach<V>(plan, on, place, i, seen.word, lanes);
    }
    return once ? one_reach : reach<V>(load_mask(plan, i), place, axis);
  };
  const auto weights_at = [&](int64_t i, uint32_t lanes, float(&w)[V]) {
    if (once) {
      FUSEDMIX_UNROLL
      for (int l = 0; l < V; ++l) w[l] = one_w[l];
    } else {
      if constexpr (kPixels) {
        if ((lanes & kIsStored) != 0) return stored_weights<V>(plan, on, place, i, lanes, w);
      }
      weights<V>(load_mask(plan, i), place, axis, w);
    }
  };

  const int64_t end = unit * args.walk.span + args.walk.span < args.limit ? (unit + 1) * args.walk.span : args.limit;
  for (int64_t base = unit * args.walk.span; base < end; base += kThreads) {
    const int32_t count = static_cast<int32_t>(end - base < kThreads ? end - base : kThreads);
    device::sync();
    const int32_t mine = static_cast<int32_t>(device::thread());
    starts[mine] = static_cast<uint8_t>(mine < count && begins(args.walk, plan, base + mine) ? 1 : 0);
    device::sync();
    if (!active) continue;

    Walker<decltype(starts)> walker{args.walk, plan, starts, base, count};
    // What is loaded of a sample depends on the steps around it, and is decided when the loads are issued...
    Reach last_reach = kKeep, first_reach = kKeep;
    bool first_held = false;
    // ...and used later, by the second loop: the sample carried, the first of its cycle, and their values.
    int32_t carried = 0;
    Reach carried_reach = kKeep;
    uint32_t carried_lanes = 0;
    Vec<T, V> own{}, first{};

    for (bool more = true; more;) {
      constexpr int kSteps = kAhead<T>;
      Visit visit[kSteps];
      Reach reached[kSteps];
      Glimpse seen[kSteps];
      uint32_t lanes[kSteps];
      Vec<T, V> loaded[kSteps];
      if constexpr (kPixels) {
        // Which images are loaded depends on masks that are in memory themselves: these all at once, not one after the other.
        FUSEDMIX_UNROLL
        for (int u = 0; u < kSteps; ++u) {
          visit[u] = more ? walker.step() : Visit{Visit::kNone, 0};
          more = visit[u].kind != Visit::kNone;
          // The mask of a sample where a walk ends has been seen, or is another block's.
          const bool ends = visit[u].kind == Visit::kClose || visit[u].kind == Visit::kStaged;
          seen[u] = more && (kAdjoint || !ends) ? glimpse(plan, on, visit[u].sample) : Glimpse{};
        }
      }
      FUSEDMIX_UNROLL
      for (int u = 0; u < kSteps; ++u) {
        if constexpr (!kPixels) visit[u] = more ? walker.step() : Visit{Visit::kNone, 0};
        const int32_t kind = visit[u].kind;
        const int64_t i = visit[u].sample;
        if constexpr (!kPixels) more = kind != Visit::kNone;
        reached[u] = kBlend;
        lanes[u] = 0;
        if (kind == Visit::kNone) continue;
        bool wanted = true;
        if constexpr (!kAdjoint) {
          const bool partner = kind != Visit::kBegin && last_reach != kKeep;
          if (kind == Visit::kBegin || kind == Visit::kNext) {
            reached[u] = reach_at(i, seen[u], lanes[u]);
            const bool itself = in_place ? reached[u] == kBlend : reached[u] != kTake;
            wanted = partner || itself;
          } else {
            wanted = partner;
          }
          if (kind == Visit::kBegin) {
            // In place the first sample of a cycle is lost to the last one unless it is kept, or left as it is.
            wanted = wanted || (in_place && reached[u] != kKeep);
            first_reach = reached[u];
            first_held = wanted;
          }
          if (kind == Visit::kClose) {
            wanted = wanted && !first_held;
            if (wanted) visit[u].kind = Visit::kReload;
          }
          last_reach = reached[u];
        } else {
          wanted = kind != Visit::kClose;
          if constexpr (kPixels) reach_at(i, seen[u], lanes[u]);
        }
        if (wanted) loaded[u] = load_vector<T, V>(kind == Visit::kStaged ? head(i) : source(i));
      }

      FUSEDMIX_UNROLL
      for (int u = 0; u < kSteps; ++u) {
        const int32_t kind = visit[u].kind;
        if (kind == Visit::kNone) continue;
        if (kind == Visit::kBegin) {
          carried = visit[u].sample;
          carried_reach = reached[u];
          carried_lanes = lanes[u];
          own = first = loaded[u];
          continue;
        }
        const Vec<T, V> partner = kind == Visit::kClose ? first : loaded[u];
        if constexpr (kAdjoint) {
          // The gradient of the sample visited: its own, and what the sample before it lent.
          float kept[V], lent[V];
          weights_at(visit[u].sample, lanes[u], kept);
          weights_at(carried, carried_lanes, lent);
          Vec<T, V> out{};
          FUSEDMIX_UNROLL
          for (int l = 0; l < V; ++l) out.set(l, blend_adjoint<T>(kept[l], partner.get(l), lent[l], own.get(l)));
          store_vector<T, V>(target(visit[u].sample), out);
        } else {
          if (carried_reach == kKeep) {
            if (!in_place) store_vector<T, V>(target(carried), own);
          } else {
            Vec<T, V> out = partner;
            if (carried_reach != kTake) {
              float w[V];
              weights_at(carried, carried_lanes, w);
              out = Vec<T, V>{};
              FUSEDMIX_UNROLL
              for (int l = 0; l < V; ++l) out.set(l, blend<T>(w[l], own.get(l), partner.get(l)));
              if (carried_reach == kSelect && in_place) {
                FUSEDMIX_UNROLL
                for (int l = 0; l < V; ++l) {
                  if (w[l] == 0.0f) device::store(reinterpret_cast<T*>(target(carried) + l * kSize), partner.get(l));
                }
              }
            }
            if (!(carried_reach == kSelect && in_place)) store_vector<T, V>(target(carried), out);
          }
        }
        carried = visit[u].sample;
        carried_reach = reached[u];
        carried_lanes = lanes[u];
        own = partner;
      }
    }
  }
}

// Defined by mix_<type>.cu for each width that the type has.
template <class T>
int launch_mix(const MixArgs& args, int width, bool adjoint, int64_t blocks, void* stream);

template <class T, int V, bool kPixels>
int launch_mix_as(const MixArgs& args, bool adjoint, int64_t blocks, void* stream) {
  if constexpr (sizeof(T) > 1) {
    if (adjoint) return device::launch(mix_kernel<T, V, true, kPixels>, blocks, kThreads, stream, args);
  }
  return device::launch(mix_kernel<T, V, false, kPixels>, blocks, kThreads, stream, args);
}

template <class T, int V>
int launch_mix_as(const MixArgs& args, bool adjoint, int64_t blocks, void* stream) {
  return may_be_stored(args.plan.view) ? launch_mix_as<T, V, true>(args, adjoint, blocks, stream)
                              : launch_mix_as<T, V, false>(args, adjoint, blocks, stream);
}

}  // namespace fusedmix::cuda
