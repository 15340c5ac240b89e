// The labels of grids that cost least, on a GPU.
#pragma once

#include "../include/fusedmix/grid_cut.h"

namespace fusedmix::cuda {

// By one launch, a block of threads for each grid. Returns a cudaError_t, 0 if all is well.
int label_grid(const GridCut& grids, void* stream);

}  // namespace fusedmix::cuda
