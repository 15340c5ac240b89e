"""The meaning of what takes a sample together from several others, in tensor operations: crops that are pasted, and
blends of more than two.

These operations have derivatives of any order in x, which the kernels have not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fusedmix.arguments import Patches, compute_dtype, rounded
from fusedmix.methods import Resize
from fusedmix.tracking import transformed


def paste(x: Tensor, patches: Patches, resize: int) -> Tensor:
    """x with a crop of x[partner[:, k]] in each box k, resized to it; what comes later covers what came before.

    With c the place of a pixel in a box of n along a side, and m pixels of the crop, the source is c·m // n (NEAREST),
    or lies between i and i + 1 by quotient and rest of num / den: num = max((2c + 1)·m - n, 0), den = 2n (LINEAR), or
    num = c·(m - 1), den = max(n - 1, 1) (LINEAR_CORNERS). All of this is done in integers. The values are blended in
    the compute dtype, along the last side first, and rounded once. What is nearest may be of any dtype.
    """
    partner, boxes, crops = (t.to(x.device) for t in patches)
    ndim = boxes.shape[2] // 2
    size = x.shape[x.ndim - ndim :]
    planes = x.reshape(x.shape[0], math.prod(x.shape[1 : x.ndim - ndim]), math.prod(size))
    if resize != Resize.NEAREST:
        planes = planes.to(compute_dtype(x))
    out = planes
    for k in range(partner.shape[1]):
        source, known = _lent(planes, partner[:, k])
        axes = [
            _along(side, boxes[:, k, axis::ndim], crops[:, k, axis::ndim], resize) for axis, side in enumerate(size)
        ]
        inside = known.unsqueeze(1)
        for of in axes:
            inside = (inside.unsqueeze(2) & of.inside.unsqueeze(1)).flatten(1)
        out = torch.where(inside.unsqueeze(1), _resized(source, axes, size), out)
    return _like(out.reshape(x.shape), x)


def blend(x: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """Σ_k weight[:, k]·x[partner[:, k]], term after term by fma in the compute dtype, and rounded once. A term of
    weight 0 is left out, whatever infinities and NaN it has."""
    total = torch.zeros((), dtype=compute_dtype(x), device=x.device)
    begun = torch.zeros((), dtype=torch.bool, device=x.device)
    for share, index in zip(weight.to(x.device).unbind(1), partner.to(x.device).unbind(1), strict=True):
        term, known = _lent(x, index)
        w = torch.where(known, share, 0.0).reshape(-1, *[1] * (x.ndim - 1))
        # A product is exact in float64, and a sum as good as rounded once. The first term is a product: -0 stays -0.
        product = w.double() * term.to(total.dtype).double()
        added = torch.where(begun, product + total.double(), product).to(total.dtype)
        total, begun = torch.where(w == 0, total, added), begun | (w != 0)
    return _like(total.expand(x.shape), x)


class _Along(NamedTuple):
    """Where the pixels along one side of each sample come from."""

    inside: Tensor  # (B, side) bool: they are in the box
    first: Tensor  # (B, side) int64
    second: Tensor | None  # what is blended with the first, if anything is
    share: Tensor  # (B, side) float32: of the second


def _along(side: int, box: Tensor, crop: Tensor, resize: int) -> _Along:
    """Of boxes and crops (B, 2) along that side."""
    start, pixels = box[:, :1].long(), (box[:, 1:] - box[:, :1]).long()
    m = (crop[:, 1:] - crop[:, :1]).long()
    c = torch.arange(side, device=box.device) - start
    inside = (c >= 0) & (c < pixels) & (m > 0)
    n, m = pixels.clamp_min(1), m.clamp_min(1)
    c = torch.minimum(c.clamp_min(0), n - 1)
    if resize == Resize.NEAREST:
        first = (crop[:, :1] + c * m // n).clamp(0, side - 1)
        return _Along(inside, first, None, torch.zeros_like(first, dtype=torch.float32))
    if resize == Resize.LINEAR:
        numerator, denominator = ((2 * c + 1) * m - n).clamp_min(0), 2 * n
    else:
        numerator, denominator = c * (m - 1), (n - 1).clamp_min(1)
    first = numerator // denominator
    second = torch.minimum(first + 1, m - 1)
    share = (numerator % denominator).float() / denominator.float()
    share = torch.where(first == second, 0.0, share)
    near, far = ((crop[:, :1] + i).clamp(0, side - 1) for i in (first, second))
    return _Along(inside, near, far, share)


def _resized(source: Tensor, axes: Sequence[_Along], size: Sequence[int]) -> Tensor:
    """(B, C, S) planes of that size, with the values that they have at the places of the axes."""
    batch_size, channels, _ = source.shape
    ndim = len(size)

    def beside(x: Tensor, axis: int) -> Tensor:
        return x.reshape(batch_size, *[1] * axis, size[axis], *[1] * (ndim - 1 - axis))

    def at(index: Tensor, axis: int) -> Tensor:
        """The values at `index` along the sides before `axis`, and at those places along the others."""
        if axis == ndim:
            return source.gather(2, index.flatten(1).unsqueeze(1).expand(-1, channels, -1))
        of = axes[axis]
        near = at(index * size[axis] + beside(of.first, axis), axis + 1)
        if of.second is None:
            return near
        far = at(index * size[axis] + beside(of.second, axis), axis + 1)
        share = beside(of.share, axis).expand(batch_size, *size).flatten(1).unsqueeze(1)
        return torch.where(share == 0, near, near + share * (far - near))

    return at(torch.zeros((batch_size, *size), dtype=torch.int64, device=source.device), 0)


def _lent(x: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """x[partner], and which partners there are: on the CPU all of them."""
    known = (partner >= 0) & (partner < x.shape[0])
    return x[torch.where(known, partner, 0)], known


def _like(values: Tensor, x: Tensor) -> Tensor:
    """The values as a new tensor of the dtype and in the layout of x."""
    values = rounded(values, x.dtype) if values.is_floating_point() else values
    return values if transformed() else torch.empty_like(x).copy_(values)
