"""What gpu_mix measures fusedmix against: torch.compile of the mathematics without draws and labels; torchvision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2


def mixup(x: Tensor, lam: Tensor) -> Tensor:
    """λ as a tensor: a number would be compiled in."""
    partner = x.roll(1, 0)
    return partner + lam * (x - partner)


def mixup_(x: Tensor, lam: Tensor) -> Tensor:
    return x.copy_(mixup(x, lam))


def cutmix(x: Tensor, box: Tensor) -> Tensor:
    """`box` holds y0, x0, y1, x1."""
    row, column = (torch.arange(side, device=x.device) for side in x.shape[-2:])
    inside_row, inside_column = (row >= box[0]) & (row < box[2]), (column >= box[1]) & (column < box[3])
    return torch.where(inside_row[:, None] & inside_column, x.roll(1, 0), x)


def cutmix_(x: Tensor, box: Tensor) -> Tensor:
    return x.copy_(cutmix(x, box))


def compiled(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """Compiled for the shapes it meets; without a GPU only traced, which is as much as a dry run needs."""
    backend = "inductor" if device.type == "cuda" else "eager"
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


TORCHVISION = {"MixUp": v2.MixUp, "CutMix": v2.CutMix}
