"""The paper's Figure 1: the loss of mixed samples and its second-order approximation over training, for logistic
regression on two moons, with Mixup and with Bernoulli masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import make_moons
from torch import Tensor

from fusedmix.analysis.theory import (
    MaskDistribution,
    bernoulli_masks,
    mixup_masks,
    msda_loss,
    remainder_bound,
    second_order,
)
from fusedmix.bench.results import markdown

MASKS = {"Mixup": mixup_masks, "Bernoulli": bernoulli_masks}
ALPHAS = (0.2, 1.0)
TRAINED_ON = ("original", "approximation")
RATE = 0.5
EVERY = 5  # steps between two rows


@dataclass(frozen=True)
class Row:
    """The losses at one step of training."""

    masks: str
    alpha: float
    trained_on: str  # which of the two losses gradient descent minimises
    step: int
    original: float  # the mixed loss
    plain: float  # R0, the loss without mixing
    first_order: float  # R0 + R1
    second_order: float  # R0 + R1 + R2
    bound: float  # on |original - second_order|

    @property
    def error(self) -> float:
        """|original - second_order|"""
        return abs(self.original - self.second_order)


def moons(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two moons with noise .1: (m, 2) centred data and (m,) labels 0 and 1, both float64."""
    x, y = make_moons(samples, noise=0.1, random_state=seed)
    data = torch.tensor(x, dtype=torch.float64)
    return data - data.mean(0), torch.tensor(y, dtype=torch.float64)


def train(
    x: Tensor, y: Tensor, masks: MaskDistribution, *, name: str, alpha: float, trained_on: str, steps: int
) -> list[Row]:
    """Gradient descent from θ = 0 on the whole of one of the two losses; a row for every fifth θ, from the first."""
    theta = torch.zeros(x.shape[1], dtype=torch.float64)
    rows = []
    for step in range(steps + 1):
        theta.requires_grad_()
        original, terms = msda_loss(theta, x, y, masks), second_order(theta, x, y, masks)
        (gradient,) = torch.autograd.grad(original if trained_on == "original" else terms.total, theta)
        theta = theta.detach()
        if step % EVERY == 0:
            losses = (original, terms.plain, terms.plain + terms.first, terms.total, remainder_bound(theta, x, masks))
            rows.append(Row(name, alpha, trained_on, step, *(float(loss.detach()) for loss in losses)))
        theta = theta - RATE * gradient
    return rows


def compute(*, quick: bool = False, seed: int = 0) -> list[Row]:
    """Both kinds of masks, two α, trained on either loss."""
    x, y = moons(30 if quick else 100, seed)
    rows = []
    for name, distribution in MASKS.items():
        for alpha in ALPHAS:
            masks = distribution(2, alpha=alpha)
            for trained_on in TRAINED_ON:
                rows += train(x, y, masks, name=name, alpha=alpha, trained_on=trained_on, steps=40 if quick else 200)
    return rows


def draw(rows: list[Row], path: Path) -> None:
    """A panel for every kind of masks and α, trained on the mixed loss, a PNG."""
    figure = Figure(figsize=(11, 3.2), dpi=90, layout="constrained")
    panels = figure.subplots(1, len(MASKS) * len(ALPHAS), sharey=True)
    for axes, (name, alpha) in zip(panels, ((name, alpha) for name in MASKS for alpha in ALPHAS), strict=True):
        of = [row for row in rows if (row.masks, row.alpha, row.trained_on) == (name, alpha, "original")]
        steps = [row.step for row in of]
        axes.set_title(f"{name}, α = {alpha:g}", fontsize=9)
        low, high = zip(*((row.second_order - row.bound, row.second_order + row.bound) for row in of), strict=True)
        axes.fill_between(steps, low, high, color="#d95f02", alpha=0.12, lw=0, label="± bound of the remainder")
        axes.plot(steps, [row.plain for row in of], ":", color="#999999", label="without mixing")
        axes.plot(steps, [row.first_order for row in of], "-.", color="#7570b3", label="first order")
        axes.plot(steps, [row.second_order for row in of], "--", color="#d95f02", label="second order")
        axes.plot(steps, [row.original for row in of], color="#1f77b4", label="original")
        axes.grid(color="#e6e6e6")
    panels[0].legend(fontsize=6, frameon=False)
    figure.supxlabel("step of gradient descent on the original loss", fontsize=10)
    figure.supylabel("loss", fontsize=10)
    figure.savefig(path, format="png")


def table(rows: list[Row]) -> str:
    """A line for every run: the losses after the last step, and the approximation's error over the whole run."""
    lines = []
    for key in dict.fromkeys((row.masks, row.alpha, row.trained_on) for row in rows):
        of = [row for row in rows if (row.masks, row.alpha, row.trained_on) == key]
        last = of[-1]
        lines.append(
            (
                f"{key[0]}, α={key[1]:g}, the {key[2]}",
                *(f"{loss:.4f}" for loss in (last.original, last.second_order, last.first_order, last.plain)),
                f"{sum(row.error for row in of) / len(of):.4f}",
                f"{max(row.error for row in of):.4f}",
                f"{max(row.error / row.original for row in of):.1%}",
                f"{max(row.error / abs(row.original - row.plain) for row in of[1:]):.0%}",  # θ = 0 feels no mixing
                f"{max(row.bound for row in of):.4f}",
            )
        )
    losses = ("original", "second order", "first order", "without mixing")
    errors = ("mean error", "largest", "of the loss", "of what mixing adds", "largest bound")
    return markdown(("trained on", *losses, *errors), lines)
