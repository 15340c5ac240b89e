"""Plain copies of a batch: the fastest of a run is the ceiling that mixing is measured against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

Copy = Callable[[Tensor, Tensor], Any]

if triton is not None:

    @triton.jit
    def _copy_kernel(out, x, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
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
