// How unlike pixels are across the borders of blocks (fusedmix/backends/borders.py): what the operator is called with, checked, for
// both bindings.
#pragma once

#include "../include/fusedmix/borders.h"
#include "../include/fusedmix/grid_cut.h"
#include "../include/fusedmix/partners.h"
#include "tensors.h"

namespace fusedmix {

// The tensors live as long as `args` is used.
struct BorderTensors {
  Tensor x, partner, scale, right, down;
  BorderCosts args{};

  // `make`: as of Target::maker(). What tensors on a GPU hold is not looked at.
  template <class Make>
  BorderTensors(const Tensor& images, const Tensor& partners, const Tensor& scales, const std::vector<int64_t>& cells, const Make& make)
      : x(images) {
    const ElementType type = element_type(x);
    if (x.dim() != 4 || x.size(1) == 0) refuse("x must be (B, C, H, W) with at least one channel, but got shape " + shape_of(x.sizes()));
    int64_t sides[3];
    to_sides(x.sizes(), 2, 2, sides);
    check_sides(sides, 1);
    check_number("the number of cells", static_cast<int64_t>(cells.size()), 2, 2);
    for (int axis = 0; axis < 2; ++axis) {
      check_number("the blocks along a side", cells[axis], 1, kMostBlocks);
      if (sides[1 + axis] % cells[axis] == 0) continue;
      const std::vector<int64_t> size(sides + 1, sides + 3);
      refuse("cells must divide the sides of x, " + shape_of(size) + ", but got " + shape_of(cells));
    }
    const int64_t batch = x.size(0), channels = x.size(1), h = cells[0], w = cells[1];
    partner = packed("partner", partners, ScalarType::Long, {batch});
    scale = packed("scale", scales, ScalarType::Float, {channels});
    if (!partner.is_cuda()) check_partners(const_data<int64_t>(partner), batch);
    const char what[] = "what blocks differ by";
    down = make(what, {4, batch, h - 1, w}, ScalarType::Float);
    right = make(what, {4, batch, h, w - 1}, ScalarType::Float);
    args = {type, x.const_data_ptr(), {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}, batch, channels,
            {block_side(sides[1], h), block_side(sides[2], w)}, const_data<int64_t>(partner), const_data<float>(scale),
            {data<float>(down), data<float>(right)}};
  }
  BorderTensors(const BorderTensors&) = delete;
};

}  // namespace fusedmix
