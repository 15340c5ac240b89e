// Rows between element types. Internal linkage: this is compiled for several instruction sets.
#pragma once

#include "../include/fusedmix/element.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace fusedmix::cpu {
namespace {

template <class C, class T>
inline void widen(C* out, const T* in, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<C>(to_compute(in[i]));
}

template <class T>
inline void narrow(T* out, const Compute<T>* in, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_integral_v<T>) {  // that is what the number is
      out[i] = static_cast<T>(static_cast<int32_t>(in[i]));
    } else {
      out[i] = from_compute<T>(in[i]);
    }
  }
}

#if defined(__F16C__)
template <>
inline void widen<float, Half>(float* out, const Half* in, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  }
  for (; i < n; ++i) out[i] = to_compute(in[i]);
}
template <>
inline void narrow<Half>(Half* out, const float* in, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), half);
  }
  for (; i < n; ++i) out[i] = from_compute<Half>(in[i]);
}
#endif

}  // namespace
}  // namespace fusedmix::cpu
