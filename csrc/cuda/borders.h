// How unlike pixels are across the borders of blocks, on a GPU.
#pragma once

#include "../include/fusedmix/borders.h"

namespace fusedmix::cuda {

// By one launch, a block of threads for each border of a block. Returns a cudaError_t, 0 if all is well.
int border_costs(const BorderCosts& images, void* stream);

}  // namespace fusedmix::cuda
