"""From (method, λ, centre) to the few numbers that generate a mask, and to the label weight.

These are the formulas of the methods (Park, Yun, Chun, "A Unified Analysis of Mixed Sample Data Augmentation",
NeurIPS 2022, and the papers named below), vectorised over draws. Sides and boxes are computed in float64: in float32
int(64·√½·√½) is 31, in float64 it is 32, and the box would be off by a pixel on each side.

A mask is one of six kinds, each with at most eight numbers:

    kind                  geometry (6 int32: z y x, z y x)   value (2 float32)    M
    CONSTANT              -                                  λ, -                 λ
    BOX                   first, past-the-end                outside, inside      inside the box or outside
    GAUSSIAN              centre, -                          rate, -              exp(-rate·d²)
    GAUSSIAN_COMPLEMENT   centre, -                          rate, -              1 - exp(-rate·d²)
    FOURIER_RELEASED      number, soft, -                    decay, -             by the rank of the pixel's grey value
    FOURIER               number, soft, -                    decay, cutoff        by the rank of the pixel's grey value

d² is the squared distance to the centre in pixels. Of a Fourier mask (FMix) these numbers say which grey image it is
made of and how many pixels are 1; its pixels themselves are made of them, and stored, by fusedmix/fourier.py. Signals
with fewer than three spatial dims have leading sides of 1.
"""

from __future__ import annotations

import ctypes
import math
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from fusedmix.methods import Column, Method

_FLOAT32_MAX = torch.finfo(torch.float32).max
_BOXES = {Method.CUTMIX, Method.HMIX_RELEASED, Method.HMIX_PAPER}
_GAUSSIANS = {Method.GMIX_RELEASED, Method.GMIX_PAPER}
_FOURIERS = {Method.FMIX_RELEASED, Method.FMIX_PAPER}


class Kind(IntEnum):
    """Which formula evaluates a mask. The numbers are part of every backend's contract."""

    CONSTANT = 0
    BOX = 1
    GAUSSIAN = 2
    GAUSSIAN_COMPLEMENT = 3
    FOURIER_RELEASED = 4
    FOURIER = 5


class Masks(NamedTuple):
    """n generated masks and what they do to the labels."""

    kind: Tensor  # (n,) int32
    geometry: Tensor  # (n, 6) int32
    value: Tensor  # (n, 2) float32
    weight: Tensor  # (n,) float64


def quotient(x: Tensor, divisor: float) -> Tensor:
    """x / divisor, rounded once, as the kernels divide. By a number torch divides on a GPU as a product with its
    reciprocal, whose last bit is wrong for one quotient in some hundred: so by a tensor, on the device of x."""
    return x / x.new_full((), divisor)


def padded(size: tuple[int, ...]) -> tuple[int, ...]:
    """The sides as (depth, height, width)."""
    return (1,) * (3 - len(size)) + tuple(size)


def generate(
    methods: frozenset[int],
    method: Tensor,
    rows: Tensor,
    lam: Tensor,
    centre: Tensor,
    coin: Tensor,
    size: tuple[int, ...],
) -> Masks:
    """The masks of n draws.

    Args:
        methods: the methods that occur, so that no formula is evaluated for nothing.
        method: (n,) float64 with values of Method.
        rows: (n, len(Column)) float64, the row of the spec of each.
        lam: (n,) float32.
        centre: (n, 3) int64, (z, y, x) inside the signal.
        coin: (n,) bool, whether FMix rounds up.
        size: 1 to 3 spatial sides.
    """
    lam64 = lam.double()
    masks = Masks(
        kind=torch.full_like(lam, Kind.CONSTANT, dtype=torch.int32),
        geometry=lam.new_zeros((lam.shape[0], 6), dtype=torch.int32),
        value=torch.stack((lam, torch.zeros_like(lam)), dim=1),
        weight=torch.where(method == Method.SAMPLE_PAIRING, 1.0, lam64),
    )
    if methods & _BOXES:
        is_box = (method >= Method.CUTMIX) & (method <= Method.HMIX_PAPER)
        masks = _where(is_box, _boxes(method, rows[:, Column.RATIO], lam64, centre, size), masks)
    if methods & _GAUSSIANS:
        is_gaussian = (method == Method.GMIX_RELEASED) | (method == Method.GMIX_PAPER)
        masks = _where(is_gaussian, _gaussians(method, lam64, centre, size), masks)
    if methods & _FOURIERS:
        masks = _where(method >= Method.FMIX_RELEASED, _fouriers(method, rows, lam64, coin, size), masks)
    return masks


class OneMask(NamedTuple):
    """One generated mask, as numbers of Python."""

    kind: int
    geometry: list[int]
    value: tuple[float, float]
    weight: float

    @property
    def is_cut(self) -> bool:
        """Whether it is a box that is a copy: all of the sample outside, all of the partner inside."""
        return self.kind == Kind.BOX and self.value == (1.0, 0.0)


def constant(lam: float, weight: float) -> OneMask:
    """λ everywhere."""
    return OneMask(Kind.CONSTANT, [0] * 6, (lam, 0.0), weight)


def one(method: int, ratio: float, lam: float, centre: list[int], size: tuple[int, ...]) -> OneMask | None:
    """What `generate` makes of one draw, bit for bit, where that is a number or a box; None where it is not, and of
    boxes in three dimensions, whose cube roots are PyTorch's."""
    if method in (Method.MIXUP, Method.SAMPLE_PAIRING):
        return constant(lam, 1.0 if method == Method.SAMPLE_PAIRING else lam)
    if method not in _BOXES or len(size) == 3:
        return None
    root = math.sqrt if len(size) == 2 else float
    fraction = root(1.0 - lam) * root(ratio)
    first, stop, box = [0, 0, 0], [1, 1, 1], 1
    for axis, side in enumerate(size, 3 - len(size)):
        half = math.floor(side * fraction) // 2
        first[axis], stop[axis] = max(centre[axis] - half, 0), min(centre[axis] + half, side)
        box *= stop[axis] - first[axis]
    rest = 1.0 - box / math.prod(size)
    share = rest if method == Method.HMIX_RELEASED else (1.0 - ratio) + lam * ratio
    outside = 1.0 if method == Method.CUTMIX else float32(min(lam / share, 1.0)) if share > 0 else 0.0
    weight = lam if method == Method.HMIX_RELEASED else outside * rest
    return OneMask(Kind.BOX, [*first, *stop], (outside, 0.0), weight)


def float32(x: float) -> float:
    """`x` rounded to float32."""
    return ctypes.c_float(x).value


def _boxes(method: Tensor, ratio: Tensor, lam: Tensor, centre: Tensor, size: tuple[int, ...]) -> Masks:
    """CutMix (Yun 2019) and HMix (Park 2022): a box of the partner, clipped to the image.

    A side is (1-λ)^(1/d)·ratio^(1/d) of the image's, so that an unclipped box holds (1-λ)·ratio of a d-dimensional
    image; the product of the roots is formed first, as in the authors' code, because another order moves the box.
    """
    sides = centre.new_tensor(padded(size))
    fraction = _root(1.0 - lam, len(size)) * _root(ratio, len(size))
    half = (sides * fraction.unsqueeze(1)).floor().long() // 2
    first = (centre - half).clamp_min(0)
    stop = torch.minimum(centre + half, sides)
    absent = 3 - len(size)
    first[:, :absent] = 0
    stop[:, :absent] = 1

    box = quotient((stop - first).prod(1).double(), math.prod(size))
    rest = 1.0 - box
    # What stands outside the box is λ/(1-β), β the box's actual share (released, mean λ for every mask), or
    # λ/(1-(1-λ)·ratio) (paper, mean λ but for clipping and rounding). Where nothing is outside, any finite value does.
    share = torch.where(method == Method.HMIX_RELEASED, rest, (1.0 - ratio) + lam * ratio)
    outside = torch.where(share > 0, lam / share, 0.0).clamp_max(1.0)
    outside = torch.where(method == Method.CUTMIX, 1.0, outside).float()
    weight = torch.where(method == Method.HMIX_RELEASED, lam, outside.double() * rest)
    return Masks(
        kind=torch.full_like(lam, Kind.BOX, dtype=torch.int32),
        geometry=torch.cat((first, stop), dim=1).int(),
        value=torch.stack((outside, torch.zeros_like(outside)), dim=1),
        weight=weight,
    )


def _gaussians(method: Tensor, lam: Tensor, centre: Tensor, size: tuple[int, ...]) -> Masks:
    """GMix (Park 2022): exp(-π d²/(s·H·W)) or its complement, with the realised mean as label weight.

    In d dimensions the squared width is (s·volume)^(2/d), which is s·H·W for images, so that the Gaussian always
    integrates to s of the volume. Where s = 0 the mask is the limit, λ (0 or 1) everywhere.
    """
    released = method == Method.GMIX_RELEASED
    s = torch.where(released, torch.minimum(lam, 1.0 - lam), 2.0 * (1.0 - lam))
    volume = s * math.prod(size)
    squared_width = volume if len(size) == 2 else volume ** (2.0 / len(size))
    rate = (math.pi / squared_width).clamp_max(_FLOAT32_MAX).float()

    mean = torch.ones_like(lam)
    for axis, side in enumerate(padded(size)):
        distance = torch.arange(side, device=lam.device) - centre[:, axis : axis + 1]
        mean = quotient(mean * (-rate.double().unsqueeze(1) * distance.square()).exp().sum(1), side)

    complement = ~released | (lam >= 0.5)
    constant = s <= 0
    kind = torch.where(complement, Kind.GAUSSIAN_COMPLEMENT, Kind.GAUSSIAN)
    weight = torch.where(complement, 1.0 - mean, mean)
    return Masks(
        kind=torch.where(constant, Kind.CONSTANT, kind).int(),
        geometry=torch.cat((centre, torch.zeros_like(centre)), dim=1).int(),
        value=torch.stack((torch.where(constant, lam.float(), rate), torch.zeros_like(rate)), dim=1),
        weight=torch.where(constant, lam, weight),
    )


def _root(x: Tensor, d: int) -> Tensor:
    """x^(1/d) of float64, the same on every backend: a box is the floor of a multiple of it.

    Square roots are correctly rounded, as math.sqrt's and a GPU's are. On x86 torch.sqrt takes them from a vector
    library that gets 14 of 1000 wrong in the last bit (torch 2.10 and 2.15), hence the loop. Cube roots differ between
    libraries in the last bit, so they are rounded to float32.
    """
    if d == 2:
        return (
            x.new_tensor([math.sqrt(v) if v >= 0 else math.nan for v in x.tolist()])
            if x.device.type == "cpu"
            else x.sqrt()
        )
    return x if d == 1 else x.pow(1.0 / 3.0).float().double()


def _fouriers(method: Tensor, rows: Tensor, lam: Tensor, coin: Tensor, size: tuple[int, ...]) -> Masks:
    """FMix (Harris 2020): how many pixels are 1, over how many ranks on either side the mask falls to 0, of which grey
    image. The label weight is the realised mean, which the soft edge leaves as it is, or 1 (reformulate)."""
    pixels = float(math.prod(size))
    number = torch.where(coin, (lam * pixels).ceil(), (lam * pixels).floor())
    share = torch.minimum(rows[:, Column.SOFT], torch.minimum(lam, 1.0 - lam))
    soft = torch.minimum((pixels * share).floor(), torch.minimum(number, pixels - number))
    released = method == Method.FMIX_RELEASED
    zero = torch.zeros_like(number)
    return Masks(
        kind=torch.where(released, int(Kind.FOURIER_RELEASED), int(Kind.FOURIER)).int(),
        geometry=torch.stack((number, soft, zero, zero, zero, zero), dim=1).int(),
        value=torch.stack((rows[:, Column.DECAY], rows[:, Column.CUTOFF]), dim=1).float(),
        weight=torch.where(rows[:, Column.REFORMULATE] != 0, 1.0, quotient(number, pixels)),
    )


def _where(condition: Tensor, a: Masks, b: Masks) -> Masks:
    column = condition.unsqueeze(1)
    return Masks(
        torch.where(condition, a.kind, b.kind),
        torch.where(column, a.geometry, b.geometry),
        torch.where(column, a.value, b.value),
        torch.where(condition, a.weight, b.weight),
    )
