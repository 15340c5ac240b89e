"""What a method is to a sampler: a row of numbers.

Samplers are operators, and operators take tensors. A module therefore hands them a float64 tensor on the CPU with
one row per method it may draw (one for CutMix, two for a RandomMix of two) and the columns of `Column`. Because it is a
tensor, a schedule may change α between two steps of a compiled model without a recompilation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fusedmix import masks
from fusedmix.methods import Column, Drawn, Families, Method


def spec_row(
    method: Method,
    *,
    alpha: float = 1.0,
    lam: float = math.nan,
    lam_range: tuple[float, float] = (0.0, 1.0),
    **columns: float,
) -> Tensor:
    """One row of a spec: float64, on the CPU whatever the default device. `columns`: those of a family, by their names
    in lower case; 0, if not said otherwise here."""
    row = [0.0] * len(Column)
    row[: Column.RATIO] = [method, math.nan, 1.0, alpha, lam, *lam_range]
    row[Column.RATIO], row[Column.CUTOFF] = 1.0, math.inf
    for name, number in columns.items():
        row[Column[name.upper()]] = float(number)
    row[Column.DRAWS] = drawn_for(row)
    row[Column.FAMILIES] = masks.of(method).may_hold(row)
    return torch.tensor([row], dtype=torch.float64, device="cpu")


def drawn_for(row: Sequence[float]) -> Drawn:
    """What is drawn on the host for a row of a spec."""
    return masks.of(Method(int(row[Column.METHOD]))).draws(row)


def families(spec: Tensor) -> Families:
    """The masks that may come of a spec. Of stored ones, levels if there are any: one tensor holds those of a batch."""
    found = Families(0)
    for of_row in spec[:, Column.FAMILIES].tolist():
        found |= Families(int(of_row))
    return found & ~Families.STORED if Families.LEVELS in found else found
