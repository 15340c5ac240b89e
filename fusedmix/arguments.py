"""What operators take and give, as records. The schemas of operators are rows of arguments, because torch.library has
nothing else. A row is made of a record where an operator is called, and a record of a row in one place, `gathering` in
fusedmix/operands.py.

What is drawn has its records in fusedmix/draws.py: `Request` and `Source`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fusedmix.masks.family import WORDS
from fusedmix.methods import Reduction

# The tensors of a plan, but for pixels: their dtypes, and what follows the batch dim.
PARTS: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "partner": (torch.int64, ()),
    "lam": (torch.float32, ()),
    "weight": (torch.float64, ()),
    "masks": (torch.int32, (WORDS,)),
}
PlanTensors = tuple[Tensor, Tensor, Tensor, Tensor]  # partner, lam, weight, masks


class MaskArguments(NamedTuple):
    """What `mix`, `mix_` and `mix_adjoint` take after the images: of a plan, what decides about them."""

    partner: Tensor  # (B,) int64
    masks: Tensor  # (B, WORDS) int32
    families: int  # which masks there may be
    ndim: int  # how many of the last dims are spatial; 0 if all masks are constant
    pairing: int
    per: int
    pixels: Tensor | None = None  # of masks that no formula gives, if there may be any


class Patches(NamedTuple):
    """What is pasted into each sample, in this order: crops of its partners, resized to boxes. A box and a crop are the
    first pixel along each of d sides, then the one behind the last."""

    partner: Tensor  # (B, K) int64
    boxes: Tensor  # (B, K, 2d) int32
    crops: Tensor  # (B, K, 2d) int32


class Terms(NamedTuple):
    """The labels of a mixed sample, as a sum: over t of weight[t]·y[partner[t]]."""

    partner: Tensor  # (B, T) int64
    weight: Tensor  # (B, T) float64


class Moves(NamedTuple):
    """Which block of an image stands at the place of each of n, in row-major order."""

    own: Tensor  # (B, n) int64
    lent: Tensor  # (B, n) int64: of the partner's image


class LossArguments(NamedTuple):
    """What the losses share: logits, the labels before they are mixed, and of a plan what decides about these."""

    logits: Tensor  # (B, K)
    labels: Tensor  # (B,) int64; of the binary loss (B,) of any integers, or (B, K)
    partner: Tensor  # (B,) int64
    weight: Tensor  # (B,) float64
    pairing: int
    per: int
    class_weight: Tensor | None  # (K,) in the compute dtype

    def wide(self) -> LossArguments:
        """The same with the logits in the compute dtype."""
        return self._replace(logits=self.logits.to(compute_dtype(self.logits)))


class PixelLossArguments(NamedTuple):
    """What the loss of pixels takes beside a plan."""

    logits: Tensor  # (B, K, *S)
    maps: Tensor  # (N, *S) integer or bool labels before they are mixed, of any width: N >= B, the batch comes first
    class_weight: Tensor | None  # (K,) in the compute dtype
    label_smoothing: float
    ignore_index: int


def compute_dtype(x: Tensor) -> torch.dtype:
    """In which a tensor is computed with: float64 for float64, float32 for the rest."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers as an image of that dtype: of integers the nearest, ties to even, within their range."""
    if not dtype.is_floating_point:
        bounds = torch.iinfo(dtype)
        values = values.round().clamp(bounds.min, bounds.max)
    return values.to(dtype)


def factor(logits: Tensor, reduction: int) -> float:
    """By which a reduction multiplies the sum of all losses."""
    rows, classes = logits.shape
    counted = {Reduction.MEAN: rows, Reduction.MEAN_OF_ALL: rows * classes}.get(Reduction(reduction), 1)
    return 1 / counted if counted else math.nan


def empty_parts(batch_size: int, device: torch.device) -> PlanTensors:
    """The tensors of a plan, but for pixels, before anything is written to them."""
    partner, lam, weight, masks = (
        torch.empty((batch_size, *rest), dtype=dtype, device=device) for dtype, rest in PARTS.values()
    )
    return partner, lam, weight, masks
