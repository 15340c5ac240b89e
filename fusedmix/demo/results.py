"""How the training runs are reported: a table, a CSV and a picture of every single run."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from fusedmix.demo.train import CORRUPTED, NO_MIXING, TEST_IMAGES, Run

CONDITIONS = {0.0: "clean labels", CORRUPTED[-1]: f"{CORRUPTED[-1]:.0%} of labels random"}


@dataclass(frozen=True)
class Row:
    """The means over the seeds, for one method and one share of corrupted labels."""

    method: str
    corrupted_percent: float
    runs: int
    accuracy_percent: float
    ece_percent: float
    seconds: float  # the fastest: whatever else the machine does only adds


def summarise(runs: Sequence[Run]) -> list[Row]:
    """One row for every method and share of corrupted labels, in the order they ran."""
    rows = []
    for method, corrupted in dict.fromkeys((run.method, run.corrupted) for run in runs):
        same = [run for run in runs if (run.method, run.corrupted) == (method, corrupted)]
        accuracy, ece = fmean(run.accuracy for run in same), fmean(run.ece for run in same)
        rows.append(
            Row(method, 100 * corrupted, len(same), 100 * accuracy, 100 * ece, min(run.seconds for run in same))
        )
    return rows


def as_text(rows: Sequence[Row]) -> str:
    """The table: a line for every method, accuracy and expected calibration error under both conditions."""
    lines = [
        " " * 17 + "".join(f"{title:^26}" for title in CONDITIONS.values()),
        f"{'method':<17}" + f"{'accuracy %':>13}{'ECE %':>10}   " * len(CONDITIONS) + f"{'seconds':>9}",
    ]
    for method in dict.fromkeys(row.method for row in rows):
        same = [row for row in rows if row.method == method]
        cells = "".join(f"{row.accuracy_percent:13.1f}{row.ece_percent:10.1f}   " for row in same)
        lines.append(f"{method:<17}{cells}{min(row.seconds for row in same):9.1f}")
    return "\n".join(lines)


def caveat(rows: Sequence[Row]) -> str:
    """How little such runs say, in numbers."""
    noise = []
    for row in rows:
        if row.method == NO_MIXING:
            share = row.accuracy_percent / 100
            # Two standard errors of the difference of two proportions
            noise.append(200 * math.sqrt(2 * share * (1 - share) / TEST_IMAGES))
    within = " and ".join(f"±{points:.1f}" for points in noise)
    return (
        "ECE: expected calibration error, 15 bins (Guo et al. 2017), lower is better. Seconds: the fastest run.\n"
        f"The set is tiny: accuracies less than {within} points apart ({' and '.join(CONDITIONS.values())})\n"
        "may well differ by chance. α was not tuned. Mixing leaves so small a network underconfident, hence the\n"
        "larger ECE. What the methods do for large models and data sets is in their papers, not here."
    )


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The means, one line for every method and share of corrupted labels."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(Row))
        writer.writerows((f"{x:.4g}" if isinstance(x, float) else x for x in astuple(row)) for row in rows)


def draw(runs: Sequence[Run], path: Path) -> None:
    """A dot for every run: accuracy on the left, calibration error on the right."""
    methods = list(dict.fromkeys(run.method for run in runs))[::-1]
    figure = Figure(figsize=(10, 0.36 * len(methods) + 1.5), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title in zip(panels, ("test accuracy (%)", "expected calibration error (%)"), strict=True):
        for (corrupted, condition), color, marker in zip(CONDITIONS.items(), ("#1f77b4", "#d95f02"), "os", strict=True):
            same = [run for run in runs if run.corrupted == corrupted]
            values = [100 * (run.accuracy if axes is panels[0] else run.ece) for run in same]
            axes.plot(
                values,
                [methods.index(run.method) for run in same],
                marker,
                color=color,
                alpha=0.7,
                label=condition,
                clip_on=False,
            )
        axes.set_xlabel(title)
        axes.set_yticks(range(len(methods)), methods)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="both", color="#e6e6e6")
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, format="png")
