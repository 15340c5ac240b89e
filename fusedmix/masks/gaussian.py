"""Gaussians: GMix (Park 2022).

Words 1 to 3 of a record are the centre (z, y, x), 7 is a rate: M = exp(-rate·d²), d the distance to the centre in
pixels, or 1 minus that.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusedmix.masks.family import (
    Draws,
    Family,
    Masks,
    everywhere,
    from_centre,
    kind,
    packed,
    padded,
    quotient,
    value,
)
from fusedmix.methods import Drawn, Families, Kind, Method

_FLOAT32_MAX = torch.finfo(torch.float32).max


def make(method: Tensor, rows: Tensor, lam: Tensor, draws: Draws, size: tuple[int, ...]) -> Masks:
    """exp(-π d²/(s·H·W)) or its complement, with the realised mean as label weight.

    In d dimensions the squared width is (s·volume)^(2/d), which is s·H·W for images, so that the Gaussian always
    integrates to s of the volume. Where s = 0 the mask is the limit, λ (0 or 1) everywhere.
    """
    released, centre = method == Method.GMIX_RELEASED, draws.centre
    s = torch.where(released, torch.minimum(lam, 1.0 - lam), 2.0 * (1.0 - lam))
    volume = s * math.prod(size)
    squared_width = volume if len(size) == 2 else volume ** (2.0 / len(size))
    rate = (math.pi / squared_width).clamp_max(_FLOAT32_MAX).float()

    mean = torch.ones_like(lam)
    for axis, side in enumerate(padded(size)):
        distance = torch.arange(side, device=lam.device) - centre[:, axis : axis + 1]
        mean = quotient(mean * (-rate.double().unsqueeze(1) * distance.square()).exp().sum(1), side)

    complement = ~released | (lam >= 0.5)
    constant = s <= 0
    of = torch.where(complement, Kind.GAUSSIAN_COMPLEMENT, Kind.GAUSSIAN)
    weight = torch.where(complement, 1.0 - mean, mean)
    return Masks(
        packed(
            kind=torch.where(constant, Kind.CONSTANT, of),
            geometry=torch.cat((centre, torch.zeros_like(centre)), dim=1),
            value=torch.stack((torch.where(constant, lam.float(), rate), torch.zeros_like(rate)), dim=1),
        ),
        weight=torch.where(constant, lam, weight),
    )


def evaluate(records: Tensor, sides: tuple[int, ...], pixels: Tensor | None) -> Tensor:
    """M, by the distance to the centre."""
    rate = everywhere(value(records)[:, 0].double())
    z, y, x = ((-rate * distance.double().square()).exp() for distance in from_centre(records, sides))
    gaussian = z * y * x
    complement = everywhere(kind(records) == Kind.GAUSSIAN_COMPLEMENT)
    return torch.where(complement, 1.0 - gaussian, gaussian).float()


FAMILY = Family(
    kinds=frozenset({Kind.GAUSSIAN, Kind.GAUSSIAN_COMPLEMENT}),
    methods=frozenset({Method.GMIX_RELEASED, Method.GMIX_PAPER}),
    parts=Families.GAUSSIANS,
    draws=lambda row: Drawn.CENTRE,
    may_hold=lambda row: Families.GAUSSIANS | Families.CONSTANTS,  # the limit
    make=make,
    evaluate=evaluate,
)
