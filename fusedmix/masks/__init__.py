"""Mask families: from a method, λ and what else was drawn to the record of a mask, and from it to the mask.

These are the formulas of the methods (Park, Yun, Chun, "A Unified Analysis of Mixed Sample Data Augmentation",
NeurIPS 2022, and the papers that the files name), vectorised over draws. fusedmix/masks/family.py says what a family
is.
"""

from __future__ import annotations

import functools
import importlib
import math
import operator
import pkgutil
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fusedmix.masks.family import Draws, Family, Masks, OneMask, kind, padded, value
from fusedmix.methods import Column, Families, Kind, Method

_MODULES = {found.name: importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)}
# By the names of their files, in the order of their methods.
BY_NAME: dict[str, Family] = dict(
    sorted(
        ((name, module.FAMILY) for name, module in _MODULES.items() if hasattr(module, "FAMILY")),
        key=lambda found: min(found[1].methods),
    )
)
FAMILIES = tuple(BY_NAME.values())
_OF = {method: family for family in FAMILIES for method in family.methods}
# The kinds that each part of a set of families holds, as numbers: the arithmetic of flags takes microseconds. Of the
# constant 1 there may be one in any.
KINDS = {
    int(part): family.kinds_of.get(part, family.kinds)
    for part in Families
    for family in FAMILIES
    if family.parts & part
}


def of(method: Method) -> Family:
    """The family of a method."""
    return _OF[method]


def generate(
    methods: frozenset[Method], method: Tensor, rows: Tensor, lam: Tensor, draws: Draws, size: tuple[int, ...]
) -> Masks:
    """The masks of n draws.

    Args:
        methods: the methods that occur, so that no formula is evaluated for nothing.
        method: (n,) float64 with values of Method.
        rows: (n, len(Column)) float64, the row of the spec of each.
        lam: (n,) float32.
        draws: what else was drawn.
        size: 1 to 3 spatial sides.
    """
    made = None
    for family in FAMILIES:
        if family.methods.isdisjoint(methods):
            continue
        masks = family.make(method, rows, lam.double(), draws, size)
        if made is not None:
            own = _among(method, family.methods)
            masks = Masks(
                torch.where(own.unsqueeze(1), masks.records, made.records), torch.where(own, masks.weight, made.weight)
            )
        made = masks
    assert made is not None
    return made


def one(row: Sequence[float], lam: float, centre: Sequence[int], size: tuple[int, ...]) -> OneMask | None:
    """What `generate` makes of one draw, bit for bit, as numbers of Python; None where a family cannot."""
    family = of(Method(int(row[Column.METHOD])))
    return None if family.one is None else family.one(row, lam, centre, size)


def evaluate(records: Tensor, families: int, size: tuple[int, ...], pixels: Tensor | None) -> Tensor:
    """(n, *size) float32 masks of records (n, WORDS). NaN where the kind is of none of the families.

    Args:
        families: which masks there may be.
        pixels: the row of each mask in a plan's pixels, (n, words or levels), if there are any.
    """
    sides = padded(size)
    n = records.shape[0]
    made = records.new_full((n, *sides), math.nan, dtype=torch.float32)
    kinds = kind(records).reshape(-1, 1, 1, 1)
    for family in FAMILIES:
        if (families | int(Families.CONSTANTS)) & int(family.parts):
            made = torch.where(_among(kinds, family.kinds), family.evaluate(records, sides, pixels), made)
    return made.reshape(n, *size)


def holds(records: Tensor, families: int) -> Tensor:
    """(n,) bool: whether each record is of one of the families, or the constant 1."""
    kinds, (outer, inner) = kind(records), value(records).unbind(1)
    held = (kinds == Kind.CONSTANT) & (outer == 1)
    for part, of_part in KINDS.items():
        if families & part:
            own = _among(kinds, of_part)
            held = held | (own & (outer == 1) & (inner == 0) if part == Families.CUTS else own)
    return held


def is_stored(records: Tensor) -> Tensor:
    """(n,) bool: whether each record is of a mask that no formula gives."""
    return _among(kind(records), KINDS[Families.STORED] | KINDS[Families.LARGE_CELLS])


def _among(x: Tensor, numbers: Iterable[int]) -> Tensor:
    return functools.reduce(operator.or_, (x == number for number in numbers))
