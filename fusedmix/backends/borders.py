"""How unlike pixels are across the borders of blocks, in PyTorch: the meaning of the operator `border_costs`, and what
serves where there is no kernel for it.

An image is cut into patches of 4 by 4 pixels, or along either side of the most below 4 that divide a block. Of these
those count that lie along a border. Everything is summed in float32 and in one order, so that all backends find the
very same: in a patch over its rows and then over its columns, across a border over channels and then over patches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

NEAR = 4  # pixels on either side of a border that are compared, as in all configurations of PuzzleMix's authors


def border_costs(x: Tensor, partner: Tensor, scale: Tensor, cells: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(4, B, h, w-1) and (4, B, h-1, w) float32: by how much the patches of a block differ from those to its right and
    below, the mean of the absolute differences of their means, times what its channel is scaled by.

    First where both blocks are the sample's, then where the block behind the border is its partner's, where the one
    before it is, and where both are.

    Args:
        x: (B, C, H, W), images of any dtype that can be mixed.
        partner: (B,) int64.
        scale: (C,) float32.
        cells: (h, w), how many blocks there are along each side, 1 to 16; they divide H and W.
    """
    patch = [max(n for n in range(1, NEAR + 1) if side // count % n == 0) for side, count in _sides(x, cells)]
    sums = _sums(_sums(x.float(), 2, patch[0]), 3, patch[1])
    h, w = cells
    down = _differences(sums, partner, scale, h, w) * _share(sums, 3, w, patch)
    right = _differences(sums.transpose(2, 3), partner, scale, w, h).transpose(3, 2) * _share(sums, 2, h, patch)
    return right.contiguous(), down


def _sides(x: Tensor, cells: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(x.shape[2:], cells, strict=True))


def _share(sums: Tensor, dim: int, blocks: int, patch: Sequence[int]) -> float:
    """Of one pixel among all along the border of a block."""
    return 1.0 / (math.prod(patch) * sums.shape[1] * (sums.shape[dim] // blocks))


def _total(parts: Sequence[Tensor]) -> Tensor:
    """Summed one after the other."""
    return functools.reduce(torch.add, parts)


def _sums(x: Tensor, dim: int, n: int) -> Tensor:
    """Of n elements at a time along a dim."""
    return _total(x.unflatten(dim, (-1, n)).unbind(dim + 1))


def _differences(sums: Tensor, partner: Tensor, scale: Tensor, blocks: int, others: int) -> Tensor:
    """(4, B, blocks - 1, others) of patches (B, C, along, across) at the borders between blocks along dim 2, summed;
    `others`: the blocks across."""
    length = sums.shape[2] // blocks
    sides = sums[:, :, length - 1 : -1 : length], sums[:, :, length::length]  # (B, C, borders, across)
    before, behind = (torch.stack((side, side[partner])) for side in sides)
    apart = (before[:, None] - behind[None]).abs_().mul_(scale[:, None, None]).flatten(0, 1)
    of_patches = _total(apart.unbind(2)).unflatten(3, (others, -1))
    return _total(of_patches.unbind(4))
