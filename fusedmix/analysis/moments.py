"""How strongly does a method couple two pixels? The regularisation coefficients of the paper's Theorem 1,

    a(d) = E[(1 - M_i)(1 - M_{i+d})],                                                       (its eq. 9, Figure 4)

the mean over masks M and over all pixels i for which i+d lies inside the image too. Three answers: measured on masks
that the kernels draw, exact by enumeration of all centres, and the closed forms of the paper.

The enumeration is written as mathematics, apart from fusedmix/masks, so that each can be held against the other.
It takes λ as the kernels do, rounded to float32: of 1 - .19 = .81 the box has nine tenths of a side, or a pixel less.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedmix import backends, checks
from fusedmix.spectral import SpectralMix
from fusedmix.transforms import CutMix, GMix, HMix, MixTransform, MixUp, RandomMix, SamplePairing

_CHUNK = 1 << 20  # pixels whose masks are held at once, 8 MiB of float64


class Coefficients(NamedTuple):
    """Coefficients measured on n masks; all tensors float64 on the CPU.

    Attributes:
        offsets: (k, dims) int64, in pixels.
        mean: (k,), a(d) of each offset, in [0, 1] as M is.
        standard_error: (k,), of `mean`: the deviation between masks / √n.
        mask_mean: E[mean of M], in [0, 1].
        mask_mean_error: its standard error.
        masks: n.
    """

    offsets: Tensor
    mean: Tensor
    standard_error: Tensor
    mask_mean: float
    mask_mean_error: float
    masks: int


def coefficients(
    mix: MixTransform,
    size: Sequence[int],
    *,
    lam: float | None = None,
    offsets: Sequence[Sequence[int]] | None = None,
    masks: int = 10_000,
    seed: int = 0,
    device: torch.device | str | int | None = None,
) -> Coefficients:
    """a(d) of any method by Monte Carlo, from masks evaluated by the kernels of the module's backend.

    Args:
        mix: a module with per="sample", so that every mask is a draw of its own.
        size: 1 to 3 spatial sides in pixels.
        lam: λ of every mask, in [0, 1] (any finite number for methods without a mask); None: drawn as the module does.
        offsets: d, each with an integer for every side, |d| less than the side; None: all along the first axis.
        masks: how many, at least 2. A number is kept for each mask and offset.
        seed: makes the result a pure function of its arguments: an int in [0, 2^63).
        device: where masks are drawn; None: on the CPU.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or range; mix draws fewer masks than samples.
        BackendError: the module's backend cannot run on that device.
    """
    _check_module(mix)
    size = checks.sides("size", size)
    shifts = _check_offsets(offsets, size)
    masks = checks.integer("masks", masks, 2)
    seed = checks.integer("seed", seed, 0, 2**63 - 1)
    if mix.per != "sample":
        raise ValueError(f'mix must have per="sample", one draw a mask, but got per={mix.per!r}.')

    generator = torch.Generator().manual_seed(seed)
    chunk = max(1, _CHUNK // math.prod(size))
    values = []  # of each mask: a(d) for every d, then the mean
    for start in range(0, masks, chunk):
        plan = mix.sample(min(chunk, masks - start), size, lam=lam, generator=generator, device=device)
        where = plan.device.type
        # The masks are those of the module's backend. plan.mask() would take the device's default.
        mask = plan.mask_by(backends.operators(where, backends.where_it_serves(mix.backend, where)))
        rest = 1.0 - mask.double()
        columns = [_pair_means(rest, d) for d in shifts]
        values.append(torch.stack((*columns, 1.0 - rest.flatten(1).mean(1)), dim=1).cpu())
    drawn = torch.cat(values)
    mean, error = drawn.mean(0), drawn.std(0) / math.sqrt(masks)
    return Coefficients(
        torch.tensor(shifts, dtype=torch.int64), mean[:-1], error[:-1], float(mean[-1]), float(error[-1]), masks
    )


def exact(
    mix: MixTransform, size: Sequence[int], *, lam: float, offsets: Sequence[Sequence[int]] | None = None
) -> Tensor:
    """a(d) by enumeration of all centres, or of all places of boxes with placement="inside", or from the spectrum of a
    field, (k,) float64: what `coefficients` converges to.

    Args:
        mix: MixUp, SamplePairing, CutMix, HMix or GMix in either variant, or a RandomMix of these (of which Stochastic
            Mixup & CutMix is one), each with p=1 and without aspect, minmax and ratio_alpha; or SpectralMix with
            clamp=False. FMix's masks have no exact form.
        size: 1 to 3 spatial sides in pixels.
        lam: λ in [0, 1].
        offsets: as in `coefficients`.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or range; there is no exact form.
    """
    _check_module(mix)
    size = checks.sides("size", size)
    lam = _rounded(checks.number("lam", lam, 0.0, 1.0))
    return torch.tensor([_exact(mix, size, lam, d)[1] for d in _check_offsets(offsets, size)], dtype=torch.float64)


def exact_mask_mean(mix: MixTransform, size: Sequence[int], *, lam: float) -> float:
    """E[mean of M] by enumeration of all centres. Arguments and errors as those of `exact`."""
    _check_module(mix)
    size = checks.sides("size", size)
    lam = _rounded(checks.number("lam", lam, 0.0, 1.0))
    return 1.0 - _exact(mix, size, lam, (0,) * len(size))[0]


def closed_form(
    mix: MixTransform, size: Sequence[int], *, lam: float, offsets: Sequence[Sequence[int]] | None = None
) -> Tensor:
    """a(d) of images as the paper's closed forms have it, (k,) float64. They describe idealised masks:

        MixUp            (1-λ)², which is exact.
        CutMix           Π_axes (s - |d|)⁺/(n - |d|), s = ⌊n√(1-λ)⌋: eq. 10, for a box wholly
                         inside the image, which is exact with placement="inside". Released
                         boxes are clipped at the border (and of even sides).
        GMix, paper      (1-λ)·exp(-π|d|²/(4(1-λ)HW)): eq. 11, for a Gaussian on the
                         infinite plane.
        GMix, released   s/2·exp(-π|d|²/(2sHW)), s = 1-λ: the same integral for the released
                         mask, not in the paper; for λ >= ½ only, where the Gaussian is the
                         partner's.

    Args:
        mix: one of these.
        size: (H, W) in pixels.
        lam: λ in [0, 1).
        offsets: as in `coefficients`.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or range; there is no closed form.
    """
    _check_module(mix)
    size = checks.sides("size", size)
    if len(size) != 2:
        raise ValueError(f"size must be (H, W), the closed forms are those of images, but got {size}.")
    share = 1.0 - _rounded(checks.number("lam", lam, 0.0, 1.0))
    if share == 0.0:
        raise ValueError("lam must be less than 1 for a closed form, but got 1.")
    shifts = _check_offsets(offsets, size)
    d = torch.tensor(shifts, dtype=torch.float64)
    if isinstance(mix, MixUp):
        return torch.full((len(shifts),), share**2, dtype=torch.float64)
    if isinstance(mix, CutMix):
        _check_box(mix)
        n = torch.tensor(size, dtype=torch.float64)
        return (((n * math.sqrt(share)).floor() - d.abs()).clamp_min(0) / (n - d.abs())).prod(1)
    if isinstance(mix, GMix) and (mix.variant == "paper" or share <= 0.5):
        s = 2 * share if mix.variant == "paper" else share
        return s / 2 * (-math.pi * d.square().sum(1) / (2 * s * math.prod(size))).exp()
    raise ValueError(
        f"mix must be MixUp, CutMix or GMix (released: lam >= .5) for a closed form, but got {type(mix).__name__}."
    )


def _pair_means(rest: Tensor, offset: Sequence[int]) -> Tensor:
    """Of each (n, *size) the mean of rest_i·rest_{i+d} over the i with both inside."""
    first, second = rest, rest
    for axis, d in enumerate(offset, start=1):
        pairs = rest.shape[axis] - abs(d)
        first, second = first.narrow(axis, max(-d, 0), pairs), second.narrow(axis, max(d, 0), pairs)
    return (first * second).flatten(1).mean(1)


# ---- Enumeration -----------------------------------------------------------------------------------------------------


def _exact(mix: MixTransform, size: tuple[int, ...], lam: float, d: Sequence[int]) -> tuple[float, float]:
    """E[1-M] over pixels, and a(d)."""
    if mix.p != 1.0:
        raise ValueError(f"mix must have p=1 for an exact form, but got p={mix.p}.")
    if isinstance(mix, RandomMix):
        found = [_exact(method, size, lam, d) for method in mix.methods]
        mean, pair = (
            sum(share * value for share, value in zip(mix.weights, column, strict=True))
            for column in zip(*found, strict=True)
        )
        return mean, pair
    if isinstance(mix, MixUp | SamplePairing):
        return 1.0 - lam, (1.0 - lam) ** 2
    if isinstance(mix, CutMix | HMix):
        _check_box(mix)
        return _exact_boxes(mix, size, lam, d)
    if isinstance(mix, GMix):
        return _exact_gaussians(mix.variant, size, lam, d)
    if isinstance(mix, SpectralMix) and not mix.clamp:
        mix._field.check(size)
        variance = mix.contrast**2 * lam * (1.0 - lam)
        return 1.0 - lam, (1.0 - lam) ** 2 + variance * float(mix._field.covariance(size)[tuple(d)])
    raise ValueError(f"mix must have masks with an exact form (FMix's have none), but got {type(mix).__name__}.")


def _exact_boxes(mix: CutMix | HMix, size: tuple[int, ...], lam: float, d: Sequence[int]) -> tuple[float, float]:
    """With B the box's indicator and 1-v outside it, (1-M_i)(1-M_j) = (1-v)² + v(1-v)(B_i + B_j) + v²B_iB_j. Sums of B
    are products over the axes; v may depend on all of them."""
    ratio = mix.ratio if isinstance(mix, HMix) else 1.0
    root = 1.0 / len(size)
    fraction = (1.0 - lam) ** root * ratio**root
    if len(size) == 2:  # in the order and by the roots of the released code, since another order moves the box
        fraction = math.sqrt(1.0 - lam) * math.sqrt(ratio)
    elif len(size) == 3:
        fraction = _rounded((1.0 - lam) ** root) * _rounded(ratio**root)  # as the kernels define cube roots
    inside, first, second, both = (
        [],
        [],
        [],
        [],
    )  # by axis, over its centres or places: how many i, or i+d, or both, are in the box
    for n, shift in zip(size, d, strict=True):
        length = math.floor(n * fraction)
        if mix.placement == "inside":
            low = torch.arange(n - length + 1, dtype=torch.float64)
            high = low + length
        else:
            centre = torch.arange(n, dtype=torch.float64)
            low, high = (centre - length // 2).clamp_min(0), (centre + length // 2).clamp_max(n)
        least, most = max(-shift, 0), n - max(shift, 0)  # the i for which i+d is inside the image
        inside.append(high - low)
        first.append(_length(low, high, least, most))
        second.append(_length(low - shift, high - shift, least, most))
        both.append(_length(torch.maximum(low, low - shift), torch.minimum(high, high - shift), least, most))
    pairs = math.prod(n - abs(shift) for n, shift in zip(size, d, strict=True))
    box = _outer(inside) / math.prod(size)
    if isinstance(mix, CutMix):
        v = torch.ones_like(box)
    elif mix.variant == "released":
        v = torch.where(box < 1.0, lam / (1.0 - box).clamp_min(1e-300), 0.0).clamp_max(1.0)
    else:
        share = (1.0 - ratio) + lam * ratio
        v = torch.full_like(box, min(lam / share, 1.0) if share > 0 else 0.0)
    either = (_outer(first) + _outer(second)) / pairs
    pair = (1.0 - v) ** 2 + v * (1.0 - v) * either + v**2 * _outer(both) / pairs
    return float((1.0 - v + v * box).mean()), float(pair.mean())


def _exact_gaussians(variant: str, size: tuple[int, ...], lam: float, d: Sequence[int]) -> tuple[float, float]:
    """Of g = exp(-rate·|i-c|²) every mean is a product over the axes."""
    s = min(lam, 1.0 - lam) if variant == "released" else 2.0 * (1.0 - lam)
    if s == 0.0:
        return 1.0 - lam, (1.0 - lam) ** 2
    rate = math.pi / (s * math.prod(size)) ** (2.0 / len(size))
    every = one = other = two = 1.0  # E g over all pixels, and over the pairs E g_i, E g_{i+d}, E g_i·g_{i+d}
    for n, shift in zip(size, d, strict=True):
        pixel = torch.arange(n, dtype=torch.float64)
        g = (-rate * (pixel - pixel[:, None]).square()).exp()  # (centre, pixel)
        here, there = g[:, max(-shift, 0) : n - max(shift, 0)], g[:, max(shift, 0) : n - max(-shift, 0)]
        every *= float(g.mean())
        one, other, two = one * float(here.mean()), other * float(there.mean()), two * float((here * there).mean())
    if variant == "paper" or lam >= 0.5:
        return every, two  # M = 1-g
    return 1.0 - every, 1.0 - one - other + two  # M = g


def _length(low: Tensor, high: Tensor, least: int, most: int) -> Tensor:
    """How many integers lie both in [low, high) and in [least, most)."""
    return (high.clamp_max(most) - low.clamp_min(least)).clamp_min(0)


def _outer(vectors: list[Tensor]) -> Tensor:
    """The products of one entry from each vector."""
    return functools.reduce(lambda a, b: a[..., None] * b, vectors)


# ---- Arguments -------------------------------------------------------------------------------------------------------


def _rounded(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float32))


def _check_module(mix: Any) -> None:
    if not isinstance(mix, MixTransform):
        raise TypeError(f"mix must be a mixing module such as fusedmix.CutMix, but got {type(mix).__name__}.")


def _check_box(mix: CutMix | HMix) -> None:
    """Raises where the sides of boxes do not follow from λ alone."""
    for name in ("aspect", "minmax", "ratio_alpha"):
        if getattr(mix, name, None) is not None:
            raise ValueError(f"mix must have {name}=None here, but got {name}={getattr(mix, name)!r}.")


def _check_offsets(offsets: Any, size: tuple[int, ...]) -> list[tuple[int, ...]]:
    if offsets is None:
        return [(d, *(0,) * (len(size) - 1)) for d in range(size[0])]
    if not isinstance(offsets, Sequence) or not offsets:
        raise ValueError(f"offsets must be a sequence of at least one offset, but got {offsets!r}.")
    for i, offset in enumerate(offsets):
        if not isinstance(offset, Sequence) or len(offset) != len(size):
            raise ValueError(f"offsets[{i}] must have an integer for each side of {size}, but got {offset!r}.")
        for d, n in zip(offset, size, strict=True):
            checks.integer(f"offsets[{i}]", d, 1 - n, n - 1)
    return [tuple(offset) for offset in offsets]
