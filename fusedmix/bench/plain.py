"""Mixing in plain PyTorch, as one writes it in a training script: what torch.compile is given, and what it is without.

Draws are NumPy's, on the host; images, masks and targets are tensor operations. Partners are those of torchvision
(`roll`), masks those of the papers' released code (`fusedmix.masks`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import fusedmix as fm
from fusedmix.bench import fmix_numpy
from fusedmix.masks.family import packed
from fusedmix.methods import Families, Kind

RATIO = 0.75  # of HMix


class Numbers(NamedTuple):
    """n draws, of the batch (n = 1) or of its samples."""

    weight: Tensor  # (n,) float32: of the label
    value: (
        Tensor  # (n, 2) float32: λ; outside and inside of a box; the rate of a Gaussian and whether it is turned over
    )
    place: Tensor  # (n, 4) int64: y0, x0, y1, x1 of a box; y, x of a centre
    mask: Tensor | None = None  # (n, H, W) float32, of FMix
    partner: Tensor | None = None  # (B,) int64; None: the sample before

    def to(self, device: torch.device) -> Numbers:
        return Numbers(*(None if t is None else t.to(device, non_blocking=True) for t in self))  # type: ignore[arg-type]


def draw(method: str, n: int, height: int, width: int, generator: np.random.Generator) -> Numbers:
    """λ ~ Beta(1, 1) and what the mask of a method needs."""
    lam = generator.beta(1.0, 1.0, n)
    y, x = generator.integers(0, height, n), generator.integers(0, width, n)
    weight, value, place = lam, np.zeros((n, 2)), np.zeros((n, 4), np.int64)
    masks = None
    if method == "MixUp":
        value[:, 0] = lam
    elif method == "FMix":
        made = np.stack([fmix_numpy.mask(height, width, one, generator) for one in lam])
        weight, masks = made.mean((1, 2)), torch.from_numpy(made)
    elif method == "GMix":
        rate = math.pi / (np.minimum(lam, 1 - lam) * height * width)
        value[:, 0], value[:, 1], place[:, 0], place[:, 1] = rate, lam >= 0.5, y, x
        rows, columns = (
            np.exp(-rate[:, None] * (np.arange(side) - at[:, None]) ** 2).mean(1)
            for side, at in ((height, y), (width, x))
        )
        weight = np.where(lam >= 0.5, 1 - rows * columns, rows * columns)
    else:
        part = np.sqrt(1 - lam) * (np.sqrt(RATIO) if method == "HMix" else 1.0)
        half_h, half_w = (height * part).astype(np.int64) // 2, (width * part).astype(np.int64) // 2
        if method == "CutMix":  # as torchvision rounds it
            half_h, half_w = (0.5 * part * height).astype(np.int64), (0.5 * part * width).astype(np.int64)
        place[:, 0], place[:, 2] = np.maximum(y - half_h, 0), np.minimum(y + half_h, height)
        place[:, 1], place[:, 3] = np.maximum(x - half_w, 0), np.minimum(x + half_w, width)
        inside = (place[:, 2] - place[:, 0]) * (place[:, 3] - place[:, 1]) / (height * width)
        value[:, 0] = 1.0
        weight = 1 - inside
        if method == "HMix":
            value[:, 0], weight = np.minimum(lam / (1 - inside), 1.0), lam
    return Numbers(torch.from_numpy(weight).float(), torch.from_numpy(value).float(), torch.from_numpy(place), masks)


# ---- images and labels: tensor operations alone --------------------------------------------------------------------


def _partners(x: Tensor, numbers: Numbers) -> Tensor:
    return x.roll(1, 0) if numbers.partner is None else x[numbers.partner]


def _mixup(x: Tensor, numbers: Numbers) -> Tensor:
    partner = _partners(x, numbers)
    lam = numbers.value[:, 0].to(x.dtype).view(-1, 1, 1, 1)
    return partner + lam * (x - partner)


def inside(x: Tensor, place: Tensor) -> Tensor:
    """Whether each pixel is in its box, (n, 1, H, W), of boxes y0, x0, y1, x1."""
    rows, columns = (torch.arange(side, device=x.device) for side in x.shape[-2:])
    y0, x0, y1, x1 = (place[:, k].view(-1, 1) for k in range(4))
    return (((rows >= y0) & (rows < y1))[:, None, :, None]) & (((columns >= x0) & (columns < x1))[:, None, None, :])


def _cutmix(x: Tensor, numbers: Numbers) -> Tensor:
    return torch.where(inside(x, numbers.place), _partners(x, numbers), x)


def _hmix(x: Tensor, numbers: Numbers) -> Tensor:
    outside = numbers.value[:, 0].view(-1, 1, 1, 1)
    return _masked(x, torch.where(inside(x, numbers.place), 0.0, outside), numbers)


def _gmix(x: Tensor, numbers: Numbers) -> Tensor:
    rate, turned = numbers.value[:, 0].view(-1, 1), numbers.value[:, 1].view(-1, 1, 1, 1)
    rows, columns = (
        torch.exp(-rate * (torch.arange(side, device=x.device) - numbers.place[:, k].view(-1, 1)) ** 2)
        for k, side in enumerate(x.shape[-2:])
    )
    g = rows[:, None, :, None] * columns[:, None, None, :]
    return _masked(x, torch.where(turned > 0, 1 - g, g), numbers)


def _fmix(x: Tensor, numbers: Numbers) -> Tensor:
    assert numbers.mask is not None
    return torch.where(numbers.mask[:, None] > 0, x, _partners(x, numbers))


def _masked(x: Tensor, mask: Tensor, numbers: Numbers) -> Tensor:
    partner, mask = _partners(x, numbers), mask.to(x.dtype)
    return partner + mask * (x - partner)


_IMAGES: dict[str, Callable[[Tensor, Numbers], Tensor]] = {
    "MixUp": _mixup,
    "CutMix": _cutmix,
    "HMix": _hmix,
    "GMix": _gmix,
    "FMix": _fmix,
}


def mixing(method: str, classes: int, inplace: bool) -> Callable[[Tensor, Tensor, Numbers], tuple[Tensor, Tensor]]:
    """A function of images (B, C, H, W), labels (B,) and draws on their device: the mixed images and dense targets."""
    images = _IMAGES[method]

    def mix(x: Tensor, y: Tensor, numbers: Numbers) -> tuple[Tensor, Tensor]:
        hot = F.one_hot(y, classes).float()
        weight = numbers.weight.view(-1, 1)
        mixed = images(x, numbers)
        return x.copy_(mixed) if inplace else mixed, hot * weight + _partners(hot, numbers) * (1 - weight)

    return mix


def plan_of(
    method: str, numbers: Numbers, batch: int, size: tuple[int, int], partner: Tensor | None = None
) -> fm.MixPlan:
    """The same draws as a plan, to be applied by the reference backend. `partner`: those of `roll` if None."""
    kind = torch.full(
        (batch,), {"MixUp": Kind.CONSTANT, "GMix": Kind.GAUSSIAN}.get(method, Kind.BOX), dtype=torch.int32
    )
    geometry, value = torch.zeros(batch, 6, dtype=torch.int32), numbers.value.expand(batch, 2).contiguous()
    place = numbers.place.expand(batch, 4).int()
    if method == "GMix":
        geometry[:, 1:3] = place[:, :2]
        kind += value[:, 1].int()  # Kind.GAUSSIAN_COMPLEMENT
    elif method != "MixUp":
        geometry[:, 3], geometry[:, 1:3], geometry[:, 4:] = 1, place[:, :2], place[:, 2:]
    if partner is None:
        partner = torch.arange(-1, batch - 1) % batch
    weight = numbers.weight.expand(batch).contiguous()
    families = {"MixUp": Families.CONSTANTS, "GMix": Families.GAUSSIANS}.get(method, Families.BOXES)
    return fm.MixPlan(partner, weight, weight.double(), packed(kind, geometry, value), size, families)
