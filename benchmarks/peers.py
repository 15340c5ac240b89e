"""What fusedmix is measured against on a GPU: vectorised copies, torch.compile of the same mathematics, torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

Copy = Callable[[Tensor, Tensor], Any]

if triton is not None:

    @triton.jit
    def _copy_kernel(out, x, n, BLOCK: tl.constexpr):  # noqa: N803
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(out + at, tl.load(x + at, mask=at < n), mask=at < n)

    def triton_copy(out: Tensor, x: Tensor) -> None:
        """16 bytes a thread and access, four accesses under way. Contiguous tensors of a multiple of 16 elements."""
        block = 4 * 128 * 16 // x.element_size()
        _copy_kernel[(triton.cdiv(x.numel(), block),)](out, x, x.numel(), BLOCK=block, num_warps=4)


def copies(device: torch.device) -> dict[str, Copy]:
    """Ways to copy a contiguous tensor. The fastest in a run is the ceiling of that run."""
    found: dict[str, Copy] = {
        "copy_": lambda out, x: out.copy_(x),  # a memcpy, often not the fastest
        "neg": lambda out, x: torch.neg(x, out=out),  # torch's vectorised loop
    }
    if triton is not None and device.type == "cuda":
        found["triton"] = triton_copy
    return found


# ---- The same mathematics for torch.compile --------------------------------------------------------------------------


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
