"""The blends of the reference, at the speed of PyTorch's own operations.

`blend` says what a blend is. The rest gives the same bits in less time. Batches go through in pieces that fit the
caches, because the blend is exact only in float64, and a second and third batch of that would come from memory. Masks
that are one number, or one box a batch, are numbers of Python here and slices of the batch. Pieces are shared among
threads of Python, each with pieces so small that PyTorch does not divide them further: its own threads would wait for
each other at the end of every operation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fusedmix.masks.family import OneMask
from fusedmix.methods import Kind

_SERIAL = (1 << 15) - 1  # elements of a piece that PyTorch handles in one thread
_CACHED = 1 << 17  # elements of a piece whose float64 temporaries stay in the caches, where there is one thread anyway
_WORTH_THREADS = 1 << 18  # elements of a batch from which threads are worth their start
_LONG_ROW = 1 << 14  # elements of a sample from which a copy of its box is worth a call
_SMALL = 1 << 18  # elements of a batch that is one piece
_TINY = 1 << 12  # elements that are compared in less time than looked at
_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def blend(w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """w·a + (1-w)·b with float32 weights in [0, 1], rounded once.

    Exactly a where w is 1 or both are equal and exactly b where w is 0, whatever infinities and NaN stand in the
    other one: a box is a copy. uint8 rounds to nearest, ties to even, and saturates.
    """
    compute = torch.float64 if a.dtype == torch.float64 else torch.float32
    x, y = a.to(compute), b.to(compute)
    mixed = w.double() * (x - y).double() + y.double()
    mixed = mixed.round().clamp(0, 255) if a.dtype == torch.uint8 else mixed.to(compute)
    mixed = torch.where((w == 1) | (a == b), a, mixed.to(a.dtype))
    return torch.where(w == 0, b, mixed)


def one(x: Tensor, partner: Tensor | None, mask: OneMask, ndim: int) -> Tensor:
    """The batch mixed by one mask, a number or a box in the last `ndim` dims. Without partners they are those of
    pairing="roll"."""
    out = torch.empty_like(x)
    constant(out, x, partner, mask.value[0])
    inside = _inside(mask.geometry, ndim)
    if mask.kind == Kind.BOX:
        constant(out[inside], x[inside], partner, mask.value[1])
    return out


def one_(x: Tensor, partner: Tensor | None, mask: OneMask, ndim: int) -> None:
    """The same, in place. A box of CutMix leaves most of a batch as it is."""
    if mask.is_cut:
        inside = x[_inside(mask.geometry, ndim)]
        inside.copy_(inside.roll(1, 0) if partner is None else inside[partner])
    else:
        x.copy_(one(x, partner, mask, ndim))


def constant(out: Tensor, x: Tensor, partner: Tensor | None, w: float) -> None:
    """Writes the batch mixed with one weight everywhere."""
    if not out.numel():
        return
    if w == 1:
        out.copy_(x)
    elif w == 0 and partner is None:
        out[1:].copy_(x[:-1])
        out[:1].copy_(x[-1:])
    elif w == 0:
        out.copy_(x[partner])
    elif x.numel() <= _SMALL:
        _blend_into(out, x, x.roll(1, 0) if partner is None else x[partner], w)
    else:
        x, out = _in_storage_order(x, out)
        _share(x, lambda i, j, size: _blend_rows(out, x, partner, w, i, j, size))


def constants(out: Tensor, x: Tensor, partner: Tensor, w: Sequence[float]) -> None:
    """Writes the batch mixed with a weight for each sample."""
    if not out.numel():
        return
    x, out = _in_storage_order(x, out)
    _share(x, lambda i, j, size: _blend_rows(out, x, partner, w, i, j, size))


def boxes(out: Tensor, x: Tensor, partner: Tensor, geometry: Sequence[Sequence[int]], ndim: int) -> None:
    """Writes the batch with a box of each sample replaced by its partner's."""
    partners = partner.tolist()

    def part(i: int, j: int, _: int) -> None:
        out[i:j].copy_(x[i:j])
        for row in range(i, j):
            inside = _inside(geometry[row], ndim)
            out[row][inside].copy_(x[partners[row]][inside])

    _share(x, part)


def masked(out: Tensor, x: Tensor, batch: Tensor, partner: Tensor, m: Tensor) -> None:
    """Writes samples mixed by float32 masks.

    Args:
        out, x: (n, ...).
        batch: (B, ...), where the partners are.
        partner: (n,).
        m: (n or 1, ...), broadcasts against x.
    """
    ones, zeros = m == 1, m == 0
    binary = bool((ones | zeros).all())
    some_ones, some_zeros = bool(ones.any()), bool(zeros.any())
    wide = m if binary else m.double()

    def part(start: int, stop: int, size: int) -> None:
        for i, j in _pieces(start, stop, max(1, size * len(x) // x.numel())):
            of_masks = slice(i, j) if len(m) > 1 else slice(None)
            a, b, to = x[i:j], _partners(batch, partner, i, j), out[i:j]
            if binary:
                torch.where(ones[of_masks], a, b, out=to)
                continue
            _blend_into(to, a, b, wide[of_masks])
            if some_ones:
                torch.where(ones[of_masks], a, to, out=to)
            if some_zeros:
                torch.where(zeros[of_masks], b, to, out=to)

    _share(x, part)


def long_rows(x: Tensor) -> bool:
    """Whether samples are so large that a call for each costs little."""
    return x.numel() >= _LONG_ROW * len(x)


def _blend_rows(
    out: Tensor, x: Tensor, partner: Tensor | None, w: float | Sequence[float], start: int, stop: int, size: int
) -> None:
    """Blends samples start..stop-1 with one weight, or each with its own, in pieces of about `size` elements."""
    length = x.numel() // len(x)
    alone = 1 if partner is None and start == 0 else 0  # the only one whose partner is not the sample before it
    for i, j in _pieces(start, alone, 1) + _pieces(start + alone, stop, max(1, size // length)):
        a, b, to = x[i:j], _partners(x, partner, i, j), out[i:j]
        if isinstance(w, float):
            weights: Sequence[float] = [w]
        elif len(set(weights := w[i:j])) > 1:
            column = torch.tensor(weights, dtype=torch.float64, device=x.device).reshape([-1] + [1] * (x.ndim - 1))
            _blend_into(to, a, b, column)
            for row, weight in enumerate(weights):
                if weight in (0, 1):
                    to[row].copy_(a[row] if weight else b[row])
            continue
        if weights[0] in (0, 1):
            to.copy_(a if weights[0] else b)
        elif length <= size or x.ndim != 2:
            _blend_into(to, a, b, weights[0])
        else:  # a sample larger than a piece
            for k, end in _pieces(0, length, size):
                _blend_into(to[:, k:end], a[:, k:end], b[:, k:end], weights[0])


def _blend_into(out: Tensor, a: Tensor, b: Tensor, w: float | Tensor) -> None:
    """Writes blend(w, a, b), of weights that are neither 0 nor 1: where they are, the caller has to.

    A product of float32 numbers is exact in float64, so it does not matter whether w·(a-b) + b is formed in one step.
    """
    if a.device.type != "cpu":  # there a look at the values would wait for the device
        out.copy_(blend(torch.as_tensor(w, dtype=torch.float32, device=a.device), a, b))
        return
    if not a.numel():
        return
    if a.dtype == torch.uint8:
        wide = b.double()
        out.copy_(_add(wide, a.double().sub_(wide), w).round_().clamp_(0, 255))
        return
    if a.dtype == torch.float64:
        mixed = torch.add((a - b).mul_(w), b, out=out)
    elif isinstance(w, float) and _add_is_fused():
        x, y = (a, b) if a.dtype == torch.float32 else (a.float(), b.float())
        difference = x - y
        mixed = torch.add(y, difference, alpha=w, out=out if a.dtype == torch.float32 else difference)
        if mixed is not out:
            out.copy_(mixed)
    else:
        y = b.float()
        mixed = _add(y.double(), (a.float() - y).double(), w)
        mixed = out.copy_(mixed if a.dtype == torch.float32 else mixed.float())
    # Where a equals b the result is a, which the sum is not for infinities (it is NaN) and where a is -0. To look for
    # either, -0 being the least of all integers, takes a tenth of the time of comparing a with b and choosing.
    bits = _BITS[a.dtype]
    if (
        a.numel() <= _TINY
        or a.resolve_neg().view(bits).amin().item() == torch.iinfo(bits).min
        or math.isnan(mixed.sum().item())
    ):
        torch.where(a == b, a, out, out=out)


def _add(y: Tensor, difference: Tensor, w: float | Tensor) -> Tensor:
    """y + w·difference, in place."""
    return y.addcmul_(difference, w) if isinstance(w, Tensor) else y.add_(difference, alpha=w)


@functools.cache
def _add_is_fused() -> bool:
    """Whether y + w·difference of float32 is rounded once by this build of PyTorch on this processor: in its vectorised
    loop, in what is left over of it, and in the one for strides."""
    y = torch.full((257, 2), -1.0, dtype=torch.float32, device="cpu")
    difference = torch.full_like(y, 1.0 + 2.0**-12)
    of = [(y[:n].flatten(), difference[:n].flatten()) for n in (1, 2, 257)] + [(y[:, 0], difference[:, 0])]
    # The product is 1 - 2^-24, which float32 rounds to 1.
    return all(bool((torch.add(*pair, alpha=1.0 - 2.0**-12) == -(2.0**-24)).all()) for pair in of)


def _partners(x: Tensor, partner: Tensor | None, i: int, j: int) -> Tensor:
    """The partners of samples i..j-1; a view of the batch where that can be."""
    if partner is None:
        return x[i - 1 : j - 1] if i else x[-1:]
    if j == i + 1:
        k = int(partner[i])
        return x[k : k + 1]
    return x[partner[i:j]] if x.ndim != 2 else x.index_select(0, partner[i:j])


def _inside(geometry: Sequence[int], ndim: int) -> tuple[Any, ...]:
    """The index of a box (first z, y, x, stop z, y, x) in the last `ndim` dims."""
    return (..., *(slice(geometry[axis], geometry[axis + 3]) for axis in range(3 - ndim, 3)))


def _in_storage_order(*batches: Tensor) -> list[Tensor]:
    """Batches of one layout as (B, everything else) if they are dense, else as they are: for masks without a place."""
    first = batches[0]
    order = [0, *sorted(range(1, first.ndim), key=first.stride, reverse=True)]
    moved = [x.permute(order) for x in batches]
    return [x.reshape(len(x), -1) for x in moved] if all(x.is_contiguous() for x in moved) else list(batches)


def _pieces(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    return [(i, min(i + step, stop)) for i in range(start, stop, step)]


def _share(x: Tensor, part: Callable[[int, int, int], None]) -> None:
    """Calls part(first sample, past the last one, elements of a piece) for parts of the batch, in as many threads as
    PyTorch would use."""
    if not x.numel():
        return
    threads = torch.get_num_threads()
    size = _CACHED if threads == 1 or x.device.type != "cpu" else _SERIAL
    workers = min(threads, len(x)) if x.numel() >= _WORTH_THREADS and size == _SERIAL else 1
    if workers == 1:
        part(0, len(x), size)
        return
    from concurrent.futures import ThreadPoolExecutor

    inference = torch.is_inference_mode_enabled()  # every thread has modes of its own

    def work(k: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            part(len(x) * k // workers, len(x) * (k + 1) // workers, size)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
