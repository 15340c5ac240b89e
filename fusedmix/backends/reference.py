"""The meaning of every operator, in PyTorch: the oracle that the kernels are tested against. Slow and readable.

Blends are rounded once: the difference of the partners in the compute dtype (float32; float64 for float64 images),
then w·(a-b) + b as if exact, then the rounding to the image's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fusedmix import draws
from fusedmix.checks import class_range
from fusedmix.draws import PlanTensors, Request, Source
from fusedmix.formulas import Kind, padded
from fusedmix.fourier import draw_of, masks, unpack
from fusedmix.methods import Column, Method, Per

_CHUNK = 1 << 22  # elements blended at a time: bounds the float64 temporaries to some 100 MB


def mask(
    kind: Tensor,
    geometry: Tensor,
    value: Tensor,
    size: tuple[int, ...],
    per: int = Per.SAMPLE,
    pixels: Tensor | None = None,
) -> Tensor:
    """(n, *size) float32 masks from their numbers (fusedmix/formulas.py has the table), and from their pixels."""
    sides = padded(size)
    device = kind.device

    def along(axis: int, x: Tensor) -> Tensor:
        return x.reshape([-1] + [x.shape[1] if a == axis else 1 for a in range(3)])

    inside = torch.ones((), dtype=torch.bool, device=device)
    gaussian = torch.ones((), dtype=torch.float64, device=device)
    rate = value[:, :1].double()
    for axis, side in enumerate(sides):
        pixel = torch.arange(side, device=device)
        first, stop = geometry[:, axis, None], geometry[:, axis + 3, None]
        inside = inside & along(axis, (pixel >= first) & (pixel < stop))
        gaussian = gaussian * along(axis, (-rate * (pixel - first).double().square()).exp())

    kind = kind.reshape(-1, 1, 1, 1)
    outer, inner = value[:, 0].reshape(-1, 1, 1, 1), value[:, 1].reshape(-1, 1, 1, 1)
    m = torch.where(inside & (kind == Kind.BOX), inner, outer)
    m = torch.where(kind == Kind.GAUSSIAN, gaussian.float(), m)
    m = torch.where(kind == Kind.GAUSSIAN_COMPLEMENT, (1.0 - gaussian).float(), m)
    m = m.reshape([kind.shape[0], *size])
    if pixels is not None and kind.shape[0]:
        row = draw_of(torch.arange(kind.shape[0], device=device), per, kind.shape[0])
        m = torch.where(
            kind.reshape([-1] + [1] * len(size)) >= Kind.FOURIER_RELEASED, unpack(pixels, tuple(size))[row], m
        )
    return m


def fourier(
    spec: Tensor,
    kind: Tensor,
    geometry: Tensor,
    value: Tensor,
    seed: Tensor,
    size: tuple[int, ...],
    per: int,
    draws: int,
    soft: bool,
) -> Tensor:
    """The pixels of the Fourier masks of a plan (fusedmix/fourier.py)."""
    return masks(spec, kind, geometry, value, seed, tuple(size), per, draws, soft)


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


def mix(
    x: Tensor,
    partner: Tensor,
    kind: Tensor,
    geometry: Tensor,
    value: Tensor,
    ndim: int,
    pairing: int,
    per: int,
    pixels: Tensor | None = None,
) -> Tensor:
    """M ⊙ x + (1-M) ⊙ x[partner] (Park 2022, eq. 1) in the layout of x; its last `ndim` dims are spatial."""
    partner = partner.to(x.device)
    out = torch.empty_like(x)
    for i in _chunks(x):
        m = _masks_of(i, x, kind, geometry, value, ndim, per, pixels)
        out[i] = blend(m, x[i], x[partner[i]])
    return out


def mix_(
    x: Tensor,
    partner: Tensor,
    kind: Tensor,
    geometry: Tensor,
    value: Tensor,
    ndim: int,
    pairing: int,
    per: int,
    pixels: Tensor | None = None,
) -> None:
    """The same, in place."""
    x.copy_(mix(x, partner, kind, geometry, value, ndim, pairing, per, pixels))


def mix_adjoint(
    grad: Tensor,
    partner: Tensor,
    kind: Tensor,
    geometry: Tensor,
    value: Tensor,
    ndim: int,
    pairing: int,
    per: int,
    pixels: Tensor | None = None,
) -> Tensor:
    """The gradient of mix: M_i·g_i + (1-M_j)·g_j with partner(j) = i, rounded once."""
    partner = partner.to(grad.device)
    inverse = torch.empty_like(partner).scatter_(0, partner, torch.arange(partner.shape[0], device=grad.device))
    out = torch.empty_like(grad)
    for i in _chunks(grad):
        j = inverse[i]
        own = _masks_of(i, grad, kind, geometry, value, ndim, per, pixels).double()
        lent = 1.0 - _masks_of(j, grad, kind, geometry, value, ndim, per, pixels).double()
        # An overflowed gradient must not turn into NaN where its weight is 0.
        kept = torch.where(own == 0, 0.0, own * grad[i].double())
        given = torch.where(lent == 0, 0.0, lent * grad[j].double())
        out[i] = (kept + given).to(grad.dtype)
    return out


def mix_labels(labels: Tensor, partner: Tensor, weight: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """(B, K) soft labels w·y + (1-w)·y[partner]: both products rounded, then their sum, as torchvision does.

    In one-hot labels a class outside 0..K-1 is an error on the CPU and a row without a one elsewhere.
    """
    partner, weight = partner.to(labels.device), weight.to(labels.device)
    if labels.ndim == 1:
        class_range(labels, num_classes)
        index = torch.arange(num_classes, device=labels.device)
        y = (labels.long().unsqueeze(1) == index).float()
    else:
        y = labels if labels.is_floating_point() else labels.float()
    compute = torch.float64 if y.dtype == torch.float64 else torch.float32
    if label_smoothing:
        y = (y.to(compute) * (1.0 - label_smoothing) + label_smoothing / num_classes).to(y.dtype)
    own = y.to(compute) * weight.to(compute).unsqueeze(1)
    lent = y[partner].to(compute) * (1.0 - weight).to(compute).unsqueeze(1)
    return lent.to(y.dtype) + own.to(y.dtype)


def sample(request: Request, source: Source, device: torch.device) -> PlanTensors:
    """Everything random about a batch (fusedmix/draws.py)."""
    return draws.plan(request, source, device)


def mix_batch(
    x: Tensor, y: Tensor, request: Request, source: Source, num_classes: int, label_smoothing: float
) -> tuple[Tensor, ...]:
    """A whole step: the mixed images, their dense targets, and the plan."""
    targets, *plan = _step(x, y, request, source, num_classes, label_smoothing)
    return mix(x, *_masks(request, plan)), targets, *plan


def mix_batch_(
    x: Tensor, y: Tensor, request: Request, source: Source, num_classes: int, label_smoothing: float
) -> tuple[Tensor, ...]:
    """The same, in place: the dense targets and the plan."""
    targets, *plan = _step(x, y, request, source, num_classes, label_smoothing)
    mix_(x, *_masks(request, plan))
    return targets, *plan


def _step(
    x: Tensor, y: Tensor, request: Request, source: Source, num_classes: int, label_smoothing: float
) -> tuple[Tensor, ...]:
    """Targets and plan. The targets first: a label out of range must leave the images as they were."""
    plan = sample(request, source, x.device)
    return mix_labels(y, plan[0], plan[2], num_classes, label_smoothing), *plan


def _masks(request: Request, plan: Sequence[Tensor]) -> tuple[Any, ...]:
    """What `mix` takes after x."""
    partner, _, _, kind, geometry, value = plan
    per = Per.SAMPLE if request.lam is not None and request.lam.ndim else request.per
    constant = all(Method(int(m)).is_constant for m in request.spec[:, Column.METHOD].tolist())
    ndim = 0 if constant else len(request.size)
    return partner, kind, geometry, value, ndim, int(request.pairing), int(per)


def _chunks(x: Tensor) -> Iterator[Tensor]:
    """The samples of a batch in pieces of about _CHUNK elements, at least one sample each."""
    step = max(1, _CHUNK * x.shape[0] // max(1, x.numel()))
    return iter(torch.arange(x.shape[0], device=x.device).split(step)) if x.shape[0] else iter(())


def _masks_of(
    i: Tensor, x: Tensor, kind: Tensor, geometry: Tensor, value: Tensor, ndim: int, per: int, pixels: Tensor | None
) -> Tensor:
    """Masks (n, 1, ..., 1, *S) of samples i that broadcast against x[i]; with ndim 0 (constant masks) S is (). Of a
    batch that shares one n is 1."""
    row = i[:1] * 0 if per == Per.BATCH else i
    kind, geometry, value = (t.to(x.device)[row] for t in (kind, geometry, value))
    if pixels is not None:
        pixels = pixels.to(x.device)[draw_of(row, per, x.shape[0])]
    size = tuple(x.shape[x.ndim - ndim :])
    m = mask(kind, geometry, value, size, Per.SAMPLE, pixels) if ndim else value[:, 0]
    return m.reshape([row.shape[0]] + [1] * (x.ndim - 1 - ndim) + list(size))
