// The innermost loops of pasting and of sums. Internal linkage: this is compiled for several instruction sets.
#pragma once

#include "../include/fusedmix/blend.h"
#include "convert.h"
#include "gather.h"

namespace fusedmix::cpu {
namespace {

constexpr int64_t kGatherChunk = 256;  // elements at a time: what waits between two loops stays in the first-level cache

template <class T>
inline void round_row(T* __restrict out, const Compute<T>* in, int64_t n) {
  if constexpr (std::is_integral_v<T>) {
    for (int64_t i = 0; i < n; ++i) out[i] = rounded<T>(in[i]);
  } else {
    narrow<T>(out, in, n);
  }
}

// n elements of a row from its element `begin` on, as they are.
template <class T>
inline void pick(T* __restrict out, const T* from, int64_t step, const int32_t* place, int64_t begin, int64_t n) {
  if (place == nullptr) {
    for (int64_t i = 0; i < n; ++i) out[i] = from[(begin + i) * step];
  } else if (step == 1) {
    for (int64_t i = 0; i < n; ++i) out[i] = from[place[begin + i]];
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = from[place[begin + i] * step];
  }
}

// The same, resampled along the axes from kAxis on; `place` is of those along the row, if that axis is not among them.
template <int kAxis, class T>
inline void resample(Compute<T>* __restrict out, const T* from, const PatchRow& row, const int32_t* place, int64_t begin, int64_t n) {
  using C = Compute<T>;
  if constexpr (kAxis == 3) {
    if constexpr (__is_same(T, C)) {
      pick(out, from, row.step, place, begin, n);
    } else if (place == nullptr && row.step == 1) {
      widen(out, from + begin, n);
    } else {
      T picked[kGatherChunk];
      pick(picked, from, row.step, place, begin, n);
      widen(out, picked, n);
    }
  } else {
    C other[kGatherChunk];
    if (kAxis == row.axis) {
      resample<kAxis + 1>(out, from, row, row.first, begin, n);
      if (row.second == nullptr) return;
      resample<kAxis + 1>(other, from, row, row.second, begin, n);
      for (int64_t i = 0; i < n; ++i) out[i] = between(out[i], other[i], row.share[begin + i]);
    } else {
      resample<kAxis + 1>(out, from, row, place, begin, n);
      const float share = row.outside[kAxis].share;
      if (share == 0.0f) return;
      resample<kAxis + 1>(other, from + row.outside[kAxis].step, row, place, begin, n);
      for (int64_t i = 0; i < n; ++i) out[i] = between(out[i], other[i], share);
    }
  }
}

template <class T>
void patch_row(void* to, const PatchRow& row, int64_t n) {
  T* const out = static_cast<T*>(to);
  const T* const from = static_cast<const T*>(row.from);
  if (!row.mixed) return pick(out, from, row.step, row.first, 0, n);
  for (int64_t i = 0; i < n; i += kGatherChunk) {
    const int64_t m = n - i < kGatherChunk ? n - i : kGatherChunk;
    Compute<T> made[kGatherChunk];
    resample<0>(made, from, row, nullptr, i, m);
    round_row(out + i, made, m);
  }
}

template <class T>
void sum_row(void* to, const void* const* in, const float* w, int64_t count, int64_t n) {
  using C = Compute<T>;
  for (int64_t i = 0; i < n; i += kGatherChunk) {
    const int64_t m = n - i < kGatherChunk ? n - i : kGatherChunk;
    C sum[kGatherChunk], wide[kGatherChunk];
    for (int64_t k = 0; k < count; ++k) {
      const T* term = static_cast<const T*>(in[k]) + i;
      const C weight = static_cast<C>(w[k]), *x = wide;
      if constexpr (__is_same(T, C)) {
        x = term;
      } else {
        widen(wide, term, m);
      }
      if (k == 0) {
        for (int64_t j = 0; j < m; ++j) sum[j] = weight * x[j];
      } else {
        for (int64_t j = 0; j < m; ++j) sum[j] = fma(weight, x[j], sum[j]);
      }
    }
    for (int64_t j = 0; count == 0 && j < m; ++j) sum[j] = C{0};
    round_row(static_cast<T*>(to) + i, sum, m);
  }
}

template <class T>
constexpr GatherRows gather_rows() {
  return {patch_row<T>, sum_row<T>};
}

}  // namespace
}  // namespace fusedmix::cpu
