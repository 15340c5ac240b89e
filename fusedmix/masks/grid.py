"""The cells of a grid, each of the sample or of the partner: GridMix (Baek 2021).

Words 1 to 3 of a record are the numbers of cells along z, y and x, 4 to 6 the sides of the image, and 8 to 11 hold M of
every cell, a bit for each in row-major order, from the lowest on. Pixel c of a side is in cell c·cells // side. A grid
of more cells than these have bits says in word 8 how many are the sample's; which, fusedmix/grids.py stores, as bits in
the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fusedmix.masks.family import Draws, Family, Masks, along, beside, everywhere, kind, padded, quotient
from fusedmix.methods import Column, Drawn, Families, Kind, Method
from fusedmix.philox import Stream, below, words

CELLS = 128  # that a record has bits for
MOST = (1 << 31) - 1  # cells of a mask
LONGEST_SIDE = 1 << 25  # of the images: kernels count pixels times cells in 32 bits
_COLUMNS = slice(Column.CELLS_Z, Column.CELLS_X + 1)


def make(method: Tensor, rows: Tensor, lam: Tensor, draws: Draws, size: tuple[int, ...]) -> Masks:
    """Of n cells ⌊λn⌋ or ⌈λn⌉ are the sample's, every choice of so many being equally likely. The label weight is the
    realised mean: cells may differ by a pixel along each side.

    They are drawn by Floyd's algorithm (Bentley and Floyd, "A sample of brilliance", Communications of the ACM 1987),
    which needs no memory but the choice itself: for j from n - number to n - 1, a cell t <= j, or j if t is chosen
    already.
    """
    grid = rows[:, _COLUMNS].clamp_min(1.0).long()
    cells = grid.prod(1)
    share = lam * cells
    number = torch.where(draws.coin, share.ceil(), share.floor()).long()
    large = cells > CELLS
    # As many steps as the largest grid takes; for how many those are, a GPU would have to be waited for.
    steps = CELLS if lam.is_cuda else min(max(cells.tolist(), default=0), CELLS)
    calls = torch.arange(-(-steps // 4), device=lam.device)
    drawn = torch.stack(words(draws.noise[:, None], draws.draw[:, None], Stream.CELLS, calls), dim=2).flatten(1)
    chosen = torch.zeros((len(lam), CELLS), dtype=torch.bool, device=lam.device)
    for step in range(steps):
        place = below(drawn[:, step], step + 1).unsqueeze(1)
        place = torch.where(chosen.gather(1, place), step, place)
        drawing = (step >= cells - number) & (step < cells) & ~large
        chosen.scatter_(1, place, chosen.gather(1, place) | drawing.unsqueeze(1))

    made = of_choice(chosen, grid, size)
    records, weight = made.records, torch.where(large, number.double() / cells, made.weight)
    records[:, 0] = torch.where(large, Kind.LARGE_GRID, Kind.GRID)
    records[:, 8] = torch.where(large, number, records[:, 8])
    return Masks(records, weight)


def of_choice(chosen: Tensor, grid: Tensor, size: tuple[int, ...]) -> Masks:
    """The masks that take the `chosen` cells of grids (n, 3) from the sample: (n, CELLS) bool, in row-major order."""
    sides = beside(grid, padded(size))
    pixels, rest = torch.ones_like(chosen, dtype=torch.int64), torch.arange(CELLS, device=grid.device)
    for axis in (2, 1, 0):
        along_it, side = grid[:, axis, None], sides[axis]
        cell, rest = rest % along_it, rest // along_it
        pixels = pixels * (_first(cell + 1, along_it, side) - _first(cell, along_it, side))
    bit = torch.arange(32, device=grid.device)
    word = (chosen.reshape(-1, 4, 32).long() << bit).sum(2)
    records = torch.cat((grid.new_full((len(grid), 1), Kind.GRID), grid, sides.expand_as(grid)), dim=1)
    records = torch.cat((records, records[:, :1] * 0, word - ((word >> 31) << 32)), dim=1)
    return Masks(records.int(), quotient((chosen * pixels).sum(1).double(), math.prod(size)))


def _first(cell: Tensor, cells: Tensor, side: Tensor) -> Tensor:
    """The first pixel of a cell along a side."""
    return (cell * side + cells - 1) // cells


def evaluate(records: Tensor, sides: tuple[int, ...], pixels: Tensor | None) -> Tensor:
    """M, the bit of the cell, which the record has, or the row of the pixels."""
    of_cell = torch.zeros((), dtype=torch.int64, device=records.device)
    for axis, side in enumerate(sides):
        cells, length = (records[:, word + axis].long() for word in (1, 4))
        pixel = torch.arange(side, device=records.device)
        cell = pixel * cells[:, None] // length[:, None].clamp_min(1)
        of_cell = of_cell * everywhere(cells) + along(axis, cell)
    flat = of_cell.flatten(1)
    of_pixel = _bits(records[:, 8:], flat & (CELLS - 1))
    large = (kind(records) == Kind.LARGE_GRID).unsqueeze(1)
    of_large = torch.full_like(of_pixel, math.nan) if pixels is None else _bits(pixels, flat)
    return torch.where(large, of_large, of_pixel).reshape(of_cell.shape)


def _bits(words: Tensor, index: Tensor) -> Tensor:
    """(n, S) float32: bits of rows of words, (n, K), int32 or int16. Beyond the last word there are only those of
    records that no sampler makes."""
    width = 8 * words.element_size()
    return ((words.gather(1, (index // width).clamp(0, words.shape[1] - 1)) >> (index % width)) & 1).float()


def has_room(records: Tensor, bits: int) -> Tensor:
    """(n,) bool: whether there are at least as many stored bits as each large grid has cells; true of other masks."""
    cells = records[:, 1:4].double()
    fits = (cells >= 1).all(1) & (cells.prod(1) <= bits)
    return fits | (kind(records) != Kind.LARGE_GRID)


def may_hold(row: Sequence[float]) -> Families:
    """Cells, stored ones where there are more than a record has bits for, or nothing where they are no grid."""
    cells = row[_COLUMNS]
    count = math.prod(max(number, 1.0) for number in cells)
    if not all(0 <= number <= MOST and number == math.floor(number) for number in cells) or count > MOST:
        return Families(0)
    return Families.CELLS if count <= CELLS else Families.LARGE_CELLS


def cells_of(row: Sequence[float]) -> tuple[int, ...]:
    """The grid of a row of a spec: a number for each spatial dim."""
    return tuple(int(count) for count in row[_COLUMNS] if count)


FAMILY = Family(
    kinds=frozenset({Kind.GRID, Kind.LARGE_GRID}),
    methods=frozenset({Method.GRIDMIX}),
    parts=Families.CELLS | Families.LARGE_CELLS,
    draws=lambda row: Drawn.COIN | Drawn.NOISE,
    may_hold=may_hold,
    make=make,
    evaluate=evaluate,
    kinds_of={Families.CELLS: frozenset({Kind.GRID}), Families.LARGE_CELLS: frozenset({Kind.LARGE_GRID})},
)
