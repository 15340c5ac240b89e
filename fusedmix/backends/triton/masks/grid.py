"""The cells of a grid, each of the sample or of the partner: GridMix. fusedmix/masks/grid.py has the sources."""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.backends.triton.enums import Columns, Families, Kinds, Streams
from fusedmix.backends.triton.masks import record
from fusedmix.backends.triton.numbers import below, by_vector, words


@triton.jit
def pixels_of(cell, cells, side):
    """How many pixels each of so many cells along a side has."""
    return ((cell + 1) * side + cells - 1) // cells - (cell * side + cells - 1) // cells


@triton.jit
def cells_of(row):
    z = tl.maximum(tl.load(row + Columns.CELLS_Z), 1.0).to(tl.int64)
    y = tl.maximum(tl.load(row + Columns.CELLS_Y), 1.0).to(tl.int64)
    return z, y, tl.maximum(tl.load(row + Columns.CELLS_X), 1.0).to(tl.int64)


@triton.jit
def number_of(lam, n, coin):
    """How many of n cells are the sample's."""
    share = lam * n.to(tl.float64)
    return tl.where(coin, tl.ceil(share), tl.floor(share)).to(tl.int64)


@triton.jit
def is_large(row):
    """Whether there are more cells than a record has bits."""
    z, y, x = cells_of(row)
    return z * y * x > 128


@triton.jit
def make_large(to, mine, row, lam, coin, extent):
    """Writes the records, how many cells are the sample's; the label weights of cells that are all of one size. Which
    cells, and the weights that follow, say fusedmix/grids.py."""
    depth, height, width = extent
    z, y, x = cells_of(row)
    number = number_of(lam, z * y * x, coin)
    # One tuple: of a sum of several Triton 3.6 does not take the plain numbers.
    record.store(to, mine, (Kinds.LARGE_GRID, z, y, x, depth, height, width, 0, number.to(tl.int32), 0, 0, 0))
    return number.to(tl.float64) / (z * y * x).to(tl.float64)


@triton.jit
def make_small(to, mine, row, lam, coin, noise, extent, S: tl.constexpr):
    """Writes the records; the label weights, which are the realised means. The cells are drawn by Floyd's algorithm."""
    depth, height, width = extent
    key, index = noise
    z, y, x = cells_of(row)
    n = z * y * x
    number = number_of(lam, n, coin)
    low, high = tl.zeros([S], tl.int64), tl.zeros([S], tl.int64)
    most = tl.max(tl.where(mine, n, 0), axis=0)
    for call in range((most + 3) // 4):  # carries 2: low, high
        a, b, c, d = words(key, index, Streams.CELLS, (call + index * 0).to(tl.uint32))
        drawn = (a, b, c, d)
        for k in tl.static_range(4):
            step = call * 4 + k
            other = below(drawn[k], step + 1)
            taken = (tl.where(other < 64, low, high) >> (other & 63)) & 1
            cell = tl.where(taken != 0, step, other)
            bit = ((step >= n - number) & (step < n)).to(tl.int64) << (cell & 63)
            low |= tl.where(cell < 64, bit, 0)
            high |= tl.where(cell < 64, 0, bit)
    chosen = (low.to(tl.int32), (low >> 32).to(tl.int32), high.to(tl.int32), (high >> 32).to(tl.int32))
    record.store(to, mine, (Kinds.GRID, z, y, x, depth, height, width, 0) + chosen)

    z, y, x = z[:, None], y[:, None], x[:, None]
    total = tl.zeros([S], tl.int64)
    for start in range(0, most, 8):  # carries 1: total
        cell = (start + tl.arange(0, 8))[None, :].to(tl.int64)
        held = (tl.where(cell < 64, low[:, None], high[:, None]) >> (cell & 63)) & 1
        pixels = pixels_of(cell % x, x, width) * pixels_of(cell // x % y, y, height)
        total += tl.sum(held * pixels * pixels_of(cell // (y * x), z, depth), axis=1)
    return total.to(tl.float64) / record.pixels_of(extent)


@triton.jit
def make(to, mine, method, row, lam, drawn, extent, FAMILIES: tl.constexpr,
         DRAWS: tl.constexpr, NDIM: tl.constexpr, S: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """Writes the records, and returns the label weights."""
    _, _, coin, noise = drawn
    large, weight = is_large(row), lam
    if FAMILIES & Families.LARGE_CELLS:
        weight = make_large(to, mine & large, row, lam, coin, extent)
    if FAMILIES & Families.CELLS:
        weight = tl.where(large, weight, make_small(to, mine & ~large, row, lam, coin, noise, extent, S))
    return weight


@triton.jit
def cell_of(pixel, cells, side):
    """In which of so many cells along a side a pixel is. A record that no sampler makes may have any side."""
    return cells.to(tl.int64) * pixel // tl.maximum(side, 1)


@triton.jit
def number_at(m, z, y, x):
    """Which of all cells pixels are in, in row-major order."""
    return (cell_of(z, m[1], m[4]) * m[2] + cell_of(y, m[2], m[5])) * m[3] + cell_of(x, m[3], m[6])


@triton.jit
def read(m, pixels, across, z, y, x, FAMILIES: tl.constexpr):
    """M of a large grid: a bit of the mask's row of the pixels, which are 16 bits wide where there are levels."""
    cell = number_at(m, z, y, x)
    WIDTH: tl.constexpr = 16 if FAMILIES & Families.LEVELS else 32
    at = tl.minimum(tl.maximum(cell // WIDTH, 0), across - 1)  # Hand-made records may have any cells.
    return ((tl.load(by_vector(pixels, at, 1)).to(tl.int32) >> (cell & (WIDTH - 1)).to(tl.int32)) & 1).to(tl.float32)


@triton.jit
def at(m, z, y, x):
    cell = number_at(m, z, y, x)
    of_low, of_high = tl.where((cell & 32) != 0, m[9], m[8]), tl.where((cell & 32) != 0, m[11], m[10])
    word = tl.where((cell & 64) != 0, of_high, of_low)
    return ((word >> (cell & 31).to(tl.int32)) & 1).to(tl.float32)
