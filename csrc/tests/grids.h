// Grids of blocks to label, of random costs: of small ones many labellings are equally good.
#pragma once

#include <algorithm>
#include <vector>

#include "../include/fusedmix/grid_cut.h"
#include "check.h"

namespace fusedmix::test {

struct Grids {
  int64_t batch;
  int32_t height, width;
  std::vector<int32_t> unary, right, down;

  Grids(Random& random, int64_t n, int32_t h, int32_t w, int64_t most)
      : batch(n), height(h), width(w), unary(n * h * w * kLabels), right(n * h * (w - 1)), down(n * (h - 1) * w) {
    for (int32_t& cost : unary) cost = static_cast<int32_t>(random.below(2 * most + 1) - most);
    for (auto* weights : {&right, &down}) {
      for (int32_t& weight : *weights) weight = static_cast<int32_t>(random.below(most / 2 + 1));
    }
  }
  int32_t blocks() const { return height * width; }
  GridCut args(int32_t* labels) const { return {unary.data(), right.data(), down.data(), labels, batch, height, width}; }

  // What a labelling of one of them costs.
  int64_t energy(int64_t of, const int32_t* labels) const {
    int64_t total = 0;
    const auto unlike = [&](int32_t a, int32_t b) { return int64_t{labels[a] - labels[b]} * (labels[a] - labels[b]); };
    for (int32_t y = 0, b = 0; y < height; ++y) {
      for (int32_t x = 0; x < width; ++x, ++b) {
        total += unary[(of * blocks() + b) * kLabels + labels[b]];
        if (x + 1 < width) total += right[(of * height + y) * (width - 1) + x] * unlike(b, b + 1);
        if (y + 1 < height) total += down[(of * (height - 1) + y) * width + x] * unlike(b, b + width);
      }
    }
    return total;
  }

  // The least labels, block by block, of all that cost least.
  std::vector<int32_t> naive(int64_t of) const {
    std::vector<int32_t> labels(blocks(), 0), least;
    int64_t lowest = INT64_MAX;
    for (int32_t b = 0; b < blocks();) {
      const int64_t cost = energy(of, labels.data());
      if (cost < lowest) lowest = cost, least = labels;
      for (int32_t i = 0; cost == lowest && i < blocks(); ++i) least[i] = std::min(least[i], labels[i]);
      for (b = 0; b < blocks() && ++labels[b] == kLabels; ++b) labels[b] = 0;  // the next one
    }
    return least;
  }
};

}  // namespace fusedmix::test
