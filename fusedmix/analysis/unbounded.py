"""λ outside [0, 1], which the paper explores in its Figure 2: the mixed loss of Mixup and its second-order
approximation for λ uniform around ½, as wide as one likes. Logistic regression on two moons; setting and numbers are
ours.

Nothing in the derivation of theory.py asks λ to be in [0, 1]. Of λ uniform in ½ ± w, a = E(1-λ)² is ¼ + w²/3, and the
remainder grows with the third power of w.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from fusedmix.analysis.moons import RATE, moons
from fusedmix.analysis.theory import MaskDistribution, mixup_masks, msda_loss, second_order
from fusedmix.bench.results import markdown

WIDTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


@dataclass(frozen=True)
class Row:
    """What gradient descent on the mixed loss comes to."""

    width: float  # w: λ is uniform in ½ ± w
    coefficient: float  # a = E(1-λ)²
    original: float  # the mixed loss
    second_order: float  # its approximation
    plain: float  # the loss without mixing
    norm: float  # |θ|
    accuracy: float  # on the data, in [0, 1]


def uniform_masks(width: float) -> MaskDistribution:
    """Mixup of two coordinates with λ uniform in ½ ± width, by Gauss quadrature."""
    known = mixup_masks(2, alpha=1.0)
    masks, weight = (0.5 + 2.0 * width * (x - 0.5) for x in (known.masks, known.label_weight))
    return MaskDistribution(masks, known.probability, weight)


def compute(*, quick: bool = False, seed: int = 0) -> list[Row]:
    """One training for each width."""
    x, y = moons(30 if quick else 100, seed)
    rows = []
    for width in WIDTHS:
        masks = uniform_masks(width)
        theta = torch.zeros(2, dtype=torch.float64)
        for _ in range(40 if quick else 200):
            theta.requires_grad_()
            (gradient,) = torch.autograd.grad(msda_loss(theta, x, y, masks), theta)
            theta = theta.detach() - RATE * gradient
        terms = second_order(theta, x, y, masks)
        coefficient = float(masks.probability @ (1.0 - masks.label_weight).square())
        accuracy = float(((x @ theta > 0) == (y > 0.5)).double().mean())
        original = float(msda_loss(theta, x, y, masks))
        losses = original, float(terms.total), float(terms.plain)
        rows.append(Row(width, coefficient, *losses, float(theta.norm()), accuracy))
    return rows


def draw(rows: list[Row], path: Path) -> None:
    """The losses and |θ| over the width, a PNG."""
    figure = Figure(figsize=(8, 3.2), dpi=90, layout="constrained")
    losses, norms = figure.subplots(1, 2)
    width = [row.width for row in rows]
    losses.plot(width, [row.original for row in rows], "o-", color="#1f77b4", label="mixed loss")
    losses.plot(width, [row.second_order for row in rows], "s--", color="#d95f02", label="second order")
    losses.plot(width, [row.plain for row in rows], ":", color="#999999", label="without mixing")
    norms.plot(width, [row.norm for row in rows], "o-", color="#1f77b4", label="|θ|")
    for axes in (losses, norms):
        axes.axvspan(0.0, 0.5, color="#e6e6e6", lw=0, label="λ within [0, 1]")
        axes.set_xlabel("w, of λ uniform in ½ ± w", fontsize=9)
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, format="png")


def table(rows: list[Row]) -> str:
    """A line for every width."""
    lines = [
        (
            f"½ ± {row.width:g}",
            f"{row.coefficient:.3f}",
            *(f"{x:.4f}" for x in (row.original, row.second_order, row.plain)),
            f"{row.norm:.2f}",
            f"{row.accuracy:.1%}",
        )
        for row in rows
    ]
    header = ("λ uniform in", "E(1-λ)²", "mixed loss", "second order", "without mixing", "norm of θ", "accuracy")
    return markdown(header, lines)
