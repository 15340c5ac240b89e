// How unlike pixels are across the borders of blocks, on the CPU.
#pragma once

#include "../host/parallel.h"
#include "../include/fusedmix/borders.h"

namespace fusedmix::cpu {

void border_costs(const BorderCosts& images, const Parallel& parallel);

// The sums of the patches of a sample that lie along borders: for either axis (channels, borders, 2, patches along the border), those
// before a border and those behind it.
struct BorderSums {
  float* of[2];
};
inline int64_t border_sums(const BorderCosts& images, int axis) {
  return images.channels * images.borders(axis) * 2 * images.side[1 - axis].patches();
}

struct BorderKernels {
  void (*sums[7])(const BorderCosts& images, int64_t sample, const BorderSums& sums);  // by ElementType
  void (*differences)(const BorderCosts& images, int64_t sample, const BorderSums& own, const BorderSums& lent);
};

}  // namespace fusedmix::cpu
