// Tensors to write, and what they hold. Of torch only its stable ABI: one binary serves every torch from 2.10 on.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "../include/fusedmix/memory.h"
#include "checks.h"
#include "kept_memory.h"

namespace fusedmix {

// Memory straight from the allocator: a dispatched aten::empty costs twice as much. torch keeps the allocator's reason to
// itself (it has printed it).
inline Tensor allocate(const char* what, int64_t rank, const int64_t* sizes, const int64_t* strides, ScalarType dtype,
                       int32_t device_type, int32_t device_index) {
  const auto scalar = static_cast<int32_t>(dtype);
  double bytes = static_cast<double>(bytes_of(dtype));
  for (int64_t d = 0; d < rank; ++d) bytes *= static_cast<double>(sizes[d]);
  if (device_type == aoti_torch_device_type_cpu() && bytes >= KeptMemory::kLeast && bytes < KeptMemory::kMost) {
    const AtenTensorHandle kept = KeptMemory::tensor(static_cast<int64_t>(bytes), rank, sizes, strides, scalar);
    if (kept != nullptr) return Tensor(kept);
  }
  AtenTensorHandle handle;
  if (aoti_torch_empty_strided(rank, sizes, strides, scalar, device_type, device_index, &handle) != AOTI_TORCH_SUCCESS) {
    out_of_memory(what, bytes);
  }
  return Tensor(handle);
}

// The tensor that `make` allocates through the dispatcher: so many elements of x's dtype.
template <class Make>
Tensor allocated(const char* what, const Tensor& x, double elements, const Make& make) {
  try {
    return make();
  } catch (const std::exception&) {
    out_of_memory(what, elements * static_cast<double>(bytes_of(x.scalar_type())));
  }
}

// Contiguous memory of one dtype on a device.
inline Tensor empty(const char* what, std::initializer_list<int64_t> sizes, ScalarType dtype, int32_t device_type,
                    int32_t device_index) {
  int64_t strides[4], step = 1;
  for (int d = static_cast<int>(sizes.size()) - 1; d >= 0; --d) {
    strides[d] = step;
    step *= std::max<int64_t>(1, sizes.begin()[d]);
  }
  return allocate(what, static_cast<int64_t>(sizes.size()), sizes.begin(), strides, dtype, device_type, device_index);
}

inline Tensor empty_cpu(const char* what, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return empty(what, sizes, dtype, aoti_torch_device_type_cpu(), 0);
}

// torch.empty_like(x), for the mixed images. Where x fills its memory, without the dispatcher, which takes most of the time
// of a small one.
inline Tensor new_like(const Tensor& x) {
  constexpr char kWhat[] = "the mixed images";
  const auto sizes = x.sizes(), strides = x.strides();
  const int64_t rank = x.dim();
  int64_t filled = 1;  // elements of the dims that lie one inside the other without a gap
  for (int64_t before = 0; filled != before;) {
    before = filled;
    for (int64_t d = rank - 1; d >= 0; --d) filled *= sizes[d] != 1 && strides[d] == filled ? sizes[d] : 1;
  }
  if (filled != x.numel() || filled == 0) {
    return allocated(kWhat, x, static_cast<double>(x.numel()), [&] { return torch::stable::empty_like(x); });
  }
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device_type));
  return allocate(kWhat, rank, sizes.data(), strides.data(), x.scalar_type(), device_type, x.get_device_index());
}

// (n, *size) float32 masks beside a tensor.
inline Tensor new_masks(const Tensor& beside, int64_t n, const std::vector<int64_t>& size) {
  std::vector<int64_t> shape{n};
  shape.insert(shape.end(), size.begin(), size.end());
  double elements = 1;
  for (const int64_t side : shape) elements *= static_cast<double>(side);
  return allocated("the masks", beside, elements, [&] {
    return torch::stable::new_empty(beside, torch::headeronly::IntHeaderOnlyArrayRef(shape), ScalarType::Float);
  });
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <class T>
const T* const_data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

}  // namespace fusedmix
