// The innermost loops of border_costs. Internal linkage: this is compiled for several instruction sets.
#pragma once

#include "borders.h"
#include "convert.h"

namespace fusedmix::cpu {
namespace {

constexpr int64_t kBorderPixels = 1024;  // of a row at a time: the buffers stay in the first-level cache
constexpr int64_t kMostLanes = 16;       // channels that are summed together, where they lie together

// n pixels of a row as float32.
template <class T>
inline void read_pixels(float* __restrict out, const T* from, int64_t step, int64_t n) {
  if (step == 1) return widen(out, from, n);
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(to_compute(from[i * step]));
}
template <class T>
inline void add_pixels(float* __restrict sum, const T* from, int64_t step, int64_t n) {
  if constexpr (__is_same(T, Half)) {
    float next[kBorderPixels];
    read_pixels(next, from, step, n);
    for (int64_t i = 0; i < n; ++i) sum[i] += next[i];
  } else if (step == 1) {
    for (int64_t i = 0; i < n; ++i) sum[i] += static_cast<float>(to_compute(from[i]));
  } else {
    for (int64_t i = 0; i < n; ++i) sum[i] += static_cast<float>(to_compute(from[i * step]));
  }
}

// How images are read. Channels that lie together, as lanes, are treated as one.
struct BorderPixels {
  int64_t high, row, step, lanes;

  explicit BorderPixels(const BorderCosts& images) : high(images.side[0].patch), row(images.step[2]), step(images.step[3]), lanes(1) {
    if (images.step[1] != 1 || step != images.channels || images.channels > kMostLanes) return;
    lanes = images.channels;
    step = 1;
  }
};

// n patches beside each other: over their rows, then over their columns.
template <int kWide, class T>
inline void sum_patches(float* out, int64_t out_step, int64_t lane_step, const T* from, const BorderPixels& its, int64_t n) {
  const int64_t columns = n * kWide * its.lanes;
  float sum[kBorderPixels];
  read_pixels(sum, from, its.step, columns);
  for (int64_t y = 1; y < its.high; ++y) add_pixels(sum, from + y * its.row, its.step, columns);
  for (int64_t c = 0; c < its.lanes; ++c) {
    for (int64_t p = 0; p < n; ++p) {
      float total = sum[p * kWide * its.lanes + c];
      for (int64_t x = 1; x < kWide; ++x) total += sum[(p * kWide + x) * its.lanes + c];
      out[c * lane_step + p * out_step] = total;
    }
  }
}

template <int kWide, class T>
void sum_row_of_patches(float* out, int64_t lane_step, const T* from, const BorderPixels& its, int64_t n) {
  const int64_t most = kBorderPixels / (kWide * its.lanes);
  for (int64_t first = 0; first < n; first += most) {
    const int64_t count = n - first < most ? n - first : most;
    sum_patches<kWide>(out + first, 1, lane_step, from + first * kWide * its.lanes * its.step, its, count);
  }
}

// The same of two patches in contiguous rows, in registers: a processor looks as many instructions ahead as it can for loads to begin,
// most of which find nothing in a cache, so these are few.
template <int kWide, class T>
inline __attribute__((always_inline)) void sum_two_patches(float* out, int64_t out_step, const T* from, int64_t row, int64_t high) {
  float sum[2 * kWide], next[2 * kWide];
  widen(sum, from, 2 * kWide);
  for (int64_t y = 1; y < high; ++y) {
    widen(next, from + y * row, 2 * kWide);
    for (int64_t x = 0; x < 2 * kWide; ++x) sum[x] += next[x];
  }
  for (int64_t p = 0; p < 2; ++p) {
    float total = sum[p * kWide];
    for (int64_t x = 1; x < kWide; ++x) total += sum[p * kWide + x];
    out[p * out_step] = total;
  }
}

// Asks for so many bytes of each row of a band. The hardware foresees the rows of an image, but not a few pixels of each of them: blocks
// of 56x56 pixels took a quarter less time. (Inlined: a function that does nothing else is one that a compiler leaves out.)
inline __attribute__((always_inline)) void ask_for_rows_of(const char* from, int64_t row, int64_t high, int64_t bytes) {
  for (int64_t y = 0; y < high; ++y, from += row) {
    __builtin_prefetch(from, 0, 2);
    __builtin_prefetch(from + bytes - 1, 0, 2);
  }
}

// One band of patches after the other, in the order in which images lie in memory.
template <int kWide, class T>
void sum_borders_by(const BorderCosts& images, int64_t sample, const BorderSums& sums) {
  const BlockSide &y = images.side[0], &x = images.side[1];
  const int64_t bands = y.patches(), across = x.patches(), length = y.patches_of_block();
  const int64_t below = images.borders(0), right = images.borders(1);
  const BorderPixels its(images);
  const int64_t column = its.step * its.lanes, block = x.pixels / x.blocks * column;
  const int64_t lanes_below = below * 2 * across, lanes_right = right * 2 * bands;
  for (int64_t band = 0; band < bands; ++band) {
    const int64_t last = band / length;  // the border that it is the last before, or the first behind that before it
    const bool is_before = band % length == length - 1 && last < below, is_behind = band % length == 0 && last > 0;
    for (int64_t c = 0; c < images.channels; c += its.lanes) {
      const T* const from = static_cast<const T*>(images.x) + sample * images.step[0] + c * images.step[1] + band * its.high * its.row;
      float* const to_right = sums.of[1] + c * lanes_right + band;
      for (int64_t k = 0; k < right; ++k) {
        float* const to = to_right + k * 2 * bands;
        const T* const before = from + (k + 1) * block - kWide * column;
        if (band + 1 < bands) {
          const auto next = reinterpret_cast<const char*>(before + its.high * its.row);
          ask_for_rows_of(next, its.row * sizeof(T), its.high, 2 * kWide * column * sizeof(T));
        }
        if (column != 1) {
          sum_patches<kWide>(to, bands, lanes_right, before, its, 2);
        } else if (its.high == kMostNear) {
          sum_two_patches<kWide>(to, bands, before, its.row, kMostNear);
        } else {
          sum_two_patches<kWide>(to, bands, before, its.row, its.high);
        }
      }
      float* const to_below = sums.of[0] + c * lanes_below + last * 2 * across;
      if (is_before) sum_row_of_patches<kWide>(to_below, lanes_below, from, its, across);
      if (is_behind) sum_row_of_patches<kWide>(to_below - across, lanes_below, from, its, across);
    }
  }
}

template <class T>
void sum_borders(const BorderCosts& images, int64_t sample, const BorderSums& sums) {
  switch (images.side[1].patch) {
    case 1: return sum_borders_by<1, T>(images, sample, sums);
    case 2: return sum_borders_by<2, T>(images, sample, sums);
    case 3: return sum_borders_by<3, T>(images, sample, sums);
    default: return sum_borders_by<4, T>(images, sample, sums);
  }
}

void border_differences(const BorderCosts& images, int64_t sample, const BorderSums& own, const BorderSums& lent) {
  constexpr int64_t kPatches = 64;  // at a time
  for (int axis = 0; axis < 2; ++axis) {
    const BlockSide& along = images.side[1 - axis];
    const int64_t patches = along.patches(), length = along.patches_of_block(), plane = images.borders(axis) * 2 * patches;
    const float share = images.share(axis);
    for (int64_t border = 0; border < images.borders(axis); ++border) {
      float total[4] = {};
      int64_t block = 0, left = length;  // of its patches
      for (int64_t first = 0; first < patches; first += kPatches) {
        const int64_t n = patches - first < kPatches ? patches - first : kPatches;
        float apart[4][kPatches] = {};
        for (int64_t c = 0; c < images.channels; ++c) {
          const int64_t at = c * plane + border * 2 * patches + first;
          const float *a = own.of[axis] + at, *b = lent.of[axis] + at, scale = images.scale[c];
          for (int64_t p = 0; p < n; ++p) {
            const float behind_a = a[patches + p], behind_b = b[patches + p];
            apart[0][p] += __builtin_fabsf(a[p] - behind_a) * scale;
            apart[1][p] += __builtin_fabsf(a[p] - behind_b) * scale;
            apart[2][p] += __builtin_fabsf(b[p] - behind_a) * scale;
            apart[3][p] += __builtin_fabsf(b[p] - behind_b) * scale;
          }
        }
        for (int64_t p = 0; p < n; ++p) {
          for (int way = 0; way < 4; ++way) total[way] += apart[way][p];
          if (--left > 0) continue;
          float* const out = images.out(axis, sample, border, block++);
          left = length;
          for (int way = 0; way < 4; ++way) {
            out[way * images.out_step(axis)] = total[way] * share;
            total[way] = 0.0f;
          }
        }
      }
    }
  }
}

constexpr BorderKernels border_kernels() {
  return {{sum_borders<float>, sum_borders<Half>, sum_borders<BFloat16>, sum_borders<double>, sum_borders<uint8_t>, sum_borders<int16_t>,
           sum_borders<uint16_t>},
          border_differences};
}

}  // namespace
}  // namespace fusedmix::cpu
