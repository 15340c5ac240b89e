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


def mixup_each(x: Tensor, lam: Tensor) -> Tensor:
    """(B,) λ: a number for each sample makes float32 of half precision, as the scalar above does not."""
    return mixup(x, lam[:, None, None, None]).to(x.dtype)


def cutmix_each(x: Tensor, box: Tensor) -> Tensor:
    """`box` (B, 4) holds y0, x0, y1, x1 of each sample."""
    row, column = (torch.arange(side, device=x.device) for side in x.shape[-2:])
    y0, x0, y1, x1 = box[:, :, None].unbind(1)
    inside_row, inside_column = (row >= y0) & (row < y1), (column >= x0) & (column < x1)
    return torch.where(inside_row[:, None, :, None] & inside_column[:, None, None, :], x.roll(1, 0), x)


def compiled(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """Compiled for the shapes it meets; without a GPU only traced, which is as much as a dry run needs."""
    backend = "inductor" if device.type == "cuda" else "eager"
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


TORCHVISION = {"MixUp": v2.MixUp, "CutMix": v2.CutMix}
