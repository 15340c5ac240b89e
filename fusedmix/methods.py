"""What a method is to a sampler: a row of numbers.

Samplers are operators, and operators take tensors. A module therefore hands them a float64 tensor on the CPU with
one row per method it may draw (one for CutMix, two for a RandomMix of two) and the columns below. Because it is a
tensor, a schedule may change α between two steps of a compiled model without a recompilation.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor


class Method(IntEnum):
    """A formula of METHODS: which mask follows from λ. The numbers are part of every backend's contract."""

    MIXUP = 0
    CUTMIX = 1
    HMIX_RELEASED = 2
    HMIX_PAPER = 3
    GMIX_RELEASED = 4
    GMIX_PAPER = 5
    SAMPLE_PAIRING = 6
    FMIX_RELEASED = 7
    FMIX_PAPER = 8

    @property
    def is_constant(self) -> bool:
        """Whether the mask is one number."""
        return self in (Method.MIXUP, Method.SAMPLE_PAIRING)

    @property
    def is_fourier(self) -> bool:
        """Whether the mask is a thresholded random field."""
        return self >= Method.FMIX_RELEASED

    @property
    def has_centre(self) -> bool:
        """Whether the mask has a centre to draw."""
        return not self.is_constant and not self.is_fourier


class Column(IntEnum):
    """The columns of a spec."""

    METHOD = 0
    WEIGHT = 1  # probability of this row, the rows summing to 1; NaN where there is no choice, and none is drawn
    P = 2  # probability that the method, once chosen, is applied
    ALPHA = 3  # λ ~ Beta(α, α); α <= 0 means λ = 1
    LAM = 4  # λ itself where it is fixed, else NaN
    LAM_MIN = 5
    LAM_MAX = 6
    RATIO = 7  # HMix: the share of the mixing that the box does
    DECAY = 8  # FMix: the amplitude of frequency f is f^-decay
    SOFT = 9  # FMix: the share of the pixels on either side of the edge over which the mask falls from 1 to 0
    CUTOFF = 10  # FMix: the highest frequency, in cycles along the longest side; infinity: all there are
    REFORMULATE = 11  # FMix: 1 for λ ~ Beta(α+1, α) and a label weight of 1


class Pairing(IntEnum):
    """How partners are found. ROLL and FLIP are formulas, so a kernel that knows them loads no partner indices."""

    ROLL = 0
    FLIP = 1
    RANDOM = 2
    CROSS_CLASS = 3
    SAME_CLASS = 4

    @property
    def is_formula(self) -> bool:
        """Whether the partners follow from the batch size alone."""
        return self in (Pairing.ROLL, Pairing.FLIP)


class Per(IntEnum):
    """How many draws a batch gets."""

    BATCH = 0
    PAIR = 1
    SAMPLE = 2

    def draws(self, batch_size: int) -> int:
        """Number of independent draws for a batch."""
        if self == Per.PAIR:
            return (batch_size + 1) // 2
        return 1 if self == Per.BATCH else batch_size


def spec_row(
    method: Method,
    *,
    alpha: float = 1.0,
    lam: float = math.nan,
    lam_range: tuple[float, float] = (0.0, 1.0),
    ratio: float = 1.0,
    decay: float = 0.0,
    soft: float = 0.0,
    cutoff: float = math.inf,
    reformulate: bool = False,
) -> Tensor:
    """One row of a spec: float64, on the CPU whatever the default device."""
    columns = (float(method), math.nan, 1.0, alpha, lam, *lam_range, ratio, decay, soft, cutoff, float(reformulate))
    return torch.tensor([columns], dtype=torch.float64, device="cpu")


class Reduction(IntEnum):
    """What becomes of a batch of losses."""

    NONE = 0
    SUM = 1
    MEAN = 2  # over the batch
    MEAN_OF_ALL = 3  # over batch and classes
