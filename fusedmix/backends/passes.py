"""The blends of the reference, at the speed of PyTorch's own operations.

`blend` says what a blend is. The rest gives the same bits in less time, but where the sum in float64 is halfway between
two numbers of float32, which `blend` rounds once more: some one in 2^29. Masks that are one number, or one box a batch,
are numbers of Python here and slices of the batch: a few operations on all of it. Where a blend takes temporaries in
another dtype, batches go through in pieces that stay in the caches and are long enough for all threads of PyTorch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusedmix.arguments import compute_dtype, rounded
from fusedmix.masks.family import OneMask
from fusedmix.methods import Kind

_PIECE = 1 << 18  # elements whose temporaries stay in the caches
_ON_DEVICE = 1 << 22  # elements of a piece on a device, whose float64 temporaries then take some 100 MB
_OF_THREAD = 1 << 15  # elements that PyTorch hands to a thread at least
_LONG_ROW = 1 << 14  # elements of a sample: from here on a copy of its box is worth a call
_SMALL = 1 << 15  # elements that are copied in less time than two more operations take
_TINY = 1 << 12  # elements of a batch: to compare so many with another takes less time than to look at them
# For each dtype the integers that have its bits, and which of them is its -0.
_BITS = {
    dtype: (bits, torch.iinfo(bits).min)
    for dtype, bits in (
        (torch.float64, torch.int64),
        (torch.float32, torch.int32),
        (torch.float16, torch.int16),
        (torch.bfloat16, torch.int16),
    )
}


def blend(w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """w·a + (1-w)·b with float32 weights in [0, 1], rounded once.

    Exactly a where w is 1 or both are equal and exactly b where w is 0, whatever infinities and NaN stand in the
    other one: a box is a copy. Integers round to nearest, ties to even, and saturate.
    """
    compute = compute_dtype(a)
    x, y = a.to(compute), b.to(compute)
    if a.dtype.is_floating_point:
        mixed = (w.double() * (x - y).double() + y.double()).to(compute).to(a.dtype)
    else:
        even, odd = _even_and_odd(b.double())
        mixed = rounded((w.double() * (x - y).double() + odd).round() + even, a.dtype)
    mixed = torch.where((w == 1) | (a == b), a, mixed)
    return torch.where(w == 0, b, mixed)


def one(x: Tensor, partner: Tensor | None, mask: OneMask, ndim: int) -> Tensor:
    """The batch mixed by one mask, a number or a box in the last `ndim` dims. Without partners they are those of
    pairing="roll"."""
    out = torch.empty_like(x)
    constant(out, x, partner, mask.value[0])
    if mask.kind == Kind.BOX:
        inside = _inside(mask.geometry, ndim)
        constant(out[inside], x[inside], partner, mask.value[1])
    return out


def one_(x: Tensor, partner: Tensor | None, mask: OneMask, ndim: int) -> None:
    """The same, in place."""
    outer, inner = mask.value
    if mask.kind != Kind.BOX:
        constant(x, x, partner, outer)
    elif outer == 1:
        inside = x[_inside(mask.geometry, ndim)]
        constant(inside, inside, partner, inner)
    else:  # The box has to be read before what surrounds it is written.
        x.copy_(one(x, partner, mask, ndim))


def constant(out: Tensor, x: Tensor, partner: Tensor | None, w: float) -> None:
    """Writes the batch mixed with one weight everywhere; `out` may be `x` itself."""
    if w == 1:
        out.copy_(x)
    elif out is x or partner is not None or (w and x.numel() <= _SMALL):
        _blend_all(out, x, of_partners(x, partner), w)
    else:
        plain = w > 0 and x.is_cpu and x.dtype in _BITS and _is_plain(x)
        _blend_all(out[1:], x[1:], x[:-1], w, plain)
        _blend_all(out[:1], x[:1], x[-1:], w, plain)


def constants(out: Tensor, x: Tensor, partner: Tensor, w: Sequence[float]) -> None:
    """Writes the batch mixed with a weight for each sample."""
    for i, j in _pieces(x):
        a, b, to, weights = x[i:j], _partners(x, partner, i, j), out[i:j], w[i:j]
        if len(set(weights)) == 1:
            _blend_all(to, a, b, weights[0])
            continue
        column = torch.tensor(weights, dtype=torch.float64, device=x.device).reshape([-1] + [1] * (x.ndim - 1))
        _blend_into(to, a, b, column)
        for row, weight in enumerate(weights):
            if weight in (0, 1):
                to[row].copy_(a[row] if weight else b[row])


def boxes(out: Tensor, x: Tensor, partner: Tensor, geometry: Sequence[Sequence[int]], ndim: int) -> None:
    """Writes the batch with a box of each sample replaced by its partner's."""
    out.copy_(x)
    for row, (box, k) in enumerate(zip(geometry, partner.tolist(), strict=True)):
        inside = _inside(box, ndim)
        out[row][inside].copy_(x[k][inside])


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
    for i, j in _pieces(x):
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


def long_rows(x: Tensor) -> bool:
    """Whether samples are so large that a call for each costs little."""
    return x.numel() >= _LONG_ROW * len(x)


def of_partners(x: Tensor, partner: Tensor | None) -> Tensor:
    """A new batch: the partners of all samples, without `partner` those of pairing="roll"."""
    return x.roll(1, 0) if partner is None else x.index_select(0, partner)


def _blend_all(out: Tensor, a: Tensor, b: Tensor, w: float, plain: bool = False) -> None:
    """Writes blend(w, a, b), of any weight. `out` may be `a`. `plain`: that a is, is known (`_is_plain`)."""
    if w in (0, 1):
        out.copy_(a if w else b)
    elif a.is_cpu and (a.dtype == torch.float64 or (a.dtype == torch.float32 and _add_is_fused())):
        _blend_into(out, a, b, w, plain)
    else:
        for i, j in _pieces(a):
            _blend_into(out[i:j], a[i:j], b[i:j], w, plain)


def _blend_into(out: Tensor, a: Tensor, b: Tensor, w: float | Tensor, plain: bool = False) -> None:
    """Writes blend(w, a, b), of weights that are neither 0 nor 1: where they are, the caller has to. `out` may be `a`.

    A product of float32 numbers is exact in float64, so it does not matter whether w·(a-b) + b is formed in one step.
    """
    dtype = a.dtype
    if not a.is_cpu:  # A look at the values would wait for the device.
        out.copy_(blend(torch.as_tensor(w, dtype=torch.float32, device=a.device), a, b))
    elif not dtype.is_floating_point:
        bounds, wide = torch.iinfo(dtype), b.double()
        even, odd = _even_and_odd(wide)
        mixed = _add(odd, a.double().sub_(wide), w).round_()
        out.copy_(mixed.add_(even).clamp_(bounds.min, bounds.max))
    else:
        compute = compute_dtype(a)
        x, y = (a, b) if dtype == compute else (a.float(), b.float())
        equal = None if plain or _is_plain(a) else a == b
        difference = torch.sub(x, y, out=out) if equal is None and dtype == compute else x - y
        if compute == torch.float64:
            mixed = difference.mul_(w).add_(y)
        elif isinstance(w, float) and _add_is_fused():
            mixed = torch.add(y, difference, alpha=w, out=difference)
        else:
            mixed = _add(y.double(), difference.double(), w).float()
        if equal is not None:
            torch.where(equal, a, mixed.to(dtype), out=out)
        elif mixed is not out:
            out.copy_(mixed)


def _even_and_odd(y: Tensor) -> tuple[Tensor, Tensor]:
    """Integers in float64 as an even number and 0 or 1. w·(a-b) is exact there, but its sum with an integer of
    16 bits may not be; that with the odd part is, and decides ties as the sum does."""
    odd = y.remainder(2)
    return y - odd, odd


def _is_plain(a: Tensor) -> bool:
    """Whether w·(a-b) + b is a wherever b equals a, as a blend is: not for infinities, where it is NaN, nor where a is
    -0. To look for either, -0 being the least of all integers, takes a tenth of the time of comparing a with b."""
    if a.numel() <= _TINY:
        return False
    bits, least = _BITS[a.dtype]
    if a.resolve_neg().view(bits).amin().item() == least:
        return False
    total = a.float().sum() if a.dtype == torch.float16 else a.sum()  # Float16 would not hold it.
    return math.isfinite(total.item())


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


def _partners(x: Tensor, partner: Tensor, i: int, j: int) -> Tensor:
    """The partners of samples i..j-1; a view of the batch where that can be."""
    if j == i + 1:
        k = int(partner[i])
        return x[k : k + 1]
    return x.index_select(0, partner[i:j])


def _inside(geometry: Sequence[int], ndim: int) -> tuple[Any, ...]:
    """The index of a box (first z, y, x, stop z, y, x) in the last `ndim` dims."""
    return (..., *(slice(geometry[axis], geometry[axis + 3]) for axis in range(3 - ndim, 3)))


def _pieces(x: Tensor) -> list[tuple[int, int]]:
    """The batch in pieces (first sample, past the last one), so long that all threads, or a device, are busy."""
    if not x.numel():
        return []
    elements = max(_PIECE, _OF_THREAD * torch.get_num_threads()) if x.is_cpu else _ON_DEVICE
    step = max(1, elements * len(x) // x.numel())
    return [(i, min(i + step, len(x))) for i in range(0, len(x), step)]
