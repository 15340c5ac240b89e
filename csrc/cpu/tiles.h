// How a batch is cut for threads: into tiles, each at one place of every sample, and into parts of the walk along partners.
#pragma once

#include <algorithm>
#include <vector>

#include "../include/fusedmix/layout.h"
#include "cycles.h"
#include "kernels.h"

namespace fusedmix::cpu {

// A tile has so many bytes of a sample at most: long streams, of which a chain fits a second-level cache.
constexpr int64_t kTileBytes = 1 << 16;
// So many elements of a sample are mixed at a time, where there is a weight for each.
constexpr int64_t kBlock = 1024;
// With fewer elements, torch's own measure, waking threads takes longer than the work.
constexpr int64_t kWorthAThread = 32768;
constexpr int64_t kCacheLine = 64;

inline int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

// n things in groups of `most` at most, all alike: how many are in one.
inline int64_t even_groups(int64_t n, int64_t most) { return ceil_div(n, ceil_div(n, std::max<int64_t>(1, most))); }

struct Tiling {
  int64_t threads, tiles, parts;
  int64_t row_count, rows;  // of a sample, and of a tile
  int64_t piece, pieces;    // how much of a row is in a tile, and how many such pieces a row has
  bool whole_samples;       // whether a tile is a sample
};

// `size`: the bytes of an element; `tile_bytes`: of one sample.
inline Tiling tiling_of(const Layout& layout, const Row& row, int64_t size, int threads, int64_t tile_bytes = kTileBytes) {
  // Threads take the next tile when they are done with one, and a box makes some of them empty: so there are several for each
  // thread, unless that makes them shorter than so many elements.
  constexpr int64_t kTilesEach = 4, kWorthATile = 512;
  constexpr int64_t kWorthAPart = 16;  // A part of the walk has so many samples at least.
  Tiling t{};
  t.threads = layout.batch * layout.elements < kWorthAThread ? 1 : threads;
  const int64_t each = std::max<int64_t>(1, std::min(kTilesEach, layout.elements / (kWorthATile * t.threads)));
  const int64_t fair = t.threads == 1 ? layout.elements : ceil_div(layout.elements, each * t.threads);
  t.whole_samples = layout.elements * size <= tile_bytes && (t.threads == 1 || layout.batch >= kWorthAPart * t.threads);
  const int64_t wanted = t.whole_samples ? layout.elements : fair;
  const int64_t most = std::max<int64_t>(2 * kCacheLine / size, std::min(tile_bytes / size, wanted));
  t.row_count = 1;
  for (int d = 0; d < row.outer_rank; ++d) t.row_count *= layout.dims[d].size;
  t.rows = even_groups(t.row_count, most / row.length);
  t.piece = t.rows > 1 ? row.length : even_groups(row.length, most);
  t.pieces = ceil_div(row.length, t.piece);
  t.tiles = t.pieces * ceil_div(t.row_count, t.rows);
  t.parts = t.whole_samples && t.threads > 1 ? std::min(kTilesEach * t.threads, layout.batch / kWorthAPart) : 1;
  return t;
}

// A row of a tile: where it starts in a sample of the source and of the destination, and its coordinates outside the row.
struct RowAt {
  int64_t src, dst;
  int32_t at[3];
};

struct Tile {
  int64_t first;  // which row of a sample it begins with
  std::vector<RowAt> rows;
  int64_t begin, end;       // of every row
  int32_t low[3], high[3];  // the coordinates of the rows, the last included
  bool adjoin;              // whether the rows lie behind each other
};

// Some elements of a tile: a part of a row, or several rows that adjoin.
struct Block {
  const RowAt* row;
  int64_t rows, begin, end;
  int64_t offset;  // in the tile

  int64_t elements() const { return rows * (end - begin); }
};

// `packed`: the elements of a row lie behind each other.
inline void place(Tile& tile, int64_t index, const Tiling& tiling, const Layout& layout, const Row& along, bool packed) {
  tile.first = index / tiling.pieces * tiling.rows;
  tile.rows.resize(std::min(tiling.rows, tiling.row_count - tile.first));
  tile.begin = index % tiling.pieces * tiling.piece;
  tile.end = std::min(along.length, tile.begin + tiling.piece);
  tile.adjoin = packed;
  int64_t at[kMaxDims], rest = tile.first;
  RowAt row{0, 0, {0, 0, 0}};
  for (int d = along.outer_rank - 1; d >= 0; rest /= layout.dims[d--].size) {
    const Dim& dim = layout.dims[d];
    at[d] = rest % dim.size;
    row.src += at[d] * dim.src;
    row.dst += at[d] * dim.dst;
    if (dim.axis >= 0) row.at[dim.axis] = static_cast<int32_t>(at[d]);
  }
  std::copy(row.at, row.at + 3, tile.low);
  std::copy(row.at, row.at + 3, tile.high);
  for (RowAt& placed : tile.rows) {
    if (&placed != tile.rows.data()) {
      const RowAt before = row;
      for (int d = along.outer_rank - 1; d >= 0; --d) {  // to the next row
        const Dim& dim = layout.dims[d];
        const int64_t step = ++at[d] < dim.size ? 1 : 1 - dim.size;
        row.src += step * dim.src;
        row.dst += step * dim.dst;
        if (dim.axis >= 0) row.at[dim.axis] += static_cast<int32_t>(step);
        if (step == 1) break;
        at[d] = 0;
      }
      tile.adjoin = tile.adjoin && row.src - before.src == along.length && row.dst - before.dst == along.length;
    }
    placed = row;
    for (int axis = 0; axis < 3; ++axis) {
      tile.low[axis] = std::min(tile.low[axis], row.at[axis]);
      tile.high[axis] = std::max(tile.high[axis], row.at[axis]);
    }
  }
}

// f of blocks of `most` elements and `most_rows` rows at most, which make up the tile. What is gathered is in blocks of kBlock.
template <class F>
void for_blocks(const Tile& tile, int64_t most, int64_t most_rows, bool packed, const F& f) {
  const int64_t rows = static_cast<int64_t>(tile.rows.size()), width = tile.end - tile.begin;
  const int64_t together = tile.adjoin ? std::max<int64_t>(1, std::min(most / width, most_rows)) : 1;
  const int64_t step = packed ? most : kBlock;
  for (int64_t row = 0; row < rows; row += together) {
    for (int64_t begin = tile.begin; begin < tile.end; begin += step) {
      const int64_t end = std::min(tile.end, begin + step);
      f(Block{&tile.rows[row], std::min(together, rows - row), begin, end, row * width + begin - tile.begin});
    }
  }
}

// Parts of the walk along the cycles for threads. In place, what a part needs of a sample that another part may have
// overwritten is kept aside before any of them begins.
struct Parts {
  struct Head {
    int64_t sample, needed_by;
  };
  std::vector<int64_t> start;  // of each part, and where the last one stops
  std::vector<Head> heads;     // what is kept aside
};

// A cycle that is one chain is not cut.
inline Parts parts_of(const Cycles& cycles, int64_t parts, bool in_place) {
  const std::vector<int64_t>&order = cycles.order, &start = cycles.start;
  Parts made;
  made.start.reserve(parts + 1);
  made.start.push_back(0);
  for (int64_t p = 1, cut_before = -1; p < parts; ++p) {
    int64_t at = start.back() * p / parts;
    const auto cycle = std::upper_bound(start.begin(), start.end(), at) - 1;
    if (cycle[1] - cycle[0] <= kLinks) at = cycle[1];
    made.start.push_back(at);
    if (!in_place || at == cycle[0] || at == cycle[1]) continue;
    if (cycle[0] != cut_before) made.heads.push_back({order[cycle[0]], order[cycle[1] - 1]});
    cut_before = cycle[0];
    made.heads.push_back({order[at], order[at - 1]});
  }
  made.start.push_back(start.back());
  return made;
}

}  // namespace fusedmix::cpu
