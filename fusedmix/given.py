"""Masks that are given and not drawn: boxes, weights of pixels, numbers and cells of grids, as a plan holds them.

What tensors hold is checked where that can be read (checks.readable). Elsewhere it is brought into its range, so that
no kernel meets a box outside of its image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedmix import checks, grids
from fusedmix.backends.reference import has_float64
from fusedmix.draws import CPU
from fusedmix.fourier import pack
from fusedmix.masks import fourier
from fusedmix.masks.constant import numbers
from fusedmix.masks.family import beside, packed, quotient
from fusedmix.masks.fourier import LEVELS
from fusedmix.methods import Families, Kind
from fusedmix.subclasses import plain

_DTYPES = (*checks.FLOATING_DTYPES, *checks.INTEGER_DTYPES, torch.bool)
_WIDE = (torch.uint16, torch.uint32, torch.uint64)
_FLOAT32_MAX = torch.finfo(torch.float32).max


class Given(NamedTuple):
    """What a plan takes of masks that are given."""

    records: Tensor  # (B, WORDS) int32
    weight: Tensor  # (B,) float64: the realised means
    size: tuple[int, ...]
    families: Families
    pixels: Tensor | None = None


def part(name: str, x: Any, size: Any) -> Given:
    """The masks of the part of that name, one of _PARTS. They are where it is, or on the CPU if there is no float64
    there.

    Raises:
        TypeError, ValueError: as `MixPlan.from_parts`.
    """
    x = plain(checks.tensor(name, x)).detach()
    if x.dtype not in _DTYPES:
        raise ValueError(
            f"{name} must have one of the dtypes {checks.names(_DTYPES)}, but got {checks.names([x.dtype])}."
        )
    x = x if has_float64(x.device) else x.to(CPU)
    # What torch does not compare are the wider unsigned types.
    return _PARTS[name](name, x.long() if x.dtype in _WIDE else x, size)


def _boxes(name: str, x: Tensor, size: Any) -> Given:
    size = checks.sides("size", size)
    d = len(size)
    if x.ndim != 2 or x.shape[1] != 2 * d or x.dtype not in checks.INTEGER_DTYPES:
        raise ValueError(
            f"boxes must be integers of shape (batch_size, {2 * d}) for images of size {size}, the first pixel inside "
            f"along each side and then the first one behind, but got {checks.names([x.dtype])} of shape "
            f"{tuple(x.shape)}."
        )
    x = x.long()
    first, stop = x[:, :d], x[:, d:]
    sides = beside(x, size)
    if checks.readable(x) and not ((first >= 0) & (first <= stop) & (stop <= sides)).all():
        row = int(((first >= 0) & (first <= stop) & (stop <= sides)).all(1).long().argmin())
        raise ValueError(
            f"boxes must have 0 <= first <= stop <= side along every side of the images of size {size}, but that of "
            f"sample {row} is {x[row].tolist()}."
        )
    first = torch.minimum(first.clamp_min(0), sides)
    stop = torch.maximum(torch.minimum(stop, sides), first)
    records, share = boxes_of(first, stop, size, outer=1.0)
    return Given(records, 1.0 - share, size, Families.CUTS)


def boxes_of(first: Tensor, stop: Tensor, size: Sequence[int], *, outer: float) -> tuple[Tensor, Tensor]:
    """Records of masks that are 1 - outer in boxes of pixels (n, d) and `outer`, 0 or 1, around them; and how much of
    the images is in the boxes, (n,) float64."""
    n, d = first.shape
    absent = first.new_zeros((n, 3 - d))
    around = torch.full_like(first[:, :1], outer, dtype=torch.float64)
    records = packed(
        first.new_full((n,), Kind.BOX),
        torch.cat((absent, first, absent + 1, stop), dim=1),
        torch.cat((around, 1.0 - around), dim=1),
    )
    return records, quotient((stop - first).prod(1).double(), math.prod(size))


def _masks(name: str, x: Tensor, size: Any) -> Given:
    """Bits, or levels, as fusedmix/fourier.py stores them."""
    soft = x.is_floating_point()
    if not 2 <= x.ndim <= 4:
        raise ValueError(
            "masks must be of shape (batch_size, *size) with 1 to 3 spatial sides, but got "
            f"{checks.names([x.dtype])} of shape {tuple(x.shape)}."
        )
    own = checks.sides("the shape of masks", tuple(x.shape[1:]), stored=True)
    if size is not None and checks.sides("size", size) != own:
        raise ValueError(f"size must be that of the masks, {own}, or None, but got {tuple(size)}.")
    if checks.readable(x) and not ((x >= 0) & (x <= 1) if soft else (x == 0) | (x == 1)).all():
        allowed = "in [0, 1]" if soft else "0 or 1, where they are integers,"
        raise ValueError(f"masks must be {allowed} everywhere, but hold other numbers.")
    x = x.flatten(1)
    pixels = x.shape[1]
    if soft:
        levels = (x.double().clamp(0.0, 1.0) * LEVELS).round().long()
        stored, weight = levels.to(torch.int16), quotient(levels.sum(1).double(), LEVELS * pixels)
    else:
        stored, weight = pack(x != 0), quotient((x != 0).sum(1).double(), pixels)
    return Given(fourier.given(weight), weight, own, Families.LEVELS if soft else Families.STORED, stored)


def _lam(name: str, x: Tensor, size: Any) -> Given:
    size = (1,) if size is None else checks.sides("size", size)
    if x.ndim != 1 or not x.is_floating_point():
        raise ValueError(
            f"lam must be floating point of shape (batch_size,), but got {checks.names([x.dtype])} of shape "
            f"{tuple(x.shape)}."
        )
    if checks.readable(x) and not (x.abs() <= _FLOAT32_MAX).all():
        raise ValueError("lam must be finite in float32 everywhere, but holds other numbers.")
    lam = x.float()
    return Given(numbers(lam), lam.double(), size, Families.CONSTANTS)


def _cells(name: str, x: Tensor, size: Any) -> Given:
    cells, size = checks.grid(name, x, size)
    own = (x != 0).flatten(1)
    made, pixels = grids.given(own, cells, size)
    return Given(made.records, made.weight, size, Families.CELLS if pixels is None else Families.LARGE_CELLS, pixels)


_PARTS: dict[str, Callable[[str, Tensor, Any], Given]] = {
    "boxes": _boxes,
    "masks": _masks,
    "lam": _lam,
    "cells": _cells,
    "grid": _cells,  # as `MixPlan.from_grid` calls it
}
