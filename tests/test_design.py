"""analysis.spectrum_for: from coefficients to the masks that have them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fusedmix as fm
from fusedmix import analysis


def of_a_power(*period):
    """Coefficients at λ = .4 of masks with any power, by the definition; and what that power is."""
    power = torch.rand(period, dtype=torch.float64, generator=torch.Generator().manual_seed(len(period)))
    axes = tuple(range(len(period)))
    power = (power + power.flip(axes).roll((1,) * len(period), axes)) / 2
    grid = np.meshgrid(*(np.fft.fftfreq(n) for n in period), indexing="ij")
    wanted = np.empty(period)
    for d in np.ndindex(*period):
        phase = 2 * np.pi * sum(k * n for k, n in zip(grid, d, strict=True))
        wanted[d] = 0.6**2 + 0.1 * float((power.numpy() * np.cos(phase)).sum() / power.sum())
    return torch.from_numpy(wanted), power / power.sum()


@pytest.mark.parametrize("period", [(9,), (8,), (6, 5), (3, 4, 6)])
def test_there_and_back(period):
    wanted, power = of_a_power(*period)
    design = analysis.spectrum_for(wanted, lam=0.4)
    torch.testing.assert_close(design.spectrum, power, atol=1e-12, rtol=0)
    torch.testing.assert_close(design.coefficients, wanted, atol=1e-12, rtol=0)
    assert design.contrast == pytest.approx(math.sqrt(0.1 / 0.24))
    assert design.residual < 1e-12
    mix = fm.SpectralMix(spectrum=design.spectrum, contrast=design.contrast, clamp=False)
    offsets = [(0,) * len(period), (1,) * len(period), (-1, *(0,) * (len(period) - 1))]
    exact = analysis.exact(mix, period, lam=0.4, offsets=offsets)
    torch.testing.assert_close(exact, torch.stack([wanted[d] for d in offsets]), atol=1e-7, rtol=0)


RADIAL = {
    "bell": (lambda d: 0.25 + 0.15 * (-(d / 6).square()).exp(), 0.5),
    "exponential": (lambda d: 0.09 + 0.05 * (-d / 9).exp(), 0.7),
    "ripples": (lambda d: 0.36 + 0.1 * torch.special.bessel_j0(d / 3) * (-(d / 12).square()).exp(), 0.4),
}


@pytest.mark.parametrize("name", RADIAL)
def test_monte_carlo(name):
    """The kernels' masks have the coefficients that were wanted, from border to border."""
    wanted, lam = RADIAL[name]
    size, offsets = (28, 33), [(0, 0), (2, 0), (0, 5), (-6, 7), (27, 0), (20, -30)]
    design = analysis.spectrum_for(wanted, size, lam=lam)
    mix = fm.SpectralMix(spectrum=design.spectrum, contrast=design.contrast, clamp=False, per="sample")
    found = analysis.coefficients(mix, size, lam=lam, offsets=offsets, masks=1500, seed=5)
    at = wanted(torch.tensor([math.hypot(*d) for d in offsets], dtype=torch.float64))
    distance = (found.mean - at).abs()
    assert (distance <= 4 * found.standard_error + design.residual + 1e-5).all(), distance / found.standard_error
    assert abs(found.mask_mean - lam) <= 4 * found.mask_mean_error
    assert design.residual < 1e-3


def test_of_cutmix():
    """What no field has: the nearest is taken, and how near it is, is said."""
    mix, size, lam = fm.CutMix(placement="inside"), (16, 16), 0.75
    rows = [(y, x) for y in range(-8, 8) for x in range(-8, 8)]
    wanted = torch.empty(16, 16, dtype=torch.float64)
    for d, value in zip(rows, analysis.exact(mix, size, lam=lam, offsets=rows), strict=True):
        wanted[d] = value
    with pytest.raises(ValueError, match=r"within 0\.001 of those of some masks"):
        analysis.spectrum_for(wanted, lam=lam)
    design = analysis.spectrum_for(wanted, lam=lam, tolerance=math.inf)
    assert design.residual == pytest.approx(float((design.coefficients - wanted).abs().max()))
    again = analysis.spectrum_for(design.coefficients, lam=lam, tolerance=1e-9)
    torch.testing.assert_close(again.spectrum, design.spectrum, atol=1e-9, rtol=0)
    # It is the nearest: no step to another covariance, of one more wave or one less, is downhill.
    gap = design.coefficients - wanted
    grid = torch.meshgrid(*[torch.arange(16.0, dtype=torch.float64)] * 2, indexing="ij")
    for k in ((0, 0), (1, 0), (3, 5), (8, 8), (0, 7)):
        wave = torch.cos(2 * math.pi * (k[0] * grid[0] + k[1] * grid[1]) / 16)
        slope = float((gap * wave).mean())
        assert slope > -1e-12
        assert design.spectrum[k] == 0 or abs(slope) < 1e-12
