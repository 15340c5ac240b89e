// Minimum cuts of grids by push and relabel: a block for each grid, a thread for each of its nodes, all at the same time as
// fusedmix/backends/grid_cut.py does it. Which labels there are does not depend on the order in which anything flows.
//
// A thread keeps what is left of its nine arcs in registers. What it sends it puts where the threads at the other ends fetch it, so
// none writes what another one writes, and nothing is added atomically. A step is three barriers.
#include "grid_cut.h"

#include <algorithm>

#include "kernels.h"

namespace fusedmix::cuda {
namespace {

using cut::kArcs;
using cut::kMostNodes;
using cut::kNever;

constexpr int32_t kSteps = 32;  // between two searches for the distances

struct LabelGridArgs {
  GridCut grids;
};

// What a thread has of a grid.
struct Held {
  int32_t end[kArcs];  // where arcs lead; -1 if there is none
  int64_t residual[kArcs];
  int64_t sink = 0, excess = 0;
  int32_t distance = kNever;  // as the others see it

  template <class Distances>
  FUSEDMIX_DEVICE int32_t next(const Distances& distances) const {
    int32_t least = kNever;
    FUSEDMIX_UNROLL
    for (int32_t a = 0; a < kArcs; ++a) {
      if (residual[a] == 0) continue;
      const int32_t there = distances[end[a]];
      least = there < least ? there : least;
    }
    return sink > 0 ? 1 : least == kNever ? kNever : least + 1;
  }
};

FUSEDMIX_WIDE_KERNEL(kMostNodes, 2) label_grid_kernel(FUSEDMIX_ARGS(LabelGridArgs, args)) {
  FUSEDMIX_SHARED(int32_t, distances, kMostNodes);
  FUSEDMIX_SHARED(int64_t, sent, kArcs * kMostNodes);
  const GridCut& grids = args.grids;
  const auto v = static_cast<int32_t>(device::thread());
  const int64_t grid = device::block();
  const int32_t nodes = 2 * grids.blocks();
  const bool mine = v < nodes;  // The last threads only wait.
  const auto load = [](const int32_t* p) { return device::load(p); };

  Held held;
  if (mine) {
    const cut::Node node(grids, v);
    FUSEDMIX_UNROLL
    for (int32_t a = 0; a < kArcs; ++a) {
      held.end[a] = node.end(a);
      held.residual[a] = node.capacity(grids, grid, a, load);
    }
    const int64_t price = node.price(grids, grid, load);
    held.excess = price > 0 ? price : 0;
    held.sink = price < 0 ? -price : 0;
  }

  for (;;) {
    // The distances of all nodes: those of their neighbours plus one, until none changes.
    held.distance = held.sink > 0 ? 1 : kNever;
    for (bool again = true; again;) {
      if (mine) distances[v] = held.distance;
      device::sync();
      const int32_t next = mine ? held.next(distances) : kNever;
      const bool nearer = next < held.distance;
      if (nearer) held.distance = next;
      again = device::count(nearer) > 0;
    }
    if (device::count(held.excess > 0 && held.distance < kNever) == 0) break;

    for (int32_t step = 0; step < kSteps; ++step) {
      if (mine) {
        if (held.distance == 1) {
          const int64_t drained = held.excess < held.sink ? held.excess : held.sink;
          held.excess -= drained;
          held.sink -= drained;
        }
        FUSEDMIX_UNROLL
        for (int32_t a = 0; a < kArcs; ++a) {
          int64_t pushed = 0;
          if (held.excess > 0 && held.residual[a] > 0 && distances[held.end[a]] + 1 == held.distance) {
            pushed = held.excess < held.residual[a] ? held.excess : held.residual[a];
            held.excess -= pushed;
            held.residual[a] -= pushed;
          }
          sent[a * kMostNodes + v] = pushed;
        }
      }
      device::sync();
      if (mine) {
        FUSEDMIX_UNROLL
        for (int32_t a = 0; a < kArcs; ++a) {
          if (held.end[a] < 0) continue;
          const int64_t received = sent[cut::reverse(a) * kMostNodes + held.end[a]];
          held.excess += received;
          held.residual[a] += received;
        }
        if (held.excess > 0) {
          const int32_t next = held.next(distances);
          held.distance = next > held.distance ? next : held.distance;
        }
      }
      // Only now has everybody seen the distances as they were.
      const bool active = held.excess > 0 && held.distance < kNever;
      if (device::count(active) == 0) break;
      if (mine) distances[v] = held.distance;
      device::sync();
    }
  }

  if (mine) sent[v] = held.distance < kNever;
  device::sync();
  if (v < grids.blocks()) {
    const int64_t first = sent[v], second = sent[v + grids.blocks()];
    device::store(grids.labels + grid * grids.blocks() + v, static_cast<int32_t>(first + second));
  }
}

}  // namespace

int label_grid(const GridCut& grids, void* stream) {
  if (grids.batch == 0) return 0;
  const int threads = (2 * grids.blocks() + 31) / 32 * 32;
  return device::launch(label_grid_kernel, launchable(grids.batch), threads, stream, LabelGridArgs{grids});
}

}  // namespace fusedmix::cuda
