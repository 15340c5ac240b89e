// The tensors of a plan, and the images that it is for.
#pragma once

#include <algorithm>
#include <optional>
#include <tuple>

#include "../include/fusedmix/requests.h"
#include "tensors.h"

namespace fusedmix {

using Plan = std::tuple<Tensor, Tensor, Tensor, Tensor>;
constexpr int64_t kWords = sizeof(Record) / sizeof(int32_t);

inline Plan empty_plan(int64_t batch, int32_t device_type, int32_t device_index) {
  const auto make = [&](std::initializer_list<int64_t> sizes, ScalarType dtype) {
    return empty("the plan", sizes, dtype, device_type, device_index);
  };
  return {make({batch}, ScalarType::Long), make({batch}, ScalarType::Float), make({batch}, ScalarType::Double),
          make({batch, kWords}, ScalarType::Int)};
}

inline PlanOut plan_out(const Plan& plan) {
  const auto& [partner, lam, weight, masks] = plan;
  return {data<int64_t>(partner), data<float>(lam), data<double>(weight), data<Record>(masks)};
}

// How many pixels there are of images whose masks are stored. Kernels number them in 32 bits.
inline int64_t stored_pixels(const int64_t* sides) {
  const double count = static_cast<double>(sides[0]) * static_cast<double>(sides[1]) * static_cast<double>(sides[2]);
  if (count > kLongestSide) refuse("the pixels of FMix's masks must be fewer than 2^31");
  return static_cast<int64_t>(count);
}

// The stored masks of `batch` samples, of images of those sides. `kept` becomes the tensor that the view is of.
inline Pixels pixels_of(const Tensor& given, int32_t families, const int64_t* sides, int64_t per, int64_t batch, Tensor& kept) {
  // Where cells are all that is stored, a row is as long as the largest grid needs, which check_masks() looks for.
  const bool of_cells = (families & kLargeCells) != 0 && (families & (kStored | kLevels)) == 0;
  const bool soft = !of_cells && given.scalar_type() == ScalarType::Short;
  const int64_t count = stored_pixels(sides), across = of_cells && given.dim() == 2 ? std::max<int64_t>(1, given.size(1)) : (count + 31) / 32;
  const int64_t stride = soft ? count : across;
  kept = packed("pixels", given, soft ? ScalarType::Short : ScalarType::Int, {mask_rows(per, batch), stride});
  return {soft ? nullptr : const_data<uint32_t>(kept), soft ? const_data<uint16_t>(kept) : nullptr, stride,
          {sides[0], sides[1], sides[2]}, static_cast<int32_t>(per), batch};
}

// Images whose last `spatial` dims are those that masks depend on.
inline Images images_of(const Tensor& src, const Tensor& dst, int64_t spatial, bool adjoint = false) {
  const Layout layout = make_layout(static_cast<int>(src.dim()), src.sizes().data(), src.strides().data(), dst.strides().data(),
                                    static_cast<int>(spatial));
  return {element_type(src), src.const_data_ptr(), dst.mutable_data_ptr(), layout, adjoint};
}

}  // namespace fusedmix
