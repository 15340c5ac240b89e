// GridMix (Baek 2021): the cells of a grid, each of the sample or of the partner.
#pragma once

#include "../division.h"
#include "../plan.h"
#include "../sampling.h"

namespace fusedmix {

// M of every cell, a bit for each. The words are selected, not indexed: an index would put them into local memory.
struct CellBits {
  uint32_t word[4];
  FUSEDMIX_HD bool operator()(uint32_t cell) const {
    const uint32_t of_low = (cell & 32) != 0 ? word[1] : word[0], of_high = (cell & 32) != 0 ? word[3] : word[2];
    return (((cell & 64) != 0 ? of_high : of_low) >> (cell & 31) & 1) != 0;
  }
};

// M of every cell of any grid of a plan: of one of more cells than a record has bits, what is stored, and NaN where nothing is. Of
// a cell beyond that, which only a record has that no sampler makes, M is that of another one.
template <class Load>
struct CellsOf {
  CellBits own;
  bool large;
  const uint32_t* bits;  // of the mask,
  const uint16_t* levels;  // or these
  uint32_t last;           // of either
  Load load;               // from memory
  FUSEDMIX_HD bool missing() const { return large && bits == nullptr && levels == nullptr; }
  FUSEDMIX_HD bool one(uint32_t cell) const {
    if (!large) return own(cell);
    const uint32_t width = bits != nullptr ? 32 : 16, at = cell / width, in = at < last ? at : last;
    return ((bits != nullptr ? load(bits + in) : load(levels + in)) >> cell % width & 1u) != 0;
  }
  FUSEDMIX_HD float operator()(uint32_t cell) const { return missing() ? NAN : (one(cell) ? 1.0f : 0.0f); }
};

struct Grid : Family {
  int32_t kind;
  int32_t cells[3], side[3];
  int32_t unused;
  CellBits chosen;

  static constexpr bool kHasSums = true;
  static constexpr int32_t kMost = 128;

  FUSEDMIX_HD static int32_t may_hold(const MethodRow& row) {
    const double z = row.cells_z, y = row.cells_y, x = row.cells_x;
    const bool grid = z >= 0.0 && z == floor(z) && y >= 0.0 && y == floor(y) && x >= 0.0 && x == floor(x);
    const double n = fmax(z, 1.0) * fmax(y, 1.0) * fmax(x, 1.0);
    if (!grid || n > 0x7FFFFFFF) return 0;
    return n <= kMost ? kCells : kLargeCells;
  }
  // Floyd's algorithm: fusedmix/masks/grid.py has the source.
  FUSEDMIX_HD static Made make(const MethodRow& row, float lam, const Draw& drawn, const Extent& extent) {
    Grid mask{};
    mask.kind = kGrid;
    mask.cells[0] = static_cast<int32_t>(fmax(row.cells_z, 1.0));
    mask.cells[1] = static_cast<int32_t>(fmax(row.cells_y, 1.0));
    mask.cells[2] = static_cast<int32_t>(fmax(row.cells_x, 1.0));
    for (int axis = 0; axis < 3; ++axis) mask.side[axis] = static_cast<int32_t>(extent.size[axis]);
    const int32_t n = mask.count();
    const double share = static_cast<double>(lam) * n, rounded = drawn.coin ? ceil(share) : floor(share);
    const auto number = static_cast<int32_t>(fmin(fmax(rounded, 0.0), static_cast<double>(n)));  // λ on a GPU may be anything
    if (n > kMost) {  // which cells, and the weight that follows, say fusedmix/grids.py
      mask.kind = kLargeGrid;
      mask.chosen.word[0] = static_cast<uint32_t>(number);
      return {bit_cast<Record>(mask), static_cast<double>(number) / n};
    }
    const int32_t first = n - number;
    uint64_t low = 0, high = 0;
    for (int32_t call = first / 4; 4 * call < n; ++call) {
      const Words w = words(drawn.noise, drawn.index, kStreamCells, static_cast<uint32_t>(call));
      const uint32_t word[4] = {w.a, w.b, w.c, w.d};
      for (int32_t k = 0; k < 4; ++k) {
        const int32_t step = 4 * call + k;
        if (step < first || step >= n) continue;
        const auto other = static_cast<int32_t>(below(word[k], step + 1));
        const bool taken = ((other < 64 ? low : high) >> (other & 63) & 1) != 0;
        const int32_t cell = taken ? step : other;
        const uint64_t bit = uint64_t{1} << (cell & 63);
        low |= cell < 64 ? bit : 0;
        high |= cell < 64 ? 0 : bit;
      }
    }
    mask.chosen = {{static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high),
                    static_cast<uint32_t>(high >> 32)}};
    return {bit_cast<Record>(mask), NAN};
  }
  FUSEDMIX_HD bool is_large() const { return kind == kLargeGrid; }
  FUSEDMIX_HD int32_t families() const { return is_large() ? kLargeCells : kCells; }
  FUSEDMIX_HD double stored_bits() const {
    if (!is_large()) return 0.0;
    const bool is_grid = cells[0] > 0 && cells[1] > 0 && cells[2] > 0;
    return is_grid ? static_cast<double>(cells[0]) * cells[1] * cells[2] : INFINITY;
  }

  FUSEDMIX_HD int32_t count() const { return cells[0] * cells[1] * cells[2]; }

  // The cell along a side, of up to 2^25 pixels, where pixels times cells are at most 2^32 (fusedmix/checks.py, fits).
  FUSEDMIX_HD static uint32_t cell_of(int32_t c, int32_t cells, int32_t side) {
    return small_quotient(static_cast<uint32_t>(c) * static_cast<uint32_t>(cells), static_cast<uint32_t>(side));
  }

  template <class Load>
  struct Row {
    CellsOf<Load> chosen;
    uint32_t base, step;  // of the cells in it
    int32_t cells, side;
    FUSEDMIX_HD uint32_t cell(int32_t c) const { return cell_of(c, cells, side); }
    FUSEDMIX_HD float operator()(int32_t c) const { return chosen(base + step * cell(c)); }
    // The first coordinate after c in another cell.
    FUSEDMIX_HD int64_t next(int32_t c) const {
      const int64_t first = cells < 1 ? 0 : ((int64_t{cell(c)} + 1) * side + cells - 1) / cells;
      return first > c ? first : int64_t{c} + 1;  // of a record that no sampler makes
    }
    FUSEDMIX_HD Reach reach(int32_t from, int32_t to) const {
      const uint32_t first = cell(from);
      return first != cell(to) ? kSelect : reach_of(chosen(base + step * first));
    }
  };
  template <class Load>
  FUSEDMIX_HD Row<Load> along(const int32_t* at, int32_t axis, const CellsOf<Load>& of) const {
    Row<Load> row{of, 0, 0, 0, 1};
    uint32_t step = 1;
    for (int other = 2; other >= 0; --other) {
      const int32_t number = cells[other], length = side[other] < 1 ? 1 : side[other];  // which no sampler's is
      const bool along_it = other == axis;
      row.step = along_it ? step : row.step;
      row.cells = along_it ? number : row.cells;
      row.side = along_it ? length : row.side;
      row.base += along_it ? 0 : step * cell_of(at[other], number, length);
      step *= static_cast<uint32_t>(number);
    }
    return row;
  }

  // Along a row of the mask of sample i of a plan; `load` reads memory.
  template <class Load>
  FUSEDMIX_HD Row<Load> along(const int32_t* at, int32_t axis, const PlanView& plan, int64_t i, const Load& load) const {
    const Pixels& pixels = plan.pixels;
    const int64_t from = is_large() ? draw_index(pixels.per, plan.shared ? 0 : i, pixels.batch) * pixels.stride : 0;
    return along(at, axis, CellsOf<Load>{chosen, is_large(), pixels.bits == nullptr ? nullptr : pixels.bits + from,
                                         pixels.levels == nullptr ? nullptr : pixels.levels + from,
                                         static_cast<uint32_t>(pixels.stride - 1), load});
  }
  // A row by the record alone, which has no cells of a large grid.
  struct Nothing {
    template <class T>
    FUSEDMIX_HD T operator()(const T*) const { return 0; }
  };
  FUSEDMIX_HD Row<Nothing> along(const int32_t* at, int32_t axis) const {
    return along(at, axis, CellsOf<Nothing>{chosen, is_large(), nullptr, nullptr, 0, {}});
  }

  // The weight is the mean of the mask: how many pixels the chosen cells have.
  FUSEDMIX_HD int64_t first_of(int axis, int32_t cell) const {
    return (int64_t{cell} * side[axis] + cells[axis] - 1) / cells[axis];
  }
  FUSEDMIX_HD int64_t rows(const Extent&) const { return 1; }
  FUSEDMIX_HD double row_sum(const Extent&, int64_t, int lane, int lanes) const {
    double sum = 0.0;
    FUSEDMIX_NO_UNROLL
    for (int32_t cell = lane; cell < count(); cell += lanes) {
      if (!chosen(static_cast<uint32_t>(cell))) continue;
      int64_t pixels = 1;
      int32_t rest = cell;
      for (int axis = 2; axis >= 0; --axis) {
        const int32_t along_it = rest % cells[axis];
        pixels *= first_of(axis, along_it + 1) - first_of(axis, along_it);
        rest /= cells[axis];
      }
      sum += static_cast<double>(pixels);
    }
    return sum;
  }
  FUSEDMIX_HD double weight(const Sums& sums, const Extent& extent) const { return sums.part[0] / extent.pixels(); }
};
static_assert(sizeof(Grid) == sizeof(Record));

}  // namespace fusedmix
