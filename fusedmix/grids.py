"""The cells of grids: which are the sample's where a record has no room to say so, and grids that are given.

Of a grid of more than masks.grid.CELLS cells a bit for each is stored: kernels look up the cell of a pixel as they do
where the record has the bits. Which of its cells are the sample's are those with the least numbers of Philox, of equal
ones the first. (FMix's masks are the largest pixels likewise.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fusedmix.fourier import draw_of, pack, rows
from fusedmix.masks import grid
from fusedmix.masks.family import Masks, beside, kind, padded, quotient
from fusedmix.methods import Kind
from fusedmix.philox import Stream, words

_NUMBERS = 1 << 22  # of as many cells at a time


def store(
    records: Tensor,
    weight: Tensor,
    seed: Tensor,
    pixels: Tensor | None,
    cells: Sequence[int],
    size: Sequence[int],
    per: int,
    draws: int,
) -> tuple[Tensor, Tensor]:
    """What fusedmix/fourier.py, `masks`, has stored for a plan, if there are such masks, with the cells of large grids
    in it; and the label weights of the plan, with the realised means of these.

    Args:
        cells: three for each large grid of the spec, along z, y and x.
        records, seed, size, per, draws: as there.
    """
    batch_size, device = records.shape[0], records.device
    n, size = rows(per, batch_size), tuple(size)
    pixels = room(records, pixels, cells, per)
    seed = seed.to(device).reshape(-1)[:1]
    index = draw_of(torch.arange(n, device=device), draws, batch_size)
    mask_of = draw_of(torch.arange(batch_size, device=device), per, batch_size)
    mean = torch.zeros(n, dtype=torch.float64, device=device)
    of = records[:n]
    for z, y, x in _triples(cells):
        wanted = (kind(of) == Kind.LARGE_GRID) & (of[:, 1:4] == of.new_tensor([z, y, x])).all(1)
        at = max(1, _NUMBERS // (z * y * x))
        for first in range(0, n, at):
            part = slice(first, first + at)
            own = chosen(seed, index[part], of[part, 8], z * y * x)
            bits = pack(own).view(pixels.dtype)
            stored = pixels[part, : bits.shape[1]]
            stored.copy_(torch.where(wanted[part, None], bits, stored))
            mean[part] = torch.where(wanted[part], mean_of(own, (z, y, x), size), mean[part])
    large = kind(records) == Kind.LARGE_GRID
    return pixels, torch.where(large, mean[mask_of], weight)


def room(records: Tensor, pixels: Tensor | None, cells: Sequence[int], per: int) -> Tensor:
    """The pixels of a plan, into which the cells of its large grids may be written: new ones of 0, if there are none,
    as long as the grid of most cells needs them."""
    if pixels is not None:
        return pixels.clone()
    most = max(math.prod(of_grid) for of_grid in _triples(cells))
    return records.new_zeros((rows(per, records.shape[0]), -(-most // 32)))


def _triples(cells: Sequence[int]) -> list[tuple[int, int, int]]:
    return list(zip(cells[::3], cells[1::3], cells[2::3], strict=True))


def chosen(seed: Tensor, index: Tensor, number: Tensor, cells: int) -> Tensor:
    """(n, cells) bool: which are the sample's, `number` of them, (n,), at logical indices (n,)."""
    calls = torch.arange(-(-cells // 4), device=index.device)
    drawn = torch.stack(words(seed, index[:, None], Stream.CELLS, calls), dim=2).flatten(1)[:, :cells]
    order = drawn.argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(cells, device=index.device).expand_as(order))
    return rank < number[:, None]


def mean_of(own: Tensor, cells: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """The means in float64, (n,), of masks of the cells `own`, (n, cells) bool in row-major order."""
    in_cell = torch.ones((), dtype=torch.int64, device=own.device)  # how many pixels
    for count, side in zip(padded(cells), padded(size), strict=True):
        first = (torch.arange(count + 1, device=own.device) * side + count - 1) // count
        in_cell = in_cell.unsqueeze(-1) * first.diff()
    return quotient((own * in_cell.flatten()).sum(1).double(), math.prod(size))


def given(own: Tensor, cells: tuple[int, ...], size: tuple[int, ...]) -> tuple[Masks, Tensor | None]:
    """The masks of the cells `own`, (n, cells) bool in row-major order, and what is stored for them, if there is."""
    n, count = own.shape
    of_grid = beside(own, padded(cells)).expand(n, 3)
    if count <= grid.CELLS:
        return grid.of_choice(torch.nn.functional.pad(own, (0, grid.CELLS - count)), of_grid, size), None
    records = grid.of_choice(own[:, : grid.CELLS], of_grid, size).records
    records[:, 0], records[:, 8:], records[:, 8] = Kind.LARGE_GRID, 0, own.sum(1)
    return Masks(records, mean_of(own, cells, size)), pack(own)
