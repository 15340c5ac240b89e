// Mixes a batch with another one, whose samples are the partners. It has as many kernels as it needs: for a constant, for CutMix,
// and one for all other masks.
#pragma once

#include "mix_kernel.h"
#include "tiling.h"

namespace fusedmix::cuda {

struct WithArgs {
  MixArgs mix;
  const char* other;
  int64_t other_batch;  // in bytes
  uint32_t others;      // samples of it
  Tiling tiling;
};
static_assert(sizeof(WithArgs) <= 4096, "kernel arguments");

// As each_kernel: a thread has a vector of two samples. In place it alone reads and writes it.
template <class T, int V, int32_t kFamilies>
FUSEDMIX_WIDE_KERNEL(kEachThreads, (kEachBlocks<T, kFamilies>)) with_kernel(FUSEDMIX_ARGS(WithArgs, args)) {
  constexpr int kAtATime = kMany<kFamilies> ? 1 : kEachSamples;
  const Spot spot = spot_of(args.tiling, kEachSamples);
  if (!spot.is_there) return;
  const Column<T, V, kFamilies> column(args.mix, spot.column);
  const bool in_place = args.mix.src == args.mix.dst;
  FUSEDMIX_NO_UNROLL
  for (uint32_t n = 0; n < kEachSamples && spot.sample + n < args.tiling.batch; n += kAtATime) {
    const auto there = [&](uint32_t k) { return k == 0 || spot.sample + n + k < args.tiling.batch; };
    uint32_t i[kAtATime];
    int64_t j[kAtATime];
    typename Column<T, V, kFamilies>::Look look[kAtATime] = {};
    FUSEDMIX_UNROLL
    for (uint32_t k = 0; k < kAtATime; ++k) {
      i[k] = spot.sample + n + (there(k) ? k : 0);
      j[k] = device::load(column.plan.partner + i[k]);
    }
    if constexpr (kMany<kFamilies>) {
      look[0] = column.look(i[0], column.glimpse(i[0]));
    } else if constexpr (kSkips<kFamilies>) {
      column.look_at_both(i, look);
    }
    const auto writes = [&](uint32_t k) { return there(k) && !(kSkips<kFamilies> && in_place && look[k].reach == kKeep); };
    // A number that is no sample's, which only the host could refuse: the sample stays as it is.
    const auto lender = [&](uint32_t k) {
      const bool known = static_cast<uint64_t>(j[k]) < args.others;
      return known ? args.other + j[k] * args.other_batch + column.place.src : column.source(i[k]);
    };
    Vec<T, V> own[kAtATime], lent[kAtATime];
    FUSEDMIX_UNROLL
    for (uint32_t k = 0; k < kAtATime; ++k) {
      if (writes(k) && !(kSkips<kFamilies> && look[k].reach == kTake)) own[k] = column.load(i[k]);
      if (writes(k) && !(kSkips<kFamilies> && look[k].reach == kKeep)) lent[k] = load_vector<T, V>(lender(k));
    }
    FUSEDMIX_UNROLL
    for (uint32_t k = 0; k < kAtATime; ++k) {
      if (!writes(k)) continue;
      const Vec<T, V> a = own[k], b = lent[k];  // chosen of the arrays, they would lie in local memory
      if constexpr (kSkips<kFamilies>) {
        Vec<T, V> out = look[k].reach == kTake ? b : a;
        if (look[k].reach == kBlend) out = column.mixed(i[k], look[k], a, b);
        column.store(i[k], out);
      } else {
        column.store(i[k], column.mixed(i[k], look[k], a, b));
      }
    }
  }
}

struct WithLaunch {
  const WithArgs& args;
  void* stream;

  template <class T, int V, int32_t kFamilies>
  int start() const {
    return device::launch(with_kernel<T, V, kFamilies>, args.tiling.blocks, kEachThreads, stream, args);
  }
  template <class T, int V>
  int of_width() const {
    const int32_t families = args.mix.plan.view.families;
    if constexpr (sizeof(T) * V == 16 && sizeof(T) < 8) {
      if (within(families, kConstantSet)) return start<T, V, kConstantSet>();
      if (within(families, kCutSet)) return start<T, V, kCutSet>();
    }
    if constexpr (V < 16) return start<T, V, kAnySet>();
    no_kernel();
  }
};

}  // namespace fusedmix::cuda
