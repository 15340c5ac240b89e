// The labels of a grid of blocks that cost least, as a minimum cut: fusedmix/backends/grid_cut.py has the meaning. What the
// implementations share: the nodes of a grid, two for each block, its nine arcs from each, and what these can carry.
#pragma once

#include "platform.h"

namespace fusedmix {

constexpr int32_t kLabels = 3, kMostBlocks = 16;  // blocks along a side

// Everything of the labels of a batch of grids. A weight that is negative is 0.
struct GridCut {
  const int32_t* unary;  // (batch, height, width, kLabels)
  const int32_t* right;  // (batch, height, width - 1)
  const int32_t* down;   // (batch, height - 1, width)
  int32_t* labels;       // (batch, height, width)
  int64_t batch;
  int32_t height, width;

  FUSEDMIX_HD int32_t blocks() const { return height * width; }
};

namespace cut {

// Arcs 0 to 3 go up, down, left and right at the node's own threshold, 4 to 7 at the other one, 8 to the other threshold of the
// block.
constexpr int32_t kArcs = 9, kBetween = 8;
constexpr int64_t kEndless = int64_t{1} << 60;  // above all that flows: no bound
constexpr int32_t kNever = 1 << 30;             // above all distances: there is no way
constexpr int32_t kMostNodes = 2 * kMostBlocks * kMostBlocks;

// The reverse of an arc has the other number of its pair; that of the last is its own.
FUSEDMIX_HD int32_t reverse(int32_t arc) { return arc == kBetween ? arc : arc ^ 1; }

// A node of a grid: those of threshold 1 come first.
struct Node {
  int32_t id, blocks, height, width, y, x;
  bool second;  // its threshold

  FUSEDMIX_HD Node(const GridCut& grid, int32_t node)
      : id(node), blocks(grid.blocks()), height(grid.height), width(grid.width), y(0), x(0), second(node >= blocks) {
    const int32_t block = second ? id - blocks : id;
    y = block / width;
    x = block - y * width;
  }

  // Where an arc ends; -1 if there is none.
  FUSEDMIX_HD int32_t end(int32_t arc) const {
    const int32_t other = second ? id - blocks : id + blocks;
    if (arc == kBetween) return other;
    const int32_t from = arc < 4 ? id : other;
    switch (arc & 3) {
      case 0: return y > 0 ? from - width : -1;
      case 1: return y + 1 < height ? from + width : -1;
      case 2: return x > 0 ? from - 1 : -1;
      default: return x + 1 < width ? from + 1 : -1;
    }
  }

  // What an arc can carry, `load` being how numbers are read.
  template <class Load>
  FUSEDMIX_HD int64_t capacity(const GridCut& grid, int64_t of, int32_t arc, const Load& load) const {
    if (arc == kBetween) return second ? 0 : kEndless;
    if (end(arc) < 0 || (arc >= 4 && second)) return 0;
    const int32_t direction = arc & 3;
    int32_t weight;
    if (direction < 2) {
      weight = load(grid.down + (of * (height - 1) + y - (direction == 0)) * width + x);
    } else {
      weight = load(grid.right + (of * height + y) * (width - 1) + x - (direction == 2));
    }
    return weight <= 0 ? 0 : arc < 4 ? int64_t{weight} : 2 * int64_t{weight};
  }

  // What it costs to pass the threshold.
  template <class Load>
  FUSEDMIX_HD int64_t price(const GridCut& grid, int64_t of, const Load& load) const {
    const int32_t* cost = grid.unary + (of * blocks + y * width + x) * kLabels + (second ? 1 : 0);
    return int64_t{load(cost + 1)} - load(cost);
  }
};

}  // namespace cut
}  // namespace fusedmix
