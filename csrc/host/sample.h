// The sampler that runs on the host, for plans on the CPU and for those that a GPU gets from there.
#pragma once

#include "../include/fusedmix/requests.h"
#include "parallel.h"

namespace fusedmix::host {

// Draws the plan and writes it to sampling.out.
void sample(const Sampling& sampling, const Parallel& parallel = {nullptr, 1});

}  // namespace fusedmix::host
