"""The paper's Figure 4: the coefficients a(d) of every method over the distance d, from the kernels' masks, exactly,
and as the paper prints them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

import fusedmix as fm
from fusedmix.analysis.moments import closed_form, coefficients, exact, exact_mask_mean
from fusedmix.bench.results import markdown
from fusedmix.demo.methods import Method

SIDE, LAM = 64, 0.5
# Masks are float32: the least difference between two means of them that says anything.
RESOLUTION = 2.0**-23
METHODS = (
    Method("MixUp", "", fm.MixUp),
    Method("CutMix", "eq. 10", fm.CutMix),
    Method("HMix (released), r=.5", "", partial(fm.HMix, ratio=0.5)),
    Method("HMix (released), r=.75", "", partial(fm.HMix, ratio=0.75)),
    Method("HMix (paper), r=.5", "", partial(fm.HMix, ratio=0.5, variant="paper")),
    Method("GMix (released)", "infinite plane", fm.GMix),
    Method("GMix (paper)", "eq. 11", partial(fm.GMix, variant="paper")),
    Method("MixUp or CutMix, q=.5", "", partial(fm.RandomMix, [fm.MixUp(), fm.CutMix()])),
    Method("FMix (paper)", "", fm.FMix),
    Method("FMix (released)", "", partial(fm.FMix, variant="released")),
)


@dataclass(frozen=True)
class Row:
    """One coefficient. None: there is no such form."""

    method: str
    dy: int
    dx: int
    monte_carlo: float
    standard_error: float
    exact: float | None
    printed: float | None  # the paper's closed form
    mask_mean: float  # of all masks of the method
    mask_mean_error: float
    exact_mask_mean: float | None
    masks: int

    @property
    def deviation(self) -> float | None:
        """How many standard errors the Monte Carlo is from the exact form."""
        if self.exact is None:
            return None
        return abs(self.monte_carlo - self.exact) / max(self.standard_error, RESOLUTION)


def compute(*, quick: bool = False, seed: int = 0) -> list[Row]:
    """Coefficients of 64x64 masks at λ = ½, along both axes."""
    size, step = (SIDE, SIDE), 8 if quick else 4
    offsets = [(d, 0) for d in range(0, 3 * SIDE // 4 + 1, step)]
    offsets += [(0, d) for d, _ in offsets[1:]]
    rows = []
    for method in METHODS:
        mix = method.factory(per="sample")
        found = coefficients(mix, size, lam=LAM, offsets=offsets, masks=500 if quick else 20_000, seed=seed)
        known: list[float | None] = [None] * len(offsets)
        printed, mean = known, None
        if not isinstance(mix, fm.FMix):
            known = exact(mix, size, lam=LAM, offsets=offsets).tolist()
            mean = exact_mask_mean(mix, size, lam=LAM)
        if isinstance(mix, fm.MixUp | fm.CutMix | fm.GMix):
            printed = closed_form(mix, size, lam=LAM, offsets=offsets).tolist()
        columns = zip(offsets, found.mean.tolist(), found.standard_error.tolist(), known, printed, strict=True)
        for (dy, dx), value, error, form, shown in columns:
            rows.append(
                Row(
                    method=method.name,
                    dy=dy,
                    dx=dx,
                    monte_carlo=value,
                    standard_error=error,
                    exact=form,
                    printed=shown,
                    mask_mean=found.mask_mean,
                    mask_mean_error=found.mask_mean_error,
                    exact_mask_mean=mean,
                    masks=found.masks,
                )
            )
    return rows


def draw(rows: list[Row], path: Path) -> None:
    """A panel for every method, a PNG."""
    figure = Figure(figsize=(11, 5.2), dpi=90, layout="constrained")
    panels = figure.subplots(2, 5, sharex=True, sharey=True).flat
    for axes, method in zip(panels, METHODS, strict=True):
        of = [row for row in rows if row.method == method.name]
        down, across = [row for row in of if row.dx == 0], [row for row in of if row.dy == 0]
        distance = [row.dy for row in down]
        axes.set_title(method.name, fontsize=9)
        if down[0].exact is not None:
            axes.plot(distance, [row.exact for row in down], color="#1f77b4", label="exact")
        if down[0].printed is not None:
            label = f"closed form, {method.note}" if method.note else "closed form"
            axes.plot(distance, [row.printed for row in down], "--", color="#999999", label=label)
        series = [(distance, down, "#d95f02", "Monte Carlo, 4 s.e.")]
        if down[0].exact is None:  # FMix as released is not isotropic
            series.append(([row.dx for row in across], across, "#7570b3", "the same, horizontally"))
        for x, points, color, label in series:
            height, bar = [row.monte_carlo for row in points], [4 * row.standard_error for row in points]
            axes.errorbar(x, height, bar, fmt="o", markersize=3, capsize=2, color=color, label=label)
        axes.legend(fontsize=6, frameon=False)
        axes.grid(color="#e6e6e6")
        axes.set_ylim(0, 0.56)
    figure.supxlabel("distance d in pixels", fontsize=10)
    figure.supylabel(f"a(d), {SIDE}×{SIDE}, λ = {LAM:g}", fontsize=10)
    figure.savefig(path, format="png")


def table(rows: list[Row]) -> str:
    """A line for every method: Monte Carlo ± standard error beside the exact form, and the largest difference."""
    shown = (0, 16, 32)
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        of = [row for row in rows if row.method == method]
        at = {row.dy: row for row in of if row.dx == 0}
        cells = [_beside(of[0].mask_mean, of[0].mask_mean_error, of[0].exact_mask_mean)]
        cells += [_beside(at[d].monte_carlo, at[d].standard_error, at[d].exact) for d in shown]
        deviations = [row.deviation for row in of if row.deviation is not None]
        lines.append((method, *cells, f"{max(deviations):.1f}" if deviations else ""))
        if at[0].printed is not None:
            lines.append(("— closed form", "", *(f"{at[d].printed:.4f}" for d in shown), ""))
    header = ("Monte Carlo ± s.e. (exact)", "mean of M", *(f"a({d})" for d in shown), "farthest, s.e.")
    return markdown(header, lines)


def _beside(value: float, error: float, known: float | None) -> str:
    return f"{value:.4f} ± {error:.4f}" + ("" if known is None else f" ({known:.4f})")
