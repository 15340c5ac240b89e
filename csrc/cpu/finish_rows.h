// The innermost loops of a batch that is finished. Internal linkage: this is compiled for several instruction sets.
#pragma once

#include "convert.h"
#include "finish.h"

namespace fusedmix::cpu {
namespace {

constexpr int64_t kFinishChunk = 256;  // elements that wait to be narrowed

inline float finish_one(float a, float b, float w, float scale, float shift) {
  return fma(blend<float>(w, a, b), scale, shift);
}
inline float finish_one(uint8_t a, uint8_t b, float w, float scale, float shift) { return finish_bytes(w, a, b, scale, shift); }

template <class In, class F>
inline void finish_loop(float* __restrict out, const In* a, const In* b, int64_t n, const F& f) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = f(a[i], b[i], i);
}

// f of each pair of elements, narrowed to Out.
template <class In, class Out, class F>
inline void finish_row(void* to, const void* from, const void* lent, int64_t n, const F& f) {
  auto* out = static_cast<Out*>(to);
  const auto *a = static_cast<const In*>(from), *b = static_cast<const In*>(lent);
  if constexpr (__is_same(Out, float)) {
    finish_loop(out, a, b, n, f);
  } else {
    float chunk[kFinishChunk];
    for (int64_t i = 0; i < n; i += kFinishChunk) {
      const int64_t m = n - i < kFinishChunk ? n - i : kFinishChunk;
      finish_loop(chunk, a + i, b + i, m, [&](In x, In y, int64_t k) { return f(x, y, i + k); });
      narrow<Out>(out + i, chunk, m);
    }
  }
}

template <class In, class Out>
constexpr FinishRows finish_rows() {
  return {
      [](void* out, const void* a, int64_t n, float scale, float shift) {
        finish_row<In, Out>(out, a, a, n, [=](In x, In, int64_t) { return fma(static_cast<float>(x), scale, shift); });
      },
      [](void* out, const void* a, const void* b, int64_t n, float w, float scale, float shift) {
        finish_row<In, Out>(out, a, b, n, [=](In x, In y, int64_t) { return finish_one(x, y, w, scale, shift); });
      },
      [](void* out, const void* a, const void* b, int64_t n, const float* w, float scale, float shift) {
        finish_row<In, Out>(out, a, b, n, [=](In x, In y, int64_t i) { return finish_one(x, y, w[i], scale, shift); });
      },
  };
}

// f with a type of so many bytes.
template <class F>
inline void of_size(int size, const F& f) {
  size == 1 ? f(uint8_t{}) : (size == 2 ? f(uint16_t{}) : f(uint32_t{}));
}

// kChannels: how many there are, or 0 for any number.
template <int kChannels, class T>
inline void split(T* __restrict planes, const T* __restrict pixels, int64_t channels, int64_t n) {
  const int64_t count = kChannels == 0 ? channels : kChannels;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < count; ++c) planes[c * n + i] = pixels[i * count + c];
  }
}
template <int kChannels, class T>
inline void join(T* __restrict pixels, const T* __restrict planes, int64_t channels, int64_t n) {
  const int64_t count = kChannels == 0 ? channels : kChannels;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < count; ++c) pixels[i * count + c] = planes[c * n + i];
  }
}

template <class T>
inline void gather(T* __restrict out, const T* from, int64_t n, int64_t step) {
  if (step == -1) {
    for (int64_t i = 0; i < n; ++i) out[i] = from[-i];
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = from[i * step];
  }
}

constexpr FinishKernels finish_kernels() {
  return {
      {{finish_rows<float, float>(), finish_rows<float, Half>(), finish_rows<float, BFloat16>()},
       {finish_rows<uint8_t, float>(), finish_rows<uint8_t, Half>(), finish_rows<uint8_t, BFloat16>()}},
      [](void* planes, const void* pixels, int64_t channels, int64_t n, int size) {
        of_size(size, [&](auto type) {
          auto* to = static_cast<decltype(type)*>(planes);
          const auto* from = static_cast<const decltype(type)*>(pixels);
          channels == 3 ? split<3>(to, from, channels, n) : split<0>(to, from, channels, n);
        });
      },
      [](void* pixels, const void* planes, int64_t channels, int64_t n, int size) {
        of_size(size, [&](auto type) {
          auto* to = static_cast<decltype(type)*>(pixels);
          const auto* from = static_cast<const decltype(type)*>(planes);
          channels == 3 ? join<3>(to, from, channels, n) : join<0>(to, from, channels, n);
        });
      },
      [](void* out, const void* from, int64_t n, int64_t step, int size) {
        of_size(size, [&](auto type) {
          gather(static_cast<decltype(type)*>(out), static_cast<const decltype(type)*>(from), n, step);
        });
      },
      [](float* out, const void* from, int64_t n, ElementType type) {
        type == ElementType::kFloat16 ? fusedmix::cpu::widen(out, static_cast<const Half*>(from), n)
                                      : fusedmix::cpu::widen(out, static_cast<const BFloat16*>(from), n);
      },
      [](float* out, int64_t stride, int64_t channels, int64_t n, uint64_t seed, uint64_t index, uint32_t call) {
        float pair[4][kFinishChunk];
        for (int64_t i = 0; i < n; i += kFinishChunk) {
          const int64_t m = n - i < kFinishChunk ? n - i : kFinishChunk;
#pragma GCC ivdep
          for (int64_t k = 0; k < m; ++k) {
            const Words w = words(seed, index + static_cast<uint64_t>(i + k), kStreamFill, call);
            const Pair one = normals(w.a, w.b), other = normals(w.c, w.d);
            pair[0][k] = one.a;
            pair[1][k] = one.b;
            pair[2][k] = other.a;
            pair[3][k] = other.b;
          }
          for (int64_t c = 0; c < channels; ++c) __builtin_memcpy(out + c * stride + i, pair[c], m * sizeof(float));
        }
      },
  };
}

}  // namespace
}  // namespace fusedmix::cpu
