// Minimum cuts of grids by push and relabel, one grid after the other: the nodes that have something to send on wait in a queue.
#include "grid_cut.h"

#include <algorithm>

namespace fusedmix::cpu {
namespace {

using cut::kArcs;
using cut::kMostNodes;
using cut::kNever;

struct Arc {
  int64_t residual;
  int32_t end;
};

// One grid; the same memory serves one after the other.
class Cut {
 public:
  Cut(const GridCut& grids, int64_t of) : nodes_(2 * grids.blocks()) {
    const auto load = [](const int32_t* p) { return *p; };
    for (int32_t v = 0; v < nodes_; ++v) {
      const cut::Node node(grids, v);
      for (int32_t a = 0; a < kArcs; ++a) {
        const int32_t end = node.end(a);
        arcs_[v][a] = {node.capacity(grids, of, a, load), end < 0 ? v : end};
      }
      const int64_t price = node.price(grids, of, load);
      excess_[v] = std::max<int64_t>(price, 0);
      sink_[v] = std::max<int64_t>(-price, 0);
    }
  }

  void solve() {
    search();
    for (int32_t v = 0; v < nodes_; ++v) {
      if (excess_[v] > 0) wait(v);
    }
    for (int32_t raised = 0; first_ != last_;) {
      const int32_t v = queue_[first_++ % kMostNodes];
      waits_[v] = false;
      raised += discharge(v);
      if (raised < nodes_) continue;
      raised = 0;
      search();
    }
    search();
  }

  // Whether a node is on the side of the sink.
  bool passed(int32_t node) const { return distance_[node] < kNever; }

 private:
  // The distances of all nodes to the sink, by arcs that have something left, the nearest first.
  void search() {
    int32_t found[kMostNodes], count = 0;
    for (int32_t v = 0; v < nodes_; ++v) {
      distance_[v] = sink_[v] > 0 ? 1 : kNever;
      if (sink_[v] > 0) found[count++] = v;
    }
    for (int32_t i = 0; i < count; ++i) {
      const int32_t v = found[i];
      for (int32_t a = 0; a < kArcs; ++a) {
        const int32_t w = arcs_[v][a].end;
        if (distance_[w] < kNever || arcs_[w][cut::reverse(a)].residual == 0) continue;
        distance_[w] = distance_[v] + 1;
        found[count++] = w;
      }
    }
  }

  void wait(int32_t v) {
    if (waits_[v] || distance_[v] >= kNever) return;
    waits_[v] = true;
    queue_[last_++ % kMostNodes] = v;
  }

  // Sends on all that a node has, or as much as can get to the sink. How often its distance was raised.
  int32_t discharge(int32_t v) {
    for (int32_t raised = 0;; ++raised) {
      const int64_t drained = std::min(excess_[v], sink_[v]);
      excess_[v] -= drained;
      sink_[v] -= drained;
      int32_t next = sink_[v] > 0 ? 1 : kNever;
      for (int32_t a = 0; a < kArcs && excess_[v] > 0; ++a) {
        Arc& arc = arcs_[v][a];
        if (arc.residual == 0) continue;
        if (distance_[arc.end] + 1 == distance_[v]) {
          const int64_t sent = std::min(excess_[v], arc.residual);
          arc.residual -= sent;
          arcs_[arc.end][cut::reverse(a)].residual += sent;
          excess_[v] -= sent;
          excess_[arc.end] += sent;
          wait(arc.end);
        }
        if (arc.residual > 0) next = std::min(next, distance_[arc.end] + 1);
      }
      if (excess_[v] == 0 || distance_[v] >= kNever) return raised;
      distance_[v] = next > nodes_ ? kNever : next;  // no way is longer than all nodes
    }
  }

  int32_t nodes_;
  Arc arcs_[kMostNodes][kArcs];  // one that there is not leads back, and carries nothing
  int64_t excess_[kMostNodes], sink_[kMostNodes];
  int32_t distance_[kMostNodes];
  // A ring that all nodes fit in, each but once.
  int32_t queue_[kMostNodes];
  uint32_t first_ = 0, last_ = 0;
  bool waits_[kMostNodes] = {};
};

}  // namespace

void label_grid(const GridCut& grids, const Parallel& parallel) {
  const int32_t blocks = grids.blocks();
  parallel(grids.batch, std::max(1, 64 / blocks), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Cut cut(grids, i);
      cut.solve();
      for (int32_t b = 0; b < blocks; ++b) grids.labels[i * blocks + b] = cut.passed(b) + cut.passed(b + blocks);
    }
  });
}

}  // namespace fusedmix::cpu
