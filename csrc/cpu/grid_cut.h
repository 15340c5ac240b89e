// The labels of grids that cost least, on the CPU.
#pragma once

#include "../host/parallel.h"
#include "../include/fusedmix/grid_cut.h"

namespace fusedmix::cpu {

void label_grid(const GridCut& grids, const Parallel& parallel);

}  // namespace fusedmix::cpu
