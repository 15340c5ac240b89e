"""How the contact sheet is drawn: a row per method, and under every mixed image its mask, its λ and its label."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from fusedmix.demo.methods import Mixture
from fusedmix.demo.photos import CREDITS
from fusedmix.mixing import mix_labels
from fusedmix.version import __version__

# The layout in pixels. At 118 pixels an image the sheet stays below 4 MB and its captions are readable in a README.
DPI = 100
MARGIN, GAP = 24, 14
TITLE, FOOTER = 110, 46
IMAGE, MASK = 118, 36
HEADING = 30
NAMES = 22  # the originals have a name where the mixed images have a mask
CAPTION = MASK + 6
LINES = 3  # of text beside a mask
ROW_GAP = 20
INK, FAINT = "#1a1a1a", "#6a6a6a"
FRAME = 0.57  # grey


def sheet_size(columns: int, methods: int) -> tuple[int, int]:
    """Width and height of the sheet in pixels."""
    originals = HEADING + IMAGE + NAMES + ROW_GAP
    mixed = HEADING + IMAGE + CAPTION + ROW_GAP
    return (
        2 * MARGIN + columns * IMAGE + (columns - 1) * GAP,
        TITLE + originals + methods * mixed + FOOTER,
    )


class _Canvas:
    """A figure whose coordinates are pixels from the top left corner; text stands on its baseline."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")

    def text(self, left: float, baseline: float, text: str, pixels: float, color: str = INK, **style: Any) -> None:
        self.figure.text(
            left / self.width,
            1 - baseline / self.height,
            text,
            fontsize=pixels * 72 / DPI,
            color=color,
            va="baseline",
            **style,
        )

    def lines(self, left: float, baseline: float, text: str, pixels: float) -> None:
        """Text in as many lines as it takes, of letters that are about half as wide as high."""
        for k, line in enumerate(textwrap.wrap(text, int((self.width - 2 * left) / (0.54 * pixels)))):
            self.text(left, baseline + 16 * k, line, pixels, FAINT)

    def picture(self, left: int, top: int, side: int, image: Tensor) -> None:
        """Place (3, H, W) or (H, W) values in [0, 1] as a framed square, pixel for pixel: an axes would resample it."""
        planes = image if image.ndim == 3 else image[None]
        square = F.interpolate(planes[None], (side, side), mode="bilinear", antialias=True)[0].clamp(0, 1)
        framed = F.pad(square[:, 1:-1, 1:-1], (1, 1, 1, 1), value=FRAME).expand(3, -1, -1)
        self.figure.figimage(framed.permute(1, 2, 0).numpy(), left, self.height - top - side, origin="upper")


def _labels(weights: Tensor, names: Sequence[str]) -> list[str]:
    """Of the weights (B,) of the classes of one sample those that show, the largest first."""
    order = weights.argsort(descending=True, stable=True).tolist()
    return [f"{float(weights[i]):.2f} {names[i]}" for i in order if weights[i] >= 0.005][:LINES]


def draw_sheet(images: Tensor, names: Sequence[str], mixtures: Sequence[Mixture], path: Path, *, subtitle: str) -> None:
    """Write `images` (B, 3, H, W) in [0, 1] and what became of them to `path`, a PNG."""
    width, height = sheet_size(len(names), len(mixtures))
    canvas = _Canvas(width, height)
    lefts = [MARGIN + i * (IMAGE + GAP) for i in range(len(names))]

    canvas.text(MARGIN, 40, f"{len(names)} photographs, {len(mixtures)} ways to mix them", 24, weight="bold")
    explained = (
        "Each photograph is mixed with the one on its left, the first with the last. Small square: the mask, white "
        "where the photograph itself shows, black where others do. λ is the drawn coefficient; below it stand the "
        f"largest labels. fusedmix {__version__}, {subtitle}."
    )
    canvas.lines(MARGIN, 64, explained, 12)

    top = TITLE
    canvas.text(MARGIN, top + 22, "Originals", 16, weight="bold")
    top += HEADING
    for left, name, image in zip(lefts, names, images.cpu(), strict=True):
        canvas.picture(left, top, IMAGE, image)
        canvas.text(left + IMAGE / 2, top + IMAGE + 18, name, 14, ha="center")
    top += IMAGE + NAMES + ROW_GAP

    for mixture in mixtures:
        plan = mixture.plan.to("cpu")
        mixed, masks = mixture.images.cpu(), plan.mask()
        targets = mix_labels(torch.arange(len(names)), plan, num_classes=len(names))
        canvas.text(MARGIN, top + 22, mixture.method.name, 16, weight="bold")
        canvas.text(MARGIN + 170, top + 22, mixture.method.note, 14, FAINT)
        top += HEADING
        for i, left in enumerate(lefts):
            canvas.picture(left, top, IMAGE, mixed[i])
            canvas.picture(left, top + IMAGE + 6, MASK, masks[i])
            lines = _labels(targets[i], names)
            lam = [] if len(lines) == LINES else [f"λ = {float(plan.lam[i]):.2f}"]
            for k, line in enumerate((*lam, *lines)):
                color = FAINT if k < len(lam) else INK
                canvas.text(left + MASK + 6, top + IMAGE + 16 + 16 * k, line, 11, color)
        top += IMAGE + CAPTION + ROW_GAP

    canvas.lines(MARGIN, top + 12, CREDITS, 12)
    canvas.figure.savefig(path, format="png")
