"""Which block stands where once those that matter have moved, in PyTorch: the meaning of the operator `arrange_blocks`,
and what serves where there is no kernel for it.

Block i at place j costs distance_cost·|i - j|²/(longest side of the grid - 1)² - maps[i]. Each block asks for the place
where it costs least, if that is below 0. Each place takes the block that costs least there, and a block that is refused
asks for the next place, in as many rounds as the grid has blocks along a side. So it is in the code of PuzzleMix's
authors; but there a block that is refused may ask again, at a cost of 1 more, and one without a place in the end is
lost. Here such blocks stay where they are, or, if that place is taken, go to the places that are left, which are not
seen. No place that is seen costs more than if nothing had moved.

Costs are integers, and of equal ones the first place is asked for and the first block is taken: every backend finds the
very same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusedmix import checks

_BLOCK_BITS = 8  # of the number of a block
_FINE = 1 << 22  # units of a cost


def arrange_blocks(seen: Tensor, maps: Tensor, distance_cost: float) -> Tensor:
    """(B, n) int64: for each of n = h·w places the number of the block that stands there, all different in a sample.

    Args:
        seen: (B, h, w) bool, the places that are seen; 1 <= h, w <= 16.
        maps: (B, h, w) float32, in [0, 1].
        distance_cost: > 0.
    """
    batch_size, h, w = seen.shape
    n, never = h * w, torch.iinfo(torch.int32).max
    block = torch.arange(n, dtype=torch.int32, device=seen.device)
    y, x = block // w, block % w
    squares = (y[:, None] - y).square() + (x[:, None] - x).square()
    step = min(distance_cost * _FINE / max(1, max(h, w) - 1) ** 2, _FINE)
    far = (squares.float() * step).round()
    far = torch.where(squares > 0, far.clamp(1, _FINE - 1), 0.0).int()  # Who is seen asks for the own place first.
    gain = (maps * _FINE).round().int().reshape(batch_size, n, 1)
    # The number of the place in the lowest bits makes costs different: of equal ones the first is taken.
    low = (1 << _BLOCK_BITS) - 1
    hidden = torch.where(seen, 0, _FINE << _BLOCK_BITS).int().reshape(batch_size, 1, n)
    asks = ((far << _BLOCK_BITS) + block - (gain << _BLOCK_BITS)).add_(hidden)
    for _ in range(max(h, w)):
        best = asks.amin(2)
        wants = best < 0
        place = torch.where(wants, best & low, 0).long()
        bid = torch.where(wants, (best & ~low) + block, never)
        taken = torch.full_like(bid, never).scatter_reduce(1, place, bid, "amin")
        refused = taken.gather(1, place) < bid
        if checks.readable(refused) and not (refused & wants).any():
            break
        # (A block that wants no place, too: it has no use for the first.)
        asks.scatter_(2, place[:, :, None], torch.where(refused, never, best)[:, :, None])
    return _completed(torch.where(taken < never, taken & low, n).long())


def _completed(held: Tensor) -> Tensor:
    """A permutation for each sample, of the blocks that places hold, (B, n), n being none: those without a place stay,
    where theirs is free, and then the others go to the places that are left, in order."""
    n = held.shape[1]
    block = torch.arange(n, device=held.device)
    held = torch.where((held == n) & ~_placed(held), block, held)
    left = torch.where(_placed(held), n, block).sort(1).values
    free = held == n
    return torch.where(free, left.gather(1, (free.cumsum(1) - 1).clamp_min(0)), held)


def _placed(held: Tensor) -> Tensor:
    """(B, n) bool: which blocks some place holds."""
    found = held.new_zeros((held.shape[0], held.shape[1] + 1))
    return found.scatter(1, held, 1)[:, :-1] > 0
