"""How the pixels of FMix's masks are made: chunks of masks, and what the kernels of fourier_kernel.py are given."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from fusedmix.backends.triton import fourier_kernel
from fusedmix.backends.triton.fourier_kernel import TILE
from fusedmix.backends.triton.launch import Kernel, of_seed
from fusedmix.fourier import fourier_rows, frequencies, rows, words_per_mask
from fusedmix.masks.family import padded
from fusedmix.methods import Kind, Method

_SCRATCH = 24 << 20  # A chunk takes so many bytes, unless one mask needs more.
_BLOCK = 256  # A program has so many coefficients, waves or ranks.
_ROWS = 32  # A program sums so many rows of TILE pixels: a thread holds 32 complex numbers.
_PIXELS = 4096  # A program selects among so many at a time, by 16 warps.

_waves, _coefficients = Kernel(fourier_kernel.waves_kernel), Kernel(fourier_kernel.coefficients_kernel)
_sum, _level = Kernel(fourier_kernel.sum_kernel), Kernel(fourier_kernel.level_kernel)
_select = Kernel(fourier_kernel.select_kernel, warps=16)


def masks(
    spec: Tensor, records: Tensor, seed: Tensor, size: tuple[int, ...], per: int, draws: int, soft: bool
) -> Tensor:
    """The pixels of the Fourier masks of a plan, on its device: bits or levels (fusedmix/fourier.py, `masks`)."""
    size, device, batch = tuple(size), records.device, records.shape[0]
    n, pixels = rows(per, batch), math.prod(size)
    shape, dtype = ((n, pixels), torch.int16) if soft else ((n, words_per_mask(size)), torch.int32)
    out = torch.zeros(shape, dtype=dtype, device=device)
    if n == 0:
        return out
    records = records.contiguous()
    noise = {**of_seed(seed, records.new_empty(1, dtype=torch.int64)), "batch": batch, "PER": int(draws)}
    write = level if soft else select
    for method, decay, cutoff in sorted(set(fourier_rows(spec))):
        released = method == Method.FMIX_RELEASED
        kind = int(Kind.FOURIER_RELEASED if released else Kind.FOURIER)
        along = frequencies(size, "released" if released else "paper", cutoff)
        axes = _axes(size, along)
        waves = _made_waves(axes, device)
        step = _chunk(size, [len(k) for k in along], n, soft, waves.nbytes)
        for first in range(0, n, step):
            chunk = records, decay, cutoff, first, kind
            # Fields have no name here, and waves lose theirs: they would live on while the next ones are made.
            write(out, _fields(chunk, min(step, n - first), noise, size, along, axes, waves), *chunk)
        del waves
    return out


def select(out: Tensor, field: Tensor, *chunk: Any) -> None:
    """Writes the bits of the masks of a chunk, of their fields (many, S), into rows of `out`."""
    many, pixels = field.shape
    named = {**_of(chunk), "out": out, "field": field, "pixels": pixels, "across": out.shape[1], "N": _PIXELS}
    _select.launch(many, out.device, named)


def level(out: Tensor, field: Tensor, *chunk: Any) -> None:
    """Writes the levels of the masks of a chunk, of their fields (many, S), into rows of `out`."""
    many, pixels = field.shape
    order = field.sort(dim=1, descending=True, stable=True).indices
    tiles = -(-pixels // _BLOCK)
    named = {**_of(chunk), "out": out, "order": order, "pixels": pixels, "tiles": tiles, "N": _BLOCK}
    _level.launch(many * tiles, out.device, named)


def _of(chunk: tuple[Any, ...]) -> dict[str, Any]:
    """As arguments, the masks from `first` on that are of a kind, a decay and a cut-off."""
    return dict(zip(("records", "decay", "cutoff", "first", "KIND"), chunk, strict=True))


def _chunk(size: tuple[int, ...], along: list[int], n: int, soft: bool, waves: int) -> int:
    """How many masks are made at a time: as many as the scratch allows beside the bytes of the waves, in chunks of
    about the same size."""
    pixels = math.prod(size)
    held, shape = [2 * math.prod(along)], along
    for side in size:
        shape = [*shape[1:], side]
        held.append(2 * math.prod(shape))
    held[-1] = pixels
    most = max(map(sum, itertools.pairwise(held)))
    if soft:  # There are the field, its values and indices in order, and twice as much as all that for torch's sort.
        most = max(most, 12 * pixels)
    chunks = -(-n // max(1, (_SCRATCH - waves) // (4 * most)))
    return -(-n // chunks)


def _made_waves(axes: dict[str, int], device: torch.device) -> Tensor:
    """(2, ...) cos and sin: for every axis of three its sides' worth, then a tile for each frequency."""
    total = sum(axes[side] + TILE * axes[count] for side, count in (("depth", "nz"), ("height", "ny"), ("width", "nx")))
    waves = torch.empty((2, total), device=device)
    _waves.launch(-(-total // _BLOCK), device, {**axes, "waves": waves, "total": total, "N": _BLOCK})
    return waves


def _axes(size: tuple[int, ...], along: tuple[range, ...]) -> dict[str, int]:
    """As arguments, how many frequencies there are along z, y and x; the first along z and y; and the sides."""
    z, y, x = (range(1),) * (3 - len(along)) + along
    depth, height, width = padded(size)
    counts = {"nz": len(z), "ny": len(y), "nx": len(x), "first_z": z.start, "first_y": y.start}
    return {**counts, "depth": depth, "height": height, "width": width}


def _fields(
    chunk: tuple[Any, ...],
    many: int,
    noise: dict[str, Any],
    size: tuple[int, ...],
    along: tuple[range, ...],
    axes: dict[str, int],
    waves: Tensor,
) -> Tensor:
    """(many, S) grey images of the masks of a chunk."""
    device, ndim, of_chunk = waves.device, len(size), {**_of(chunk), "many": many}
    shape = [len(k) for k in along]
    each = math.prod(shape)
    tiles = -(-each // _BLOCK)
    coefficients = torch.empty((2, many, each), device=device)
    # Arguments have no name here and below: the tensors of one launch would live on while those of the next are made.
    _coefficients.launch(many * tiles, device, {
        **of_chunk, **noise, **axes, "out": coefficients, "tiles": tiles, "longest": max(size), "NDIM": ndim,
        "N": _BLOCK,
    })  # fmt: skip
    of_axis = (1 + TILE) * (3 - ndim)
    for axis, (k, side) in enumerate(zip(along, size, strict=True)):
        last, inner = axis == ndim - 1, math.prod(shape[1:])
        out = torch.empty((1 if last else 2, many, inner * side), device=device)
        tiles = -(-side // TILE)
        _sum.launch(-(-many * inner // _ROWS) * tiles, device, {
            **of_chunk, "out": out, "coefficients": coefficients, "waves": waves, "tiles": tiles, "count": len(k),
            "inner": inner, "side": side, "k_first": k.start, "of_axis": of_axis, "total": waves.shape[1],
            "LAST": last, "M": _ROWS, "N": TILE,
        })  # fmt: skip
        coefficients, shape = out, [*shape[1:], side]
        of_axis += side + len(k) * TILE
    return coefficients[0]
