// Elements at one step from each other, copied to others at another step.
#pragma once

#include <cstdint>
#include <cstring>

namespace fusedmix::cpu {

template <class T>
void copy_elements(char* to, int64_t to_step, const char* from, int64_t from_step, int64_t n) {
  T* o = reinterpret_cast<T*>(to);
  const T* x = reinterpret_cast<const T*>(from);
  for (int64_t k = 0; k < n; ++k) o[k * to_step] = x[k * from_step];
}

// n elements of `size` bytes; steps are in elements.
inline void copy_strided(char* to, int64_t to_step, const char* from, int64_t from_step, int64_t n, int64_t size) {
  if (to_step == 1 && from_step == 1) {
    std::memcpy(to, from, n * size);
    return;
  }
  switch (size) {
    case 1: return copy_elements<uint8_t>(to, to_step, from, from_step, n);
    case 2: return copy_elements<uint16_t>(to, to_step, from, from_step, n);
    case 4: return copy_elements<uint32_t>(to, to_step, from, from_step, n);
    default: return copy_elements<uint64_t>(to, to_step, from, from_step, n);
  }
}

}  // namespace fusedmix::cpu
