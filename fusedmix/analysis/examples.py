"""The paper's Figure 3: photographs mixed by each method, here for one λ a column, on the demo's contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import fusedmix as fm
from fusedmix.bench.results import markdown
from fusedmix.demo.methods import Method, Mixture
from fusedmix.demo.photos import load_photos
from fusedmix.demo.sheet import draw_sheet

LAMBDAS = (0.1, 0.25, 0.4, 0.55, 0.65, 0.85)  # .65 is the paper's
RATIO = 0.5  # of HMix, the paper's
METHODS = (
    Method("MixUp", "M = λ", fm.MixUp),
    Method("CutMix", "a box, clipped at the border", fm.CutMix),
    Method("HMix (released)", "mask mean λ, r = .5", partial(fm.HMix, ratio=RATIO)),
    Method("HMix (paper)", "mask mean λ but for clipping, r = .5", partial(fm.HMix, ratio=RATIO, variant="paper")),
    Method("GMix (released)", "the smaller share has the Gaussian", fm.GMix),
    Method("GMix (paper)", "the partner has the Gaussian", partial(fm.GMix, variant="paper")),
    Method("FMix (paper)", "the largest pixels of a random low-frequency image", fm.FMix),
)


@dataclass(frozen=True)
class Row:
    """A mask of the sheet."""

    method: str
    lam: float
    label_weight: float
    mask_mean: float
    mask_min: float
    mask_max: float


def compute(*, quick: bool = False, seed: int = 0) -> tuple[list[Row], list[Mixture]]:
    """Every method at every λ of `LAMBDAS`, with one seed, and so with one centre in a column."""
    images, _ = load_photos(64 if quick else 224)
    lam = torch.tensor(LAMBDAS)
    rows, mixtures = [], []
    for method in METHODS:
        plan = method.build(num_classes=len(images)).sample(len(images), images.shape[2:], lam=lam, seed=seed)
        mixtures.append(Mixture(method, plan, fm.mix(images, plan)))
        for given, weight, mask in zip(LAMBDAS, plan.weight.tolist(), plan.mask().double(), strict=True):
            rows.append(Row(method.name, given, weight, float(mask.mean()), float(mask.min()), float(mask.max())))
    return rows, mixtures


def draw(mixtures: list[Mixture], path: Path, *, seed: int = 0) -> None:
    """The contact sheet, a PNG."""
    images, names = load_photos()
    draw_sheet(images, names, mixtures, path, subtitle=f"λ is given, seed {seed}")


def table(rows: list[Row]) -> str:
    """The label weights, a line for every method and a column for every λ, and how far they are from λ at most."""
    methods = list(dict.fromkeys(row.method for row in rows))
    lambdas = list(dict.fromkeys(row.lam for row in rows))
    weight = {(row.method, row.lam): row.label_weight for row in rows}
    lines = [
        (
            method,
            *(f"{weight[method, lam]:.3f}" for lam in lambdas),
            f"{max(abs(weight[method, lam] - lam) for lam in lambdas):.3f}",
        )
        for method in methods
    ]
    return markdown(("label weight at λ =", *(f"{lam:g}" for lam in lambdas), "farthest from λ"), lines)
