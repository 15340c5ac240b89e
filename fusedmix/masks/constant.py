"""One number everywhere: Mixup (Zhang 2018), SamplePairing (Inoue 2018), and every sample that is left as it is.

M is word 7 of the record.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fusedmix.masks.family import Draws, Family, Masks, OneMask, everywhere, packed, value
from fusedmix.methods import Column, Drawn, Families, Kind, Method


def make(method: Tensor, rows: Tensor, lam: Tensor, draws: Draws, size: tuple[int, ...]) -> Masks:
    """λ everywhere. The label weight of SamplePairing is 1."""
    return Masks(numbers(lam), weight=torch.where(method == Method.SAMPLE_PAIRING, 1.0, lam))


def numbers(lam: Tensor) -> Tensor:
    """(n, WORDS) int32, the masks that are a number everywhere, of numbers (n,)."""
    return packed(
        kind=torch.full_like(lam, Kind.CONSTANT, dtype=torch.int32),
        geometry=lam.new_zeros((lam.shape[0], 6)),
        value=torch.stack((lam, torch.zeros_like(lam)), dim=1),
    )


def evaluate(records: Tensor, sides: tuple[int, ...], pixels: Tensor | None) -> Tensor:
    """M, the number."""
    return everywhere(value(records)[:, 0])


def one(row: Sequence[float], lam: float, centre: Sequence[int], size: tuple[int, ...]) -> OneMask:
    """λ everywhere, as numbers."""
    return constant(lam, 1.0 if row[Column.METHOD] == Method.SAMPLE_PAIRING else lam)


def constant(lam: float, weight: float) -> OneMask:
    """The mask that is λ everywhere."""
    return OneMask(Kind.CONSTANT, [0] * 6, (lam, 0.0), weight)


FAMILY = Family(
    kinds=frozenset({Kind.CONSTANT}),
    methods=frozenset({Method.MIXUP, Method.SAMPLE_PAIRING}),
    parts=Families.CONSTANTS,
    draws=lambda row: Drawn(0),
    may_hold=lambda row: Families.CONSTANTS,
    make=make,
    evaluate=evaluate,
    one=one,
)
