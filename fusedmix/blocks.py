"""What PuzzleMix asks of a grid of blocks: the energy of their labels.

The energy is that of the authors' code (Kim, Choo, Song, "Puzzle Mix: Exploiting Saliency and Local Statistics for
Optimal Mixup", ICML 2020; github.com/snu-mllab/PuzzleMix). There are n blocks; in one of label k, M is 1 - k/2. Let s
and t be the maps of the sample and of its partner, each of a sum of 1. A block costs

    M·(t + a) + (1 - M)·(s + b) - η·log(P_k)/n,    P = λ², 2λ(1-λ), (1-λ)²,

because what matters of either image is lost where the other one is. Two blocks that share a side cost (the difference
of M)²·(β' + c), with β' = β/(16·√n). Here a, b and c say how well the pixels fit at borders. Across a border there are
four mean differences, according to which image is on which side, all times γ·β': both from the sample, both from the
partner, and the two mixed ones. Half of those in which a block is the sample's are added to its a, half of those in
which it is the partner's to its b. And c is half of what the mixed ones are more than the others. With γ <= 1 and
pixels in [0, 1] no β' + c is negative; where one would be it is 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fusedmix.importance import at_cells

_PRECISION = 1 << 20  # units of a cost of 1/n, which blocks cost in the mean
_MOST = 1 << 30  # of these units
_TINY = 1e-8  # is added to a probability, as by the authors


class Weights(NamedTuple):
    """Of the parts of an energy."""

    beta: float
    gamma: float
    eta: float


def shares(maps: Tensor, cells: tuple[int, int]) -> Tensor:
    """(B, *cells) float32: which share of its map (B, *sides) a block has. What is negative counts as 0; where a map is
    0 everywhere, all blocks have the same."""
    h, w = cells
    height, width = maps.shape[1:]
    if height % h or width % w:
        maps = at_cells(maps, cells)
    else:
        maps = maps.unflatten(1, (h, -1)).mean(2).unflatten(2, (w, -1)).mean(3)  # rows first: they lie together
    maps = maps.float().clamp_min(0.0)
    total = maps.sum((1, 2), keepdim=True)
    return torch.where(total > 0, maps / total, 1.0 / (h * w))


def energies(
    maps: Tensor, unlike: tuple[Tensor, Tensor] | None, partner: Tensor, lam: Tensor, weights: Weights
) -> tuple[Tensor, Tensor, Tensor]:
    """The costs that `label_grid` takes, in units of 2^-20/n.

    Args:
        maps: (B, h, w), each of a sum of 1.
        unlike: what the operator `border_costs` finds in the images; None: γ is 0.
        partner, lam: (B,), as of the plan.
    """
    cells = maps.shape[1:]
    n = math.prod(cells)
    base = weights.beta / (16.0 * math.sqrt(n))
    own, lent = maps[partner], maps.clone()  # what it costs to show the sample, and to show its partner
    pairs = []
    for axis, count in enumerate(cells, start=1):
        pair = torch.full_like(maps.narrow(axis, 0, count - 1), base)
        if unlike is not None:
            both_own, own_lent, lent_own, both_lent = (base * weights.gamma / 2 * unlike[2 - axis]).unbind()
            own.narrow(axis, 0, count - 1).add_(both_own + own_lent)
            own.narrow(axis, 1, count - 1).add_(both_own + lent_own)
            lent.narrow(axis, 0, count - 1).add_(both_lent + lent_own)
            lent.narrow(axis, 1, count - 1).add_(both_lent + own_lent)
            pair = (pair + own_lent + lent_own - both_own - both_lent).clamp_min(0.0)
        pairs.append(pair / 4)  # of labels: they differ by two where M differs by one
    lam = lam.reshape(-1, 1, 1)
    chances = lam.square(), 2 * lam * (1 - lam), (1 - lam).square()
    prior = [-weights.eta / n * (chance + _TINY).log() for chance in chances]
    unary = torch.stack([(1 - k / 2) * own + k / 2 * lent + cost for k, cost in enumerate(prior)], dim=3)
    down, right = pairs

    def units(x: Tensor) -> Tensor:
        return (x * (n * _PRECISION)).clamp(-_MOST, _MOST).round().int()

    return units(unary), units(right), units(down)
