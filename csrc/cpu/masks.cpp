// The masks of a plan as images.
#include "tables.h"

namespace fusedmix::cpu {

void masks(const PlanView& plan, int64_t n, const int64_t* size, float* out, const Parallel& parallel) {
  const Row row{size[2], 1, 1, 1, 2, 0};
  const Masks masks = masks_of(plan, row, size, n);
  const Tables tables = tables_of(masks, false, parallel);
  parallel(n, 1, [&](int64_t begin, int64_t end) {
    std::vector<Span> spans;
    for (int64_t m = begin; m < end; ++m) {
      float* at = out + m * size[0] * size[1] * size[2];
      for (int32_t z = 0; z < size[0]; ++z) {
        for (int32_t y = 0; y < size[1]; ++y, at += size[2]) {
          const RowAt here{0, 0, {z, y, 0}};
          tables.weights(m, {&here, 1, 0, size[2], 0}, spans, at);
        }
      }
    }
  });
}

}  // namespace fusedmix::cpu
