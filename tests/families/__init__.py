"""What the tests know of the mask families: a file each, which has the name of the family's files elsewhere."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

import fusedmix as fm
from fusedmix import masks
from fusedmix.methods import Families, Method

Make = Callable[..., fm.MixTransform]


@dataclass(frozen=True)
class Record:
    """Of a family: how the tests make its modules, and what they should find."""

    # How modules are made, by names. Each of them is in every sweep: agreement, options, partners, safety.
    methods: dict[str, Make]
    # Of those whose masks are written a second time: how one is made, its method, columns of its spec that are no 0.
    formulas: dict[str, tuple[Make, Method, dict[str, float]]] = field(default_factory=dict)
    # The second time, by the paper: (n, H, W) float64 masks of a method, its columns and λ. The coordinates from the
    # centre are (n, H, 1) and (n, 1, W). What follows the size are the numbers that a family draws for itself, (n,).
    oracle: Callable[..., np.ndarray] | None = None
    own_numbers: int = 0  # how many there are
    # What else stays in range at extremes: a method, and columns of its spec.
    degenerate: tuple[tuple[Method, dict[str, float]], ...] = ()
    # Of a call with its masks alone: how many words of a record the Triton kernels read.
    words: dict[Families, int] = field(default_factory=dict)
    exponentials: bool = False  # whether these kernels have any
    exact: bool = True  # whether its masks are the same on every backend, to the bit
    stored: bool = False  # whether its masks follow from no formula
    sampled: Callable[[int], fm.MixTransform] | None = None  # for images of so many dims; None: the first of `methods`

    def module(self, dims: int) -> fm.MixTransform:
        """One whose sampler is compiled."""
        return self.sampled(dims) if self.sampled else next(iter(self.methods.values()))()


RECORDS: dict[str, Record] = {name: importlib.import_module(f"{__name__}.{name}").RECORD for name in masks.BY_NAME}
