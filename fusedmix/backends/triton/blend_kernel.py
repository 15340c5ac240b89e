"""Sums of several samples: Σ weight[i, k]·x[partner[i, k]] over the K terms of a sample.

The meaning is fusedmix/backends/gathers.py, `blend`. A program has N vectors of V elements of one sample, [1, N, V] as
in mix_kernel.py, and reads them of every partner. Programs go through a place of all samples before the next one, so
that a sample that several partners are made of is in the L2 cache.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedmix.backends.triton.launch import Kernel, brought
from fusedmix.backends.triton.mix_kernel import of_sample, place
from fusedmix.backends.triton.mix_layout import layout_of, power_of_two
from fusedmix.backends.triton.numbers import (
    fma,
    from_compute,
    from_raised,
    is_integer,
    jit_kernel,
    least_of,
    most_of,
    spread,
    to_compute,
)

_THREADS = 128
_HELD = 8  # vectors of a thread, of all terms together


@triton.jit
def narrowed(x, dtype: tl.constexpr):
    """Rounded to an element type, to nearest even; integers saturate."""
    if is_integer(dtype):
        narrow = from_raised(tl.minimum(tl.maximum(x, least_of(dtype)), most_of(dtype)) + 12582912.0, dtype)
    else:
        narrow = from_compute(x, dtype)
    return narrow


@jit_kernel("src", "dst")
def blend_kernel(
    src, dst, partner, weight, sizes, src_strides, dst_strides, src_batch, dst_batch, columns, batch,
    TERMS: tl.constexpr, RANK: tl.constexpr, V: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The new batch, TERMS a sample. A term of weight 0, or of no sample of the batch, is left out."""
    tile, sample = tl.program_id(0) // batch, tl.program_id(0) % batch
    column = ((tile + 0 * columns) * N + tl.arange(0, N))[None, :, None]  # 64 bits, if `columns` has them.
    lane = tl.arange(0, V)[None, None, :]
    live = (column >= 0) & (column < columns)  # Beyond 32 bits it is negative.
    source = src + (place(column, sizes, src_strides, RANK) * V + lane)
    target = dst + (place(column, sizes, dst_strides, RANK) * V + lane)
    i = sample.to(tl.int64)
    total = to_compute(tl.zeros([1, N, V], src.dtype.element_ty))
    for k in tl.static_range(TERMS):
        j, w = tl.load(partner + i * TERMS + k), tl.load(weight + i * TERMS + k)
        taken = spread((j >= 0) & (j < batch) & (w != 0.0), live)
        x = to_compute(tl.load(of_sample(source, j, src_batch, V), mask=live & taken, other=0))
        w = tl.broadcast_to(w.to(x.dtype), x.shape)
        total = tl.where(taken, w * x if k == 0 else fma(w, x, total), total)
    tl.store(of_sample(target, i, dst_batch, V), narrowed(total, src.dtype.element_ty), mask=live)


_blend = Kernel(blend_kernel, _THREADS // 32)


@functools.lru_cache(maxsize=4096)
def _way_of(images: tuple[Any, ...], terms: int) -> tuple[int, dict[str, Any]]:
    """Programs, and what blend_kernel is given, of a batch as `layout_of` takes it."""
    layout, (shape, *_) = layout_of(*images), images
    columns = math.prod(layout["sizes"])
    vectors = min(_THREADS * max(1, min(4, _HELD // terms)), power_of_two(columns))
    named = {name: of for name, of in layout.items() if name not in ("AXES", "INNER")}
    return -(-columns // vectors) * shape[0], {
        **named, "columns": columns, "batch": shape[0], "TERMS": terms, "N": vectors,
    }  # fmt: skip


def blend(x: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """(B, ...) in the layout of x.

    Args:
        partner: (B, K) int64.
        weight: (B, K) float32.
    """
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    address = (x.data_ptr() | out.data_ptr()) & 15 or 16
    images = tuple(x.shape), x.stride(), out.stride(), x.element_size(), address & -address, 0
    programs, named = _way_of(images, partner.shape[1])
    _blend.launch(programs, x.device, {
        **named, "src": x, "dst": out, "partner": brought(x.device, partner), "weight": brought(x.device, weight),
    })  # fmt: skip
    return out
