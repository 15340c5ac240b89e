"""Gaussian fields with a given spectrum: the masks of SpectralMix before λ and σ, and what `analysis.spectrum_for`
designs.

A field is stationary and has mean 0 and variance 1:

    G(x) = Σ_k √P(k)·[a_k cos θ - b_k sin θ],  θ = 2π Σ_axes k·x/period,   E G(x)G(x+d) = Σ_k P(k)·cos 2πkd/period,

a_k and b_k independent standard normal, the power P >= 0 normalised to a sum of 1. The right side is the covariance of
pixels that are d apart, the Fourier transform of P. Of k and -k, whose waves are the same, one is drawn, with the power
of both.

The noise is a pure function of (seed, mask, frequency), by Philox in a stream of its own, as FMix's is
(fusedmix/fourier.py). The sum is one complex FFT in float32. So two devices may differ in the last bits of a field.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fusedmix import checks
from fusedmix.draws import CPU
from fusedmix.fourier import default_cutoff, frequencies, noise
from fusedmix.philox import Stream
from fusedmix.subclasses import plain

Spectrum: TypeAlias = float | Tensor | Callable[[Tensor], Tensor]
_KEPT = 64  # sizes of images of which a field keeps what it has computed


def checked(name: str, x: Any) -> Spectrum:
    """A spectrum as a field keeps it: a number, a callable, or a float64 tensor on the CPU."""
    if isinstance(x, Tensor):
        x = plain(checks.dense(name, x)).detach()
        if not 1 <= x.ndim <= 3 or not x.is_floating_point() or not x.numel():
            raise ValueError(
                f"{name} must be floating point with 1 to 3 dims, a power for each frequency in the order of "
                f"torch.fft.fftn, but got {checks.names([x.dtype])} of shape {tuple(x.shape)}."
            )
        x = x.to("cpu", torch.float64, copy=True)
        _check_power(name, x)
        return x
    if callable(x):
        return x
    try:
        return checks.number(name, x, 0.0, 100.0)
    except TypeError:
        raise TypeError(
            f"{name} must be a number, a tensor of powers or a callable from frequencies to powers, but got {x!r} of "
            f"type {type(x).__name__}."
        ) from None


class _Waves(NamedTuple):
    """What is known of a field before its noise."""

    along: tuple[range, ...]  # the frequencies along each axis
    deviation: Tensor  # (*frequencies) float64, of a_k and b_k
    places: tuple[Tensor, ...]  # the index of each frequency in the array of an FFT
    period: tuple[int, ...]

    def to(self, device: torch.device) -> _Waves:
        places = tuple(place.to(device) for place in self.places)
        return self._replace(deviation=self.deviation.to(device), places=places)

    def sum(self, amplitudes: Tensor) -> Tensor:
        """(n, *period), the real part of Σ_k amplitude·e^(iθ), of (n, *frequencies) complex amplitudes."""
        waves = amplitudes.new_zeros((amplitudes.shape[0], *self.period))
        if not waves.shape[0]:  # MKL's FFT takes no empty batch.
            return waves.real
        waves.index_put_(
            (torch.arange(len(waves), device=waves.device).reshape([-1] + [1] * (waves.ndim - 1)), *self.places),
            amplitudes,
        )
        return torch.fft.ifftn(waves, dim=tuple(range(1, waves.ndim)), norm="forward").real


class Field:
    """Draws fields of one spectrum. What follows from spectrum and size is computed once for each device."""

    def __init__(self, spectrum: Spectrum) -> None:
        self.spectrum = spectrum
        self._waves: dict[tuple[tuple[int, ...], torch.device], _Waves] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Field, (self.spectrum,)

    def check(self, size: tuple[int, ...]) -> None:
        """Raises ValueError unless there are fields of that size."""
        period = self.spectrum.shape if isinstance(self.spectrum, Tensor) else size
        if len(period) != len(size) or any(side > most for side, most in zip(size, period, strict=True)):
            raise ValueError(
                "spectrum must have as many dims as the images have spatial ones, and at least their sides, but got "
                f"shape {tuple(period)} for the size {tuple(size)}."
            )
        self._prepared(size, CPU)  # which asks a callable

    def draw(self, seed: Tensor, index: Tensor, size: tuple[int, ...]) -> Tensor:
        """(n, *size) float32 fields.

        Args:
            seed: () int64.
            index: (n,) int64, which draw of the batch each is.
            size: 1 to 3 spatial sides.
        """
        known = self._prepared(size, index.device)
        a, b = (x * known.deviation for x in noise(seed, index, known.along, Stream.SPECTRUM))
        field = known.sum(torch.complex(a.float(), b.float()))
        for axis, side in enumerate(size, start=1):
            field = field.narrow(axis, 0, side)
        return field

    def covariance(self, size: tuple[int, ...]) -> Tensor:
        """(*period) float64 on the CPU, E G(x)G(x+d) at each offset d, negative ones from the end."""
        known = self._prepared(size, CPU)
        return known.sum(torch.complex(known.deviation.square(), torch.zeros_like(known.deviation)).unsqueeze(0))[0]

    def _prepared(self, size: tuple[int, ...], device: torch.device) -> _Waves:
        if torch.compiler.is_compiling():
            return _waves(self.spectrum, size).to(device)
        key = tuple(size), device
        if key not in self._waves:
            if len(self._waves) >= _KEPT:
                self._waves.clear()
            self._waves[key] = _waves(self.spectrum, key[0]) if device == CPU else self._prepared(size, CPU).to(device)
        return self._waves[key]


def _waves(spectrum: Spectrum, size: tuple[int, ...]) -> _Waves:
    period = tuple(spectrum.shape) if isinstance(spectrum, Tensor) else size
    cutoff = default_cutoff(spectrum) if isinstance(spectrum, float) else math.inf
    along = frequencies(period, "paper", cutoff)
    power = _power(spectrum, along, period)
    # Others have power up to the last frequency. In a graph no one knows where there is none.
    if isinstance(spectrum, Tensor) and not torch.compiler.is_compiling():
        along, power = _trimmed(along, power)
    last = torch.arange(along[-1].start, along[-1].stop)
    power = power * torch.where((last != 0) & (2 * last != period[-1]), 2.0, 1.0)
    deviation = (power / power.sum()).sqrt()
    places = tuple(
        (torch.arange(k.start, k.stop) % side).reshape([-1] + [1] * (len(period) - 1 - axis))
        for axis, (k, side) in enumerate(zip(along, period, strict=True))
    )
    return _Waves(along, deviation, places, period)


def _power(spectrum: Spectrum, along: tuple[range, ...], period: tuple[int, ...]) -> Tensor:
    """(*frequencies) float64, the power of each, up to a factor."""
    grid = torch.meshgrid(*(torch.arange(k.start, k.stop) for k in along), indexing="ij")
    if isinstance(spectrum, Tensor):
        own, mirrored = (
            spectrum[tuple(sign * k % side for k, side in zip(grid, period, strict=True))] for sign in (1, -1)
        )
        return (own + mirrored) / 2.0
    f = sum((k.double() / side).square() for k, side in zip(grid, period, strict=True))
    assert isinstance(f, Tensor)
    f = f.sqrt()
    if math.prod(period) == 1:
        raise ValueError("images must have more than one pixel for a spectrum without the frequency 0, but have one.")
    # What stands at 0 is left out, and not asked for.
    waves = f > 0
    f = torch.where(waves, f, 1.0 / max(period))
    if isinstance(spectrum, float):
        return waves * (f * max(period)) ** (-2.0 * spectrum)
    found = spectrum(f)
    if not isinstance(found, Tensor) or found.shape != f.shape:
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"spectrum must return a tensor of the shape {tuple(f.shape)} of the frequencies that it is given, but "
            f"returned {what}."
        )
    power = waves * plain(found).detach().to(f)
    _check_power("what spectrum returns", power)
    return power


def _check_power(name: str, power: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    if not (power.isfinite() & (power >= 0)).all() or not 0 < power.sum() < math.inf:
        raise ValueError(
            f"{name} must be powers: finite, at least 0 everywhere and not 0 everywhere, but the least is "
            f"{power.min():g} and the largest {power.max():g}."
        )


def _trimmed(along: tuple[range, ...], power: Tensor) -> tuple[tuple[range, ...], Tensor]:
    """The same without the frequencies at the ends that have no power."""
    kept = []
    for axis, k in enumerate(along):
        some = power.movedim(axis, 0).reshape(len(k), -1).any(1).nonzero().flatten()
        first, stop = int(some[0]), int(some[-1]) + 1
        kept.append(k[first:stop])
        power = power.narrow(axis, first, stop - first)
    return tuple(kept), power
