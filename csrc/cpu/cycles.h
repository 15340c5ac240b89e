// The walk along the partners of a batch. Host code.
#pragma once

#include <numeric>
#include <vector>

#include "../include/fusedmix/partners.h"

namespace fusedmix::cpu {

// The cycles of a permutation, one after another: sample order[k]'s partner is order[k+1], the last one's is the first.
struct Cycles {
  std::vector<int64_t> order;
  std::vector<int64_t> start;  // where each cycle begins in `order`, and where the last one stops
};

// Partners that are no permutation, which only an image that is written elsewhere may have, are refused, or cut into paths:
// there the last one's partner is a sample that has been in a path before, its own one or another.
inline Cycles cycles_of(const int64_t* partner, int64_t batch, bool paths) {
  check_partners(partner, batch);
  Cycles cycles;
  std::vector<char> seen;
  resize(cycles.order, batch, "the cycles of the partners");
  resize(seen, batch, "the cycles of the partners");
  int64_t n = 0;
  for (int64_t i = 0; i < batch; ++i) {
    if (seen[i]) continue;
    cycles.start.push_back(n);
    int64_t j = i;
    for (; !seen[j]; j = partner[j]) {
      seen[j] = true;
      cycles.order[n++] = j;
    }
    if (j != i && !paths) refuse_repeated_partners();
  }
  cycles.start.push_back(n);
  return cycles;
}

// Every sample a cycle of its own, where partners are of another batch of so many samples.
inline Cycles alone(const int64_t* partner, int64_t batch, int64_t others) {
  check_partners(partner, batch, others, kOtherBatch);
  Cycles cycles;
  resize(cycles.order, batch, "the cycles of the partners");
  resize(cycles.start, batch + 1, "the cycles of the partners");
  std::iota(cycles.order.begin(), cycles.order.end(), int64_t{0});
  std::iota(cycles.start.begin(), cycles.start.end(), int64_t{0});
  return cycles;
}

}  // namespace fusedmix::cpu
