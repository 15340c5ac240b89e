// The labels of grids that cost least (fusedmix/backends/grid_cut.py): what the operator is called with, checked, for both bindings.
#pragma once

#include "../include/fusedmix/grid_cut.h"
#include "tensors.h"

namespace fusedmix {

// The tensors live as long as `args` is used.
struct GridTensors {
  Tensor unary, right, down, labels;
  GridCut args{};

  // `make`: as of Target::maker(). What tensors on a GPU hold is not looked at.
  template <class Make>
  GridTensors(const Tensor& costs, const Tensor& to_right, const Tensor& to_down, const Make& make) {
    unary = packed("unary", costs, ScalarType::Int, {kAny, kAny, kAny, kLabels});
    const int64_t batch = unary.size(0), height = unary.size(1), width = unary.size(2);
    check_number("the blocks along a side", height, 1, kMostBlocks);
    check_number("the blocks along a side", width, 1, kMostBlocks);
    right = packed("right", to_right, ScalarType::Int, {batch, height, width - 1});
    down = packed("down", to_down, ScalarType::Int, {batch, height - 1, width});
    for (const auto& [name, weights] : {std::pair{"right", &right}, std::pair{"down", &down}}) {
      if (!weights->is_cuda()) check_weights(name, *weights);
    }
    labels = make("the labels of blocks", {batch, height, width}, ScalarType::Int);
    args = {const_data<int32_t>(unary), const_data<int32_t>(right), const_data<int32_t>(down), data<int32_t>(labels), batch,
            static_cast<int32_t>(height), static_cast<int32_t>(width)};
  }
  GridTensors(const GridTensors&) = delete;

 private:
  static void check_weights(const char* name, const Tensor& weights) {
    const auto* weight = const_data<int32_t>(weights);
    const bool negative = std::any_of(weight, weight + weights.numel(), [](int32_t w) { return w < 0; });
    if (negative) refuse(std::string(name) + " must not be negative, but holds a number that is");
  }
};

}  // namespace fusedmix
