"""Thresholded Fourier noise: FMix (Harris 2020). The pixels are made, and stored, by fusedmix/fourier.py.

Word 1 of a record is how many pixels are 1, word 2 half the ranks of the soft edge; 7 and 8 say of which grey image:
decay and cut-off. Of masks that are not FMix's, of which only the pixels are known, these are 0 (fusedmix/given.py,
fusedmix/spectral.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fusedmix.masks.family import Draws, Family, Masks, packed, quotient
from fusedmix.methods import Column, Drawn, Families, Kind, Method

LEVELS = 65535  # of a soft mask


def make(method: Tensor, rows: Tensor, lam: Tensor, draws: Draws, size: tuple[int, ...]) -> Masks:
    """How many pixels are 1, over how many ranks on either side the mask falls to 0, of which grey image. The label
    weight is the realised mean, which the soft edge leaves as it is, or 1 (reformulate)."""
    pixels = float(math.prod(size))
    number = torch.where(draws.coin, (lam * pixels).ceil(), (lam * pixels).floor())
    share = torch.minimum(rows[:, Column.SOFT], torch.minimum(lam, 1.0 - lam))
    soft = torch.minimum((pixels * share).floor(), torch.minimum(number, pixels - number))
    zero = torch.zeros_like(number)
    return Masks(
        packed(
            kind=torch.where(method == Method.FMIX_RELEASED, Kind.FOURIER_RELEASED, Kind.FOURIER),
            geometry=torch.stack((number, soft, zero, zero, zero, zero), dim=1),
            value=torch.stack((rows[:, Column.DECAY], rows[:, Column.CUTOFF]), dim=1),
        ),
        weight=torch.where(rows[:, Column.REFORMULATE] != 0, 1.0, quotient(number, pixels)),
    )


def evaluate(records: Tensor, sides: tuple[int, ...], pixels: Tensor | None) -> Tensor:
    """M, which is stored; NaN where it is not."""
    return records.new_full((), math.nan, dtype=torch.float32) if pixels is None else unpack(pixels, sides)


def unpack(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """(n, *size) float32 masks from bits (int32) or levels (int16)."""
    count = math.prod(size)
    if pixels.dtype == torch.int16:
        return quotient((pixels.int() & 0xFFFF).float(), LEVELS).reshape(-1, *size)
    bits = (pixels.long().unsqueeze(2) >> torch.arange(32, device=pixels.device)) & 1
    return bits.flatten(1)[:, :count].float().reshape(-1, *size)


def given(like: Tensor) -> Tensor:
    """(n, WORDS) int32, the records of masks of which pixels are all there is to know, beside n numbers."""
    return packed(
        torch.full_like(like, Kind.FOURIER, dtype=torch.int32),
        like.new_zeros((like.shape[0], 6)),
        like.new_zeros((like.shape[0], 2)),
    )


def may_hold(row: Sequence[float]) -> Families:
    """Bits, or levels where there is a soft edge."""
    return Families.LEVELS if row[Column.SOFT] > 0 else Families.STORED


FAMILY = Family(
    kinds=frozenset({Kind.FOURIER_RELEASED, Kind.FOURIER}),
    methods=frozenset({Method.FMIX_RELEASED, Method.FMIX_PAPER}),
    parts=Families.STORED | Families.LEVELS,
    draws=lambda row: Drawn.COIN | Drawn.NOISE,
    may_hold=may_hold,
    make=make,
    evaluate=evaluate,
)
