// Sums of several samples of a batch, each times a weight.
#pragma once

#include "tiling.h"
#include "vector.h"

namespace fusedmix::cuda {

struct BlendArgs {
  const char* src;
  char* dst;
  Loops loops;
  Tiling tiling;
  LaunchTerms terms;
};
static_assert(sizeof(BlendArgs) <= 4096, "kernel arguments");

// sum + w·x, in lane l. The difference of what a byte is raised to is exact, and no conversion.
template <class T, int V>
FUSEDMIX_DEVICE Compute<T> with_term(Compute<T> sum, float w, const Vec<T, V>& x, int l, const Loops& loops) {
  if constexpr (sizeof(T) == 1) {
    return fma(w, raised(x.words[l / 4], l % 4) - 0x1p23f, sum);
  } else {
    return fma(static_cast<Compute<T>>(w), number_of(x.get(l), loops), sum);
  }
}

// A thread has a vector of a sample: all that it is made of is under way before the first is used.
template <class T, int V>
FUSEDMIX_WIDE_KERNEL(kEachThreads, 2) blend_kernel(FUSEDMIX_ARGS(BlendArgs, args)) {
  const Spot spot = spot_of(args.tiling);
  if (!spot.is_there) return;
  const Place<V> place = place_of<V>(args.loops, spot.column);
  const int32_t count = args.terms.view.count;
  const int64_t first = static_cast<int64_t>(spot.sample) * count;
  const int64_t* partners = part_of(args.terms, args.terms.view.partner, args.terms.offset.partner) + first;
  const float* weights = part_of(args.terms, args.terms.view.weight, args.terms.offset.weight) + first;
  float w[kMostTerms];
  Vec<T, V> x[kMostTerms];
  bool any = false;
  FUSEDMIX_UNROLL
  for (int k = 0; k < kMostTerms; ++k) {
    w[k] = 0.0f;
    if (k >= count) continue;
    // A number that is no sample's, which only the host could refuse: its term is left out.
    const int64_t j = device::load(partners + k);
    if (static_cast<uint64_t>(j) < args.tiling.batch) w[k] = device::load(weights + k);
    if (w[k] != 0.0f) x[k] = load_vector<T, V>(args.src + j * args.loops.src_batch + place.src);
    any |= w[k] != 0.0f;
  }
  // A product is what is added to -0: so the first term is one.
  Compute<T> sum[V];
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) sum[l] = any ? -0.0f : 0.0f;
  FUSEDMIX_UNROLL
  for (int k = 0; k < kMostTerms; ++k) {
    if (w[k] == 0.0f) continue;
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) sum[l] = with_term<T, V>(sum[l], w[k], x[k], l, args.loops);
  }
  Vec<T, V> out{};
  if constexpr (std::is_integral_v<T>) {
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) out.set(l, rounded_to<T>(sum[l], args.loops));
  } else {
    out = Vec<T, V>::of(sum);
  }
  store_vector<T, V>(args.dst + spot.sample * args.loops.dst_batch + place.dst, out);
}

}  // namespace fusedmix::cuda
