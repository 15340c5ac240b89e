"""Designed masks: for each of several wanted a(d) the masks that `spectrum_for` finds, measured by Monte Carlo from the
kernels, clamped to [0, 1] and not."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import fusedmix as fm
from fusedmix.analysis.design import Design, spectrum_for
from fusedmix.analysis.moments import coefficients, exact
from fusedmix.bench.results import markdown

SIDE, LAM = 64, 0.5
# a(d) - (1-λ)², of distances in pixels.
RADIAL: dict[str, Callable[[Tensor], Tensor]] = {
    "a bell": lambda d: 0.15 * (-(d / 10).square()).exp(),
    "exponential": lambda d: 0.15 * (-d / 10).exp(),
    "ripples": lambda d: 0.15 * torch.special.bessel_j0(d / 3) * (-(d / 20).square()).exp(),
}
OF_HMIX = "near HMix's, r=.5"
_PERIOD = 2 * SIDE


@dataclass(frozen=True)
class Row:
    """One coefficient of one design."""

    design: str
    d: int
    wanted: float
    reached: float  # by the masks of the spectrum that was found
    monte_carlo: float
    standard_error: float
    clamped: float  # by Monte Carlo, of the same masks clamped to [0, 1]
    clamped_error: float
    contrast: float
    residual: float  # over all d
    masks: int

    @property
    def deviation(self) -> float:
        """How many standard errors the Monte Carlo is from what the masks should reach."""
        return abs(self.monte_carlo - self.reached) / self.standard_error


@functools.cache
def designs() -> dict[str, tuple[Tensor, Design]]:
    """Of each design a(d) for d = 0 to SIDE-1 as it is wanted, and the masks that were found."""
    size, distance = (SIDE, SIDE), torch.arange(SIDE, dtype=torch.float64)
    found = {}
    for name, covariance in RADIAL.items():

        def wanted(d: Tensor, covariance: Callable[[Tensor], Tensor] = covariance) -> Tensor:
            return (1 - LAM) ** 2 + covariance(d)

        found[name] = wanted(distance), spectrum_for(wanted, size, lam=LAM)
    values = of_hmix()
    found[OF_HMIX] = values[:SIDE, 0], spectrum_for(values, lam=LAM, tolerance=math.inf)
    return found


def of_hmix() -> Tensor:
    """a(d) of the released HMix, the mean of whose masks is λ as well, at all d of a period."""
    y, x = torch.triu_indices(SIDE, SIDE)
    quarter = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    quarter[y, x] = exact(fm.HMix(ratio=0.5), (SIDE, SIDE), lam=LAM, offsets=torch.stack((y, x), dim=1).tolist())
    quarter[x, y] = quarter[y, x]
    d = torch.fft.fftfreq(_PERIOD, 1.0 / _PERIOD).abs().long().clamp_max(SIDE - 1)
    return quarter[d][:, d]


def compute(*, quick: bool = False, seed: int = 0) -> list[Row]:
    """Coefficients of 64x64 masks at λ = ½, along the vertical."""
    offsets = [(d, 0) for d in range(0, 3 * SIDE // 4 + 1, 8 if quick else 4)]
    rows = []
    for name, (wanted, design) in designs().items():
        measured = [
            coefficients(
                fm.SpectralMix(spectrum=design.spectrum, contrast=design.contrast, clamp=clamp, per="sample"),
                (SIDE, SIDE),
                lam=LAM,
                offsets=offsets,
                masks=60 if quick else 2_000,
                seed=seed,
            )
            for clamp in (False, True)
        ]
        for i, (d, _) in enumerate(offsets):
            (mean, error), (clamped, clamped_error) = (
                (float(found.mean[i]), float(found.standard_error[i])) for found in measured
            )
            rows.append(
                Row(
                    design=name,
                    d=d,
                    wanted=float(wanted[d]),
                    reached=float(design.coefficients[d, 0]),
                    monte_carlo=mean,
                    standard_error=error,
                    clamped=clamped,
                    clamped_error=clamped_error,
                    contrast=design.contrast,
                    residual=design.residual,
                    masks=measured[0].masks,
                )
            )
    return rows


def draw(rows: list[Row], path: Path) -> None:
    """Of every design the coefficients, and one of its masks, a PNG."""
    figure = Figure(figsize=(11, 5.2), dpi=90, layout="constrained")
    found = designs()
    upper, lower = figure.subplots(2, len(found), sharey="row")
    for curve, picture, (name, (_, design)) in zip(upper, lower, found.items(), strict=True):
        of = [row for row in rows if row.design == name]
        d = [row.d for row in of]
        curve.set_title(name, fontsize=9)
        curve.plot(d, [row.wanted for row in of], color="#999999", label="wanted")
        curve.plot(d, [row.reached for row in of], "--", color="#1f77b4", label="reached")
        for label, marker, mean, error in (
            ("Monte Carlo, 4 s.e.", "o", "monte_carlo", "standard_error"),
            ("the same, clamped", "s", "clamped", "clamped_error"),
        ):
            height, bar = [getattr(row, mean) for row in of], [4 * getattr(row, error) for row in of]
            color = "#d95f02" if marker == "o" else "#7570b3"
            curve.errorbar(d, height, bar, fmt=marker, markersize=3, capsize=2, color=color, label=label)
        curve.grid(color="#e6e6e6")
        mix = fm.SpectralMix(spectrum=design.spectrum, contrast=design.contrast, clamp=False)
        mask = mix.sample(1, (SIDE, SIDE), lam=LAM, seed=1).mask()[0]
        shown = picture.imshow(mask.numpy(), vmin=-0.5, vmax=1.5, cmap="RdBu_r")
        picture.set_axis_off()
    upper[0].legend(fontsize=6, frameon=False)
    upper[0].set_ylabel(f"a(d), {SIDE}×{SIDE}, λ = {LAM:g}", fontsize=9)
    figure.colorbar(shown, ax=lower, shrink=0.8, label="M")
    figure.savefig(path, format="png")


def table(rows: list[Row]) -> str:
    """A line for every design: what was wanted and what is measured, and how far the two are apart."""
    shown = (0, 16, 32)
    lines = []
    for name in dict.fromkeys(row.design for row in rows):
        of = [row for row in rows if row.design == name]
        at = {row.d: row for row in of}
        cells = (f"{at[d].wanted:.4f}: {at[d].monte_carlo:.4f} ± {at[d].standard_error:.4f}" for d in shown)
        clamped = f"{at[0].clamped:.4f}"
        deviation = f"{max(row.deviation for row in of):.1f}"
        lines.append((name, f"{of[0].contrast:.3f}", *cells, f"{of[0].residual:.4f}", deviation, clamped))
    header = (
        "wanted: Monte Carlo ± s.e.",
        "contrast",
        *(f"a({d})" for d in shown),
        "residual",
        "farthest from reached, s.e.",
        "a(0) clamped",
    )
    return markdown(header, lines)
