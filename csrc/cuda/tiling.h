// Which vector of which sample a thread has, where a block has a tile of one sample or of several.
#pragma once

#include "kernels.h"

namespace fusedmix::cuda {

struct Tiling {
  uint32_t batch, columns;  // samples, and vectors in each
  int32_t log_column;       // a tile has 2^log_column vectors
  bool by_tile;             // blocks of one tile of all samples follow each other, not those of all tiles of a sample
  Divisor inner;            // of blocks, the number of those that follow each other: tiles of a sample, or groups of samples
  uint32_t blocks;
};

// Of threads that have one vector of so many samples each. Host code.
inline Tiling tiling_of(int64_t batch, int64_t columns, int32_t log_column, bool by_tile, int64_t samples = 1) {
  const int64_t tiles = divide_up(columns, int64_t{1} << log_column), groups = divide_up(batch, samples << (kEachLog - log_column));
  return {static_cast<uint32_t>(batch), static_cast<uint32_t>(columns),   log_column,
          by_tile,                      divisor(by_tile ? groups : tiles), static_cast<uint32_t>(launchable(tiles * groups))};
}

// `is_there`: a vector that there is.
struct Spot {
  bool is_there;
  uint32_t sample, column;  // the first of its samples
};
FUSEDMIX_DEVICE Spot spot_of(const Tiling& t, uint32_t samples = 1) {
  const uint32_t outer = divide(device::block(), t.inner), inner = device::block() - outer * t.inner.number;
  const uint32_t tile = t.by_tile ? outer : inner, group = (t.by_tile ? inner : outer) << (kEachLog - t.log_column);
  const uint32_t column = (tile << t.log_column) + (device::thread() & ((1u << t.log_column) - 1));
  const uint32_t sample = (group + (device::thread() >> t.log_column)) * samples;
  return {column < t.columns && sample < t.batch, sample, column};
}

// launch.of_width<T, V>() for elements of a type, V at a time: of all widths that shape.cpp chooses.
template <class Launch>
int of_vectors(const Launch& launch, ElementType type, int32_t width) {
  const auto of_half = [&](auto half) {
    using T = decltype(half);
    if (width == 8) return launch.template of_width<T, 8>();
    return width == 2 ? launch.template of_width<T, 2>() : launch.template of_width<T, 1>();
  };
  switch (type) {
    case ElementType::kFloat16: return of_half(Half{});
    case ElementType::kBFloat16: return of_half(BFloat16{});
    case ElementType::kFloat32: return width == 4 ? launch.template of_width<float, 4>() : launch.template of_width<float, 1>();
    case ElementType::kFloat64: return width == 2 ? launch.template of_width<double, 2>() : launch.template of_width<double, 1>();
    case ElementType::kInt16:
    case ElementType::kUInt16: return launch.template of_width<uint16_t, 1>();
    default: break;
  }
  if (width == 16) return launch.template of_width<uint8_t, 16>();
  return width == 4 ? launch.template of_width<uint8_t, 4>() : launch.template of_width<uint8_t, 1>();
}

}  // namespace fusedmix::cuda
