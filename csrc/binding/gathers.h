// The operators whose partners are of another batch, or several (schemas: fusedmix/ops.py), for both bindings.
#pragma once

#include "operators.h"
#include "plan.h"

namespace fusedmix {

// The other batch that partners are of: samples like those of x, which have been checked, in memory too.
inline void check_other(const Tensor& x, const Tensor& other) {
  const auto sizes = x.sizes(), found = other.sizes(), strides = x.strides(), steps = other.strides();
  std::vector<int64_t> wanted(sizes.begin(), sizes.end()), inside(strides.begin() + 1, strides.end());
  wanted[0] = kAny;
  bool fits = other.scalar_type() == x.scalar_type() && found.size() == sizes.size();
  for (size_t d = 1; fits && d < sizes.size(); ++d) fits = found[d] == sizes[d];
  if (!fits) refuse("other", other, name_of(x.scalar_type()) + " of shape " + shape_of(wanted));
  if (other.is_cuda() != x.is_cuda()) refuse("other must be on the device of x");
  for (size_t d = 1; d < sizes.size(); ++d) {
    if (sizes[d] <= 1 || steps[d] == strides[d]) continue;
    const std::vector<int64_t> its(steps.begin() + 1, steps.end());
    refuse("other must have the strides of x within a sample, " + shape_of(inside) + ", but got " + shape_of(its));
  }
  if (sizes[0] > 0 && found[0] == 0) refuse("partner must be in [0, 0): other, whose samples the partners are, has none");
}
inline void lend(Images& images, const Tensor& other) {
  images.other = other.const_data_ptr();
  images.other_batch = other.stride(0);
  images.others = other.size(0);
}

// Several partners of each sample; returns how many.
inline int64_t pack_partners(Tensor& partner, int64_t batch, int64_t most) {
  pack("partner", partner, ScalarType::Long, {batch, kAny});
  const int64_t count = partner.size(1);
  check_number("the partners of a sample", count, 1, most);
  if (!partner.is_cuda()) check_partners(const_data<int64_t>(partner), batch * count, batch, kWholeBatch);
  return count;
}

// Patches, and the tensors that they are in. What can be read on the host is checked.
struct PatchTensors {
  Tensor partner, boxes, crops;
  Patches patches{};

  PatchTensors(const Tensor& x, Tensor given, const Tensor& given_boxes, const Tensor& given_crops, int64_t resize)
      : partner(std::move(given)) {
    const int64_t batch = rows_of("x", x);
    element_type(x);
    const int64_t count = pack_partners(partner, batch, kMostPatches);
    check_number("resize", resize, 0, static_cast<int64_t>(Resize::kLinearCorners));
    const int64_t width = given_boxes.dim() == 3 ? given_boxes.size(2) : 0, ndim = width / 2;
    if (width != 2 * ndim || ndim < 1 || ndim > std::min<int64_t>(3, x.dim() - 1)) {
      refuse("boxes", given_boxes, "int32 of shape " + shape_of(std::vector<int64_t>{batch, count, kAny}) +
                                       ", two numbers for each of 1 to 3 sides of images of shape " + shape_of(x.sizes()));
    }
    boxes = packed("boxes", given_boxes, ScalarType::Int, {batch, count, width});
    crops = packed("crops", given_crops, ScalarType::Int, {batch, count, width});
    int64_t sides[3];
    to_sides(x.sizes(), x.dim() - ndim, ndim, sides);
    check_sides(sides, 0);
    patches = {const_data<int64_t>(partner),  const_data<int32_t>(boxes),  const_data<int32_t>(crops),
               static_cast<int32_t>(count), static_cast<int32_t>(ndim), static_cast<Resize>(resize)};
    if (!boxes.is_cuda()) check_within("boxes", patches.boxes, batch * count, sides);
    if (!crops.is_cuda()) check_within("crops", patches.crops, batch * count, sides);
    if (!boxes.is_cuda() && !crops.is_cuda()) check_pixels(batch * count);
  }

 private:
  Side side_of(const int32_t* all, int64_t patch, int axis) const {
    return patches.side_of(all, patch, axis, [](const int32_t* at) { return *at; });
  }
  void check_within(const char* name, const int32_t* all, int64_t count, const int64_t* sides) const {
    for (int64_t k = 0; k < count; ++k) {
      for (int axis = 0; axis < 3; ++axis) {
        const Side side = side_of(all, k, axis);
        if (side.first >= 0 && side.first <= side.stop && (axis < 3 - patches.ndim || side.stop <= sides[axis])) continue;
        refuse(std::string(name) + " must have 0 <= first <= stop <= side along every side, but of patch " +
               std::to_string(k % patches.count) + " of sample " + std::to_string(k / patches.count) + " they are " +
               std::to_string(side.first) + " and " + std::to_string(side.stop) + ", and the side is " + std::to_string(sides[axis]));
      }
    }
  }
  void check_pixels(int64_t count) const {
    for (int64_t k = 0; k < count; ++k) {
      bool painted = true, found = true;
      for (int axis = 0; axis < 3; ++axis) {
        painted = painted && side_of(patches.boxes, k, axis).length() > 0;
        found = found && side_of(patches.crops, k, axis).length() > 0;
      }
      if (painted && !found) refuse("crops must have pixels wherever their boxes have some, but one of them has none");
    }
  }
};

struct TermTensors {
  Tensor partner, weight;
  Terms terms{};

  TermTensors(const Tensor& x, Tensor given, const Tensor& given_weight) : partner(std::move(given)) {
    const int64_t batch = rows_of("x", x);
    element_type(x);
    const int64_t count = pack_partners(partner, batch, kMostTerms);
    weight = packed("weight", given_weight, ScalarType::Float, {batch, count});
    terms = {const_data<int64_t>(partner), const_data<float>(weight), static_cast<int32_t>(count)};
  }
};

// ---- what each binding defines ----

// Returns the mixed images: in place the tensor that was given.
Tensor mix_with(Way way, const Tensor& x, const Tensor& other, const GivenMasks& masks);
Tensor paste(const Tensor& x, const PatchTensors& patches);
Tensor blend(const Tensor& x, const TermTensors& terms);

// ---- the operators ----

template <class... Fields>
struct GatherOperators {
  static Tensor mix_with(const Tensor& x, const Tensor& other, const Fields&... fields) {
    return fusedmix::mix_with(Way::kOutOfPlace, x, other, {fields...});
  }
  static void mix_with_(const Tensor& x, const Tensor& other, const Fields&... fields) {
    fusedmix::mix_with(Way::kInPlace, x, other, {fields...});
  }
  static Tensor paste(const Tensor& x, const Tensor& partner, const Tensor& boxes, const Tensor& crops, int64_t resize) {
    return fusedmix::paste(x, {x, partner, boxes, crops, resize});
  }
  static Tensor blend(const Tensor& x, const Tensor& partner, const Tensor& weight) {
    return fusedmix::blend(x, {x, partner, weight});
  }
};
using OfGathers = GatherOperators<Tensor, Tensor, int64_t, int64_t, int64_t, int64_t, Maybe>;

inline void implement_gathers(torch::stable::detail::StableLibrary& m) {
  m.impl("mix_with", TORCH_BOX(&OfGathers::mix_with));
  m.impl("mix_with_", TORCH_BOX(&OfGathers::mix_with_));
  m.impl("paste", TORCH_BOX(&OfGathers::paste));
  m.impl("blend", TORCH_BOX(&OfGathers::blend));
}

}  // namespace fusedmix
