"""Discs and squares of the partner with a soft edge: SmoothMix (Lee 2020).

Words 1 to 3 of a record are the centre (z, y, x), 7 is a rate, 8 a radius: M = 1 - exp(-rate·e²), e the distance in
pixels to the disc of that radius, or to the square of that half side, and 0 inside.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusedmix.masks.box import root
from fusedmix.masks.family import Draws, Family, Masks, everywhere, from_centre, kind, packed, padded, value
from fusedmix.methods import Column, Drawn, Families, Kind, Method

_PIXELS = 1 << 20  # of as many masks as are summed at a time
# By d, of a disc and of a square: of (r/s)³, (r/s)² and r/s in the equations of `make`.
_POLYNOMIALS = {
    1: ((0.0, 0.0, 2.0), (0.0, 0.0, 2.0)),
    2: ((0.0, math.pi, math.pi), (0.0, 4.0, 4.0)),
    3: ((4.0 * math.pi / 3.0, 2.0 * math.pi, 4.0), (8.0, 12.0, 6.0)),
}


def make(method: Tensor, rows: Tensor, lam: Tensor, draws: Draws, size: tuple[int, ...]) -> Masks:
    """On the infinite plane the partner has V = (1-λ)·volume: with s = √(2π)·σ of the edge, for d = 1, 2, 3,

        square   (2r + s)^d = V
        disc     2r + s = V,   πr² + πrs + s² = V,   (4π/3)r³ + 2πr²s + 4rs² + s³ = V

    and r = 0, s = V^(1/d) where s^d alone is more. The label weight is the realised mean; where V = 0, M is 1.
    """
    d, disc, volume = len(size), method == Method.SMOOTHMIX_DISC, (1.0 - lam) * math.prod(size)
    s = (rows[:, Column.EDGE] * max(size) * math.sqrt(2.0 * math.pi)).clamp_min(1e-30)
    alone = s if d == 1 else s * s if d == 2 else s * s * s
    cubic, square, linear = lam.new_tensor(_POLYNOMIALS[d])[(~disc).long()].unbind(1)
    whole, more = root(volume, d), (volume - alone) / alone
    t = whole / s
    for _ in range(12):  # Newton's method: the polynomial is convex
        step = ((cubic * t + square) * t + linear) * t - more
        t = t - step / ((3.0 * cubic * t + 2.0 * square) * t + linear)
    radius, s = torch.where(alone < volume, s * t, 0.0), torch.where(alone < volume, s, whole)
    rate = (math.pi / (s * s)).clamp_max(torch.finfo(torch.float32).max)
    of = torch.where(disc, Kind.SMOOTH_DISC, Kind.SMOOTH_SQUARE)
    records = packed(
        kind=torch.where(volume > 0.0, of, Kind.CONSTANT),
        geometry=torch.cat((draws.centre, torch.zeros_like(draws.centre)), dim=1),
        value=torch.stack((torch.where(volume > 0.0, rate, lam), radius), dim=1),
    )
    parts = records.split(max(1, _PIXELS // math.prod(size)))
    mean = torch.cat([_share(part, padded(size)).mean((1, 2, 3)) for part in parts])
    return Masks(records, torch.where(volume > 0.0, 1.0 - mean, lam))


def _share(records: Tensor, sides: tuple[int, ...]) -> Tensor:
    """(n, D, H, W) float64: how much of the partner each pixel takes."""
    rate, radius = (everywhere(x.double()) for x in value(records).unbind(1))
    to_centre, to_square = torch.zeros_like(rate), torch.zeros_like(rate)  # squared
    for signed in from_centre(records, sides):
        distance = signed.double().abs()
        to_centre = to_centre + distance.square()
        to_square = to_square + (distance - radius).clamp_min(0.0).square()
    to_disc = (to_centre.sqrt() - radius).clamp_min(0.0).square()
    return (-rate * torch.where(everywhere(kind(records) == Kind.SMOOTH_DISC), to_disc, to_square)).exp()


FAMILY = Family(
    kinds=frozenset({Kind.SMOOTH_DISC, Kind.SMOOTH_SQUARE}),
    methods=frozenset({Method.SMOOTHMIX_DISC, Method.SMOOTHMIX_SQUARE}),
    parts=Families.SMOOTH,
    draws=lambda row: Drawn.CENTRE,
    may_hold=lambda row: Families.SMOOTH | Families.CONSTANTS,  # the limit
    make=make,
    evaluate=lambda records, sides, pixels: (1.0 - _share(records, sides)).float(),
)
