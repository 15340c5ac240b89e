// What operators are called with, checked before anything is drawn, made or written: an operator is safe whoever calls it.
// For both bindings. fusedmix/operands.py does the same for the operators that are written in Python.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../include/fusedmix/labels.h"
#include "../include/fusedmix/masks.h"
#include "../include/fusedmix/plan.h"

namespace fusedmix {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kAny = -1;  // as a size that a tensor is to have
constexpr int64_t kLongestSide = INT32_MAX;  // in pixels: a plan holds boxes and centres in 32 bits

[[noreturn]] inline void refuse(const std::string& what) { throw std::invalid_argument("fusedmix: " + what + "."); }

template <class Sizes>
std::string shape_of(const Sizes& sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + (size == kAny ? "any" : std::to_string(size));
  return "(" + text + (sizes.size() == 1 ? ",)" : ")");
}

// What a dtype is called, and as which type its labels are read.
struct Dtype {
  const char* name;
  std::optional<LabelType> label;  // none of a dtype that is not known here
};
inline Dtype dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Long: return {"int64", kLabelInt64};
    case ScalarType::Int: return {"int32", kLabelInt32};
    case ScalarType::Short: return {"int16", kLabelInt16};
    case ScalarType::Char: return {"int8", kLabelInt8};
    case ScalarType::Byte: return {"uint8", kLabelUInt8};
    case ScalarType::Bool: return {"bool", kLabelUInt8};
    case ScalarType::UInt16: return {"uint16", kLabelUInt16};
    case ScalarType::UInt32: return {"uint32", kLabelUInt32};
    case ScalarType::UInt64: return {"uint64", kLabelUInt64};
    case ScalarType::Float: return {"float32", kLabelFloat};
    case ScalarType::Half: return {"float16", kLabelHalf};
    case ScalarType::BFloat16: return {"bfloat16", kLabelBFloat16};
    case ScalarType::Double: return {"float64", kLabelDouble};
    default: return {"another dtype", std::nullopt};
  }
}

inline std::string name_of(ScalarType type) { return dtype_of(type).name; }
inline bool is_floating(ScalarType type) { return dtype_of(type).label.value_or(kLabelInt64) >= kLabelFloat; }
// The bytes of an element.
inline int64_t bytes_of(ScalarType type) { return label_size(dtype_of(type).label.value_or(kLabelUInt8)); }

[[noreturn]] inline void refuse(const char* name, const Tensor& t, const std::string& wanted) {
  refuse(std::string(name) + " must be " + wanted + ", but got " + name_of(t.scalar_type()) + " of shape " + shape_of(t.sizes()));
}

inline void check_number(const char* name, int64_t x, int64_t low, int64_t high) {
  if (x < low || x > high) {
    refuse(std::string(name) + " must be in [" + std::to_string(low) + ", " + std::to_string(high) + "], but got " + std::to_string(x));
  }
}

// ---- tensors ----

// Puts the tensor in contiguous memory, if it has that dtype and those sizes.
inline void pack(const char* name, Tensor& t, ScalarType dtype, std::initializer_list<int64_t> sizes) {
  const auto found = t.sizes();
  bool fits = t.scalar_type() == dtype && found.size() == sizes.size();
  for (size_t d = 0; fits && d < sizes.size(); ++d) fits = sizes.begin()[d] == kAny || found[d] == sizes.begin()[d];
  if (!fits) refuse(name, t, name_of(dtype) + " of shape " + shape_of(sizes));
  if (!t.is_contiguous()) t = torch::stable::contiguous(t);
}
inline Tensor packed(const char* name, Tensor t, ScalarType dtype, std::initializer_list<int64_t> sizes) {
  pack(name, t, dtype, sizes);
  return t;
}

// One number, or, where it is not `needed`, none.
inline const Tensor& packed_number(const char* name, const Tensor& t, ScalarType dtype, bool needed) {
  if (t.scalar_type() != dtype || t.numel() > 1 || (needed && t.numel() == 0)) refuse(name, t, "one number of " + name_of(dtype));
  return t;
}

inline LabelType label_type(const Tensor& labels) {
  const std::optional<LabelType> type = dtype_of(labels.scalar_type()).label;
  if (!type) refuse("labels", labels, "integers or floating point");
  return *type;
}

inline ElementType element_type(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  if (is_floating(type)) return static_cast<ElementType>(label_type(x) - kLabelFloat);
  switch (type) {
    case ScalarType::Byte: return ElementType::kUInt8;
    case ScalarType::Short: return ElementType::kInt16;
    case ScalarType::UInt16: return ElementType::kUInt16;
    default: refuse(name_of(type) + " cannot be blended");
  }
}

// The size of the first dim.
inline int64_t rows_of(const char* name, const Tensor& t) {
  if (t.dim() < 1) refuse(name, t, "of at least one dim");
  return t.size(0);
}

// ---- sides and hints ----

// Spatial sides as (z, y, x), the absent ones 1.
template <class Sizes>
void to_sides(const Sizes& sizes, int64_t first, int64_t count, int64_t* sides) {
  for (int64_t axis = 0; axis < 3; ++axis) sides[axis] = axis < 3 - count ? 1 : sizes[first + axis - (3 - count)];
}

// Their product fits 63 bits.
inline void check_sides(const int64_t* sides, int64_t least) {
  double pixels = 1;
  for (int axis = 0; axis < 3; ++axis) {
    check_number("a spatial side", sides[axis], least, kLongestSide);
    pixels *= static_cast<double>(sides[axis]);
  }
  if (pixels >= 0x1p63) refuse("an image of more than 2^63 pixels");
}

// The sides of an operator that takes `size`: 1 to 3 of them.
inline void to_sides(const std::vector<int64_t>& size, int64_t* sides, int64_t least) {
  const auto ndim = static_cast<int64_t>(size.size());
  check_number("the number of spatial dims", ndim, 1, 3);
  to_sides(size, 0, ndim, sides);
  check_sides(sides, least);
}

inline Extent extent_of(const std::vector<int64_t>& size, int64_t least) {
  Extent extent{static_cast<int32_t>(size.size()), {}};
  to_sides(size, extent.size, least);
  return extent;
}

inline void check_hints(int64_t pairing, int64_t per) {
  check_number("pairing", pairing, kRoll, kSameClass);
  check_number("per", per, kPerBatch, kPerSample);
}

// Images, whose last `ndim` dims are spatial.
inline void check_images(const Tensor& x, int64_t ndim, bool adjoint, int64_t* sides) {
  const ElementType type = element_type(x);
  if (adjoint && is_integer(type)) refuse("a gradient must be floating point, but got " + name_of(x.scalar_type()));
  check_number("the number of spatial dims", ndim, 0, 3);
  if (x.dim() < ndim + 1) {
    refuse("images with " + std::to_string(ndim) + " spatial dims must have a batch dim before them, but got shape " + shape_of(x.sizes()));
  }
  to_sides(x.sizes(), x.dim() - ndim, ndim, sides);
  check_sides(sides, 0);
}

// Labels of a batch: (batch,) classes, or (batch, num_classes) of any real dtype if `soft`.
inline void check_labels(const Tensor& y, int64_t batch, int64_t num_classes, bool soft) {
  check_number("the number of classes", num_classes, 1, INT64_MAX);
  const auto sizes = y.sizes();
  const bool fits = (sizes.size() == 1 || (soft && sizes.size() == 2 && sizes[1] == num_classes)) && sizes[0] == batch;
  if (!fits) {
    const std::string wanted = "of shape " + shape_of(std::initializer_list<int64_t>{batch});
    refuse("labels", y, soft ? wanted + " or " + shape_of(std::initializer_list<int64_t>{batch, num_classes}) : wanted);
  }
  const ScalarType type = y.scalar_type();
  if (sizes.size() == 1 && (is_floating(type) || type == ScalarType::Bool)) refuse("labels", y, "integers, where they are classes");
}

// Images to mix in place: no two elements may share memory. From the smallest stride up, each dim must step over all that the dims
// before it span.
inline void check_apart(const Tensor& x) {
  if (x.is_contiguous()) return;  // as one without elements is, too
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (x.size(d) > 1) dims.emplace_back(x.stride(d), x.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t span = 0;
  for (const auto& [stride, size] : dims) {
    if (stride <= span) refuse("images cannot be mixed in place: their memory overlaps itself");
    span += stride * (size - 1);
  }
}

// ---- what tensors of the host hold ----

// `spatial`: of images that have spatial dims.
inline void check_masks(const PlanView& plan, int64_t batch, bool spatial) {
  for (int64_t i = 0; i < batch; ++i) {
    if (!is_of(plan.masks[i], spatial ? plan.families : plan.families & kConstants)) {
      refuse("masks must be of the plan's families, " + std::to_string(plan.families) +
             (spatial ? "" : ", and constant where ndim is 0") + ", but that of sample " + std::to_string(i) + " is of kind " +
             std::to_string(plan.masks[i].kind));
    }
    const double wanted = stored_bits(plan.masks[i]), there = static_cast<double>(plan.pixels.stride) * (plan.pixels.bits != nullptr ? 32 : 16);
    if (wanted > 0.0 && !is_stored(plan)) refuse("pixels must hold the masks of FMix and of large grids, but got None");
    if (wanted > there) {
      refuse("pixels must have a bit for each cell of the mask of sample " + std::to_string(i) + ", but has " +
             std::to_string(static_cast<int64_t>(there)) + " in a row");
    }
  }
}

// Classes of a batch, in [0, num_classes). (Torch is asked for nothing in a loop: each answer is a call into its library.)
inline void check_classes(const Tensor& labels, int64_t num_classes) {
  const int64_t batch = labels.size(0), step = labels.stride(0);
  of_label(label_type(labels), [&](auto as) {
    const auto* label = static_cast<const decltype(as)*>(labels.const_data_ptr());
    for (int64_t i = 0; i < batch; ++i) {
      const auto k = label_as<int64_t>(label[i * step]);
      if (k >= 0 && k < num_classes) continue;
      throw std::invalid_argument("labels must be in [0, num_classes) = [0, " + std::to_string(num_classes) + "), but got " +
                                  std::to_string(k) + ".");
    }
  });
}

inline bool is_integer(double x) { return std::fabs(x) < 0x1p31 && x == std::floor(x); }

// What may be drawn: (methods, columns) numbers on the host.
inline Tensor packed_spec(const Tensor& spec) {
  if (spec.is_cuda()) refuse("spec must be on the CPU");
  Tensor rows = packed("spec", spec, ScalarType::Double, {kAny, sizeof(MethodRow) / sizeof(double)});
  check_number("the number of methods", rows.size(0), 1, INT32_MAX);
  const auto* row = static_cast<const MethodRow*>(rows.const_data_ptr());
  for (int64_t i = 0, methods = rows.size(0); i < methods; ++i) {
    const MethodRow& r = row[i];
    const bool known = is_integer(r.method) && r.families > 0 && is_integer(r.draws) &&
                       r.families == of_method(r.method, [&](const auto& family) { return family.may_hold(r); });
    const bool boxes = r.side_low >= 0 && r.side_low <= r.side_high && r.side_high <= 1 && r.aspect_low >= 0 &&
                       r.aspect_low <= r.aspect_high && std::isfinite(r.aspect_high) && r.ratio_alpha >= 0;
    if (!known || !boxes || !(r.decay >= 0 && r.decay <= 100 && r.cutoff >= 0 && r.soft == r.soft)) {
      refuse("row " + std::to_string(i) + " of spec describes no method");
    }
  }
  return rows;
}

}  // namespace fusedmix
