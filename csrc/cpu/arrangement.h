// Which block stands where once those that matter have moved, on the CPU: fusedmix/backends/arrangement.py has the meaning.
#pragma once

#include "../host/parallel.h"
#include "../include/fusedmix/grid_cut.h"

namespace fusedmix::cpu {

// Everything of the moves of a batch of grids.
struct Arrangement {
  const uint8_t* seen;  // (batch, height, width)
  const float* maps;    // (batch, height, width), in [0, 1]
  int64_t* blocks;      // (batch, height·width)
  int64_t batch;
  int32_t height, width;
  double distance_cost;

  int32_t places() const { return height * width; }
};

void arrange_blocks(const Arrangement& grids, const Parallel& parallel);

}  // namespace fusedmix::cpu
