"""How boxes are pasted: what the kernel of paste_kernel.py is given."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from fusedmix.arguments import Patches
from fusedmix.backends.triton.launch import Kernel, brought
from fusedmix.backends.triton.mix_layout import layout_of, power_of_two
from fusedmix.backends.triton.paste_kernel import paste_kernel
from fusedmix.masks.family import padded
from fusedmix.methods import Resize

_THREADS = 128
_NARROW = (1 << 15) - 1  # Up to such sides 32 bits say exactly where a pixel of a box comes from.
_paste = Kernel(paste_kernel, _THREADS // 32)


@functools.lru_cache(maxsize=4096)
def _way_of(images: tuple[Any, ...], count: int, mode: int) -> tuple[int, dict[str, Any]]:
    """Programs, and what paste_kernel is given, of a batch as `layout_of` takes it."""
    shape, strides, made, item, address, spatial = images
    # Where each element is of several pixels, or of one of several patches, registers hold no more than 8 of a vector.
    several = mode != Resize.NEAREST or count > 1
    layout = layout_of(shape, strides, made, item, min(address, 8 * item) if several else address, spatial)
    columns, width = math.prod(layout["sizes"]), layout["V"]
    sides, steps = shape[len(shape) - spatial :], strides[len(shape) - spatial :]
    depth, height, across = padded(sides)
    step_z, step_y, step_x = (0,) * (3 - spatial) + steps
    extent = sum((side - 1) * step for side, step in zip(sides, steps, strict=True))
    held = max(1, (4 if several else 8) // width)
    vectors = min(_THREADS * held, power_of_two(columns))
    return -(-columns // vectors) * shape[0], {
        **layout, "columns": columns, "batch": shape[0], "depth": depth, "height": height, "width": across,
        "step_z": step_z, "step_y": step_y, "step_x": step_x, "MODE": mode, "COUNT": count, "NDIM": spatial,
        "WIDE": max(sides) > _NARROW or extent >= 1 << 31, "N": vectors,
    }  # fmt: skip


def paste(x: Tensor, patches: Patches, resize: int) -> Tensor:
    """The new batch, in the layout of x."""
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    address = (x.data_ptr() | out.data_ptr()) & 15 or 16
    spatial = patches.boxes.shape[2] // 2
    images = tuple(x.shape), x.stride(), out.stride(), x.element_size(), address & -address, spatial
    programs, named = _way_of(images, patches.partner.shape[1], int(resize))
    plan = {name: brought(x.device, part) for name, part in patches._asdict().items()}
    _paste.launch(programs, x.device, {**named, **plan, "src": x, "dst": out})
    return out
