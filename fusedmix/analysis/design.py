"""Which masks have the coefficients that one wants? Beside its Theorem 2 the paper leaves masks of unbounded values to
future work. A stationary Gaussian field around λ is such a mask,

    M = λ + σG,  a(d) = E[(1-M_i)(1-M_{i+d})] = (1-λ)² + σ²ρ(d),

ρ the covariance of G, which is the Fourier transform of its spectrum. So it can have every a(d) of which a(d) - (1-λ)²
is a covariance: has no negative power at any frequency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedmix import checks
from fusedmix.subclasses import plain

# What an FFT leaves in place of 0, as a share of the largest power: such waves are not worth their noise.
_ROUNDING = 1e-12


class Design(NamedTuple):
    """Masks for fusedmix.SpectralMix(spectrum=design.spectrum, contrast=design.contrast, clamp=False).

    Attributes:
        spectrum: (*period) float64 >= 0, with sum 1: the power at each frequency, in the order of torch.fft.fftn.
        contrast: σ/√(λ(1-λ)), > 0.
        coefficients: (*period) float64, a(d) of these masks at the offset d, negative ones from the end.
        residual: the largest |a(d) - wanted|.
    """

    spectrum: Tensor
    contrast: float
    coefficients: Tensor
    residual: float


def spectrum_for(
    coefficients: Tensor | Callable[[Tensor], Tensor],
    size: Sequence[int] | None = None,
    *,
    lam: float,
    tolerance: float = 1e-3,
) -> Design:
    """The spectrum of masks with the coefficients a(d) = E[(1-M_i)(1-M_{i+d})] that are wanted.

    No masks have coefficients of which a(d) - (1-λ)² is no covariance. Of those that masks do have, the nearest in the
    mean square over d are taken: what is negative of the spectrum becomes 0.

    Args:
        coefficients: a tensor (*period) of 1 to 3 dims, a(d) at the offset d, negative ones from the end, as
            torch.fft.fftfreq orders them: even, a(d) = a(-d). The masks repeat with that period, which is at least the
            size of the images. Or a callable, from distances in pixels, float64, to a(d) at these: of a period of
            twice the size, so that opposite borders of an image are not neighbours.
        size: 1 to 3 spatial sides in pixels, with a callable only.
        lam: λ in (0, 1), at which masks have them.
        tolerance: how far a(d) may be from what is wanted, >= 0; infinity: as far as it has to be.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or range; the coefficients are not even, those of
            constant masks (MixUp), or farther from any that masks have than tolerance.
    """
    lam = checks.number("lam", lam, 0.0, 1.0, open_low=True)
    if lam == 1.0:
        raise ValueError("lam must be in (0, 1), but got 1.")
    if tolerance != math.inf:
        tolerance = checks.number("tolerance", tolerance, 0.0)
    wanted = _wanted(coefficients, size)
    covariance = wanted - (1.0 - lam) ** 2
    axes = tuple(range(wanted.ndim))
    mirrored = covariance.flip(axes).roll((1,) * wanted.ndim, axes)
    uneven = float((covariance - mirrored).abs().max())
    if uneven > 1e-6:
        raise ValueError(f"coefficients must be even, a(d) = a(-d), but got some that differ by {uneven:.3g}.")
    power = torch.fft.fftn((covariance + mirrored) / 2, norm="forward").real
    kept = torch.where(power > _ROUNDING * power.max(), power, 0.0)
    variance = float(kept.sum())
    if variance <= 1e-12:
        raise ValueError(
            f"coefficients must exceed (1-lam)² = {(1 - lam) ** 2:.6g} somewhere, for masks that are λ everywhere have "
            "these (MixUp), but they are at most "
            f"{float(wanted.max()):.6g}."
        )
    reached = (1.0 - lam) ** 2 + torch.fft.ifftn(kept, norm="forward").real
    residual = float((reached - wanted).abs().max())
    if residual > tolerance:
        raise ValueError(
            f"coefficients must be within {tolerance:g} of those of some masks: a(d) - (1-lam)² a covariance, with no "
            f"negative power, but the nearest differ by {residual:.3g}, and {float(power.clamp_max(0).sum()):.3g} of "
            f"the power is negative. Pass tolerance=math.inf to take the nearest."
        )
    return Design(kept / variance, math.sqrt(variance / (lam * (1.0 - lam))), reached, residual)


def _wanted(coefficients: Any, size: Any) -> Tensor:
    """a(d) at all offsets of a period, float64 on the CPU."""
    if isinstance(coefficients, Tensor):
        if size is not None:
            raise ValueError(f"size must be None with a tensor, whose shape is the period, but got {size!r}.")
        found = plain(checks.dense("coefficients", coefficients)).detach()
        if not 1 <= found.ndim <= 3 or not found.is_floating_point() or not found.numel():
            raise ValueError(
                "coefficients must be floating point with 1 to 3 dims, one for each offset, but got "
                f"{checks.names([found.dtype])} of shape {tuple(found.shape)}."
            )
    elif callable(coefficients):
        if size is None:
            raise ValueError("size must be given with a callable, but got None.")
        period = [2 * side for side in checks.sides("size", size)]
        axes = [torch.fft.fftfreq(side, 1.0 / side, dtype=torch.float64) for side in period]
        distance = sum(d.square() for d in torch.meshgrid(*axes, indexing="ij"))
        assert isinstance(distance, Tensor)
        found = coefficients(distance.sqrt())
        if not isinstance(found, Tensor) or tuple(found.shape) != tuple(period):
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"coefficients must return a tensor of the shape {tuple(period)} of the distances, but got {what}."
            )
        found = plain(found).detach()
    else:
        raise TypeError(f"coefficients must be a tensor or a callable, but got {type(coefficients).__name__}.")
    found = found.to("cpu", torch.float64)
    if not found.isfinite().all():
        raise ValueError("coefficients must be finite everywhere, but hold infinities or NaN.")
    return found
