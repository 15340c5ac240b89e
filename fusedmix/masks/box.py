"""Boxes: CutMix (Yun 2019) and HMix (Park 2022).

Words 1 to 3 of a record are the first z, y and x inside, 4 to 6 the first ones behind; 7 is M outside, 8 inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fusedmix.masks.family import (
    Draws,
    Family,
    Masks,
    OneMask,
    along,
    everywhere,
    float32,
    geometry,
    packed,
    padded,
    quotient,
    value,
)
from fusedmix.methods import Column, Drawn, Families, Kind, Method
from fusedmix.philox import below


def make(method: Tensor, rows: Tensor, lam: Tensor, draws: Draws, size: tuple[int, ...]) -> Masks:
    """A box of the partner, clipped to the image, or at a place where it is wholly inside.

    A side is (1-λ)^(1/d)·ratio^(1/d) of the image's, so that an unclipped box holds (1-λ)·ratio of a d-dimensional
    image; the product of the roots is formed first, as in the authors' code, because another order moves the box. Or it
    is drawn between two shares of the image's, as timm's cutmix_minmax does.
    """
    centre, drawn_ratio = draws.centre, rows[:, Column.RATIO_ALPHA] > 0
    ratio = torch.where(drawn_ratio, draws.ratio.double(), rows[:, Column.RATIO])
    sides = centre.new_tensor(padded(size))
    # In float64: in float32 int(64·√½·√½) is 31, in float64 it is 32, and the box would be off by a pixel on each side.
    fraction = root(1.0 - lam, len(size)) * root(ratio, len(size))
    shares = fraction.unsqueeze(1).repeat(1, 3)
    if len(size) > 1:
        shares[:, 1], shares[:, 2] = shaped(rows, draws.aspect, fraction, sides)
    length = (sides * shares).floor().long()
    low, high = ((sides * rows[:, of, None]).floor().long() for of in (Column.SIDE_LOW, Column.SIDE_HIGH))
    sided = rows[:, Column.SIDE_HIGH, None] > 0
    length = torch.where(sided, low + below(draws.sides, (high - low).clamp_min(1)), length)
    half = length // 2
    inside = sided | (rows[:, Column.INSIDE, None] != 0)
    first = torch.where(inside, below(draws.place, sides - length + 1), (centre - half).clamp_min(0))
    stop = torch.where(inside, first + length, torch.minimum(centre + half, sides))
    absent = 3 - len(size)
    first[:, :absent] = 0
    stop[:, :absent] = 1

    box = quotient((stop - first).prod(1).double(), math.prod(size))
    rest = 1.0 - box
    # What stands outside the box is λ/(1-β), β the box's actual share (released, mean λ for every mask), or
    # λ/(1-(1-λ)·ratio) (paper, mean λ but for clipping and rounding). Where nothing is outside, any finite value does.
    share = torch.where(method == Method.HMIX_RELEASED, rest, (1.0 - ratio) + lam * ratio)
    outside = torch.where(share > 0, lam / share, 0.0).clamp_max(1.0)
    outside = torch.where(method == Method.CUTMIX, 1.0, outside).float()
    return Masks(
        packed(
            kind=torch.full_like(lam, Kind.BOX, dtype=torch.int32),
            geometry=torch.cat((first, stop), dim=1),
            value=torch.stack((outside, torch.zeros_like(outside)), dim=1),
        ),
        weight=torch.where(method == Method.HMIX_RELEASED, lam, outside.double() * rest),
    )


def evaluate(records: Tensor, sides: tuple[int, ...], pixels: Tensor | None) -> Tensor:
    """M, the value inside the box or outside."""
    inside = torch.ones((), dtype=torch.bool, device=records.device)
    for axis, side in enumerate(sides):
        pixel = torch.arange(side, device=records.device)
        first, stop = geometry(records)[:, axis, None], geometry(records)[:, axis + 3, None]
        inside = inside & along(axis, (pixel >= first) & (pixel < stop))
    outer, inner = value(records).unbind(1)
    return torch.where(inside, everywhere(inner), everywhere(outer))


def one(row: Sequence[float], lam: float, centre: Sequence[int], size: tuple[int, ...]) -> OneMask | None:
    """A box as numbers; None with an option, and in three dimensions, whose cube roots are PyTorch's."""
    if len(size) == 3 or row[Column.DRAWS] != Drawn.CENTRE:
        return None
    method, ratio = row[Column.METHOD], row[Column.RATIO]
    scalar = math.sqrt if len(size) == 2 else float
    fraction = scalar(1.0 - lam) * scalar(ratio)
    first, stop, box = [0, 0, 0], [1, 1, 1], 1
    for axis, side in enumerate(size, 3 - len(size)):
        half = math.floor(side * fraction) // 2
        first[axis], stop[axis] = max(centre[axis] - half, 0), min(centre[axis] + half, side)
        box *= stop[axis] - first[axis]
    rest = 1.0 - box / math.prod(size)
    share = rest if method == Method.HMIX_RELEASED else (1.0 - ratio) + lam * ratio
    outside = 1.0 if method == Method.CUTMIX else float32(min(lam / share, 1.0)) if share > 0 else 0.0
    weight = lam if method == Method.HMIX_RELEASED else outside * rest
    return OneMask(Kind.BOX, [*first, *stop], (outside, 0.0), weight)


def shaped(rows: Tensor, bits: Tensor, fraction: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """(n,), (n,): the shares of the image's height and width that a box has. Their product is the square of `fraction`:
    where a box of the width/height that was drawn would not fit the image, it spans the image along one axis."""
    low, high = rows[:, Column.ASPECT_LOW], rows[:, Column.ASPECT_HIGH]
    free = high > 0
    low, high = torch.where(free, low, 1.0), torch.where(free, high, 1.0)
    uniform = (2 * bits + 1).double() * 2.0**-33
    # Exponentials differ between libraries in the last bit, so they are rounded to float32, as cube roots are.
    ratio = low * (uniform * (high / low).log()).exp().float().double()
    stretch = torch.maximum(root(ratio * sides[1] / sides[2], 2), fraction)
    most = 1.0 / torch.where(fraction > 0, fraction, 1.0)
    height, width = fraction / torch.minimum(stretch, most), (fraction * stretch).clamp_max(1.0)
    return torch.where(free, height, fraction), torch.where(free, width, fraction)


def drawn(row: Sequence[float]) -> Drawn:
    """A centre or a place, with an aspect and a ratio perhaps; or a place and sides."""
    if row[Column.SIDE_HIGH]:
        return Drawn.PLACE | Drawn.SIDES
    of_box = Drawn.PLACE if row[Column.INSIDE] else Drawn.CENTRE
    if row[Column.ASPECT_HIGH]:
        of_box |= Drawn.ASPECT
    return of_box | Drawn.RATIO if row[Column.RATIO_ALPHA] else of_box


def root(x: Tensor, d: int) -> Tensor:
    """x^(1/d) of float64, the same on every backend: a box is the floor of a multiple of it.

    Square roots are correctly rounded, as math.sqrt's and a GPU's are. On x86 torch.sqrt takes them from a vector
    library that gets 14 of 1000 wrong in the last bit (torch 2.10 and 2.15), hence the loop, which a graph cannot hold:
    there a λ between the same two pixels has the same box. Cube roots differ between
    libraries in the last bit, so they are rounded to float32.
    """
    if d == 2:
        return (
            x.new_tensor([math.sqrt(v) if v >= 0 else math.nan for v in x.tolist()])
            if x.device.type == "cpu" and not torch.compiler.is_compiling()
            else x.sqrt()
        )
    return x if d == 1 else x.pow(1.0 / 3.0).float().double()


FAMILY = Family(
    kinds=frozenset({Kind.BOX}),
    methods=frozenset({Method.CUTMIX, Method.HMIX_RELEASED, Method.HMIX_PAPER}),
    parts=Families.CUTS | Families.BOXES,
    draws=drawn,
    may_hold=lambda row: Families.CUTS if row[Column.METHOD] == Method.CUTMIX else Families.BOXES,
    make=make,
    evaluate=evaluate,
    one=one,
)
