"""How training runs are reported: a table for each share of wrong labels, and a picture of every run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fusedmix.bench.results import markdown
from fusedmix.bench.timing import quantile
from fusedmix.demo.train import NO_MIXING, Run

NOTES = """\
Mean ± standard error over the seeds. Gained: on the run without mixing of the same seed. NLL: negative log likelihood
of the test labels. ECE: expected calibration error, 15 bins (Guo et al. 2017). Lower is better for both. Scaled: with
the logits divided by one temperature, which is fitted on validation images.

Why the ECE rises: mixed targets teach the network never to be certain, so it is right more often than its confidence
says. It errs by about the same factor everywhere, and dividing by a temperature removes that: compare what is scaled.

The images are few and small, and no α was tuned. Differences of less than two standard errors may be chance. In a
checkout, examples/train_cifar.py compares the methods on CIFAR or on images of your own."""


def condition(corrupted: float) -> str:
    """A share of corrupted labels in words."""
    return f"{corrupted:.0%} of labels random" if corrupted else "clean labels"


def conditions(runs: Iterable[Run]) -> dict[float, list[Run]]:
    """The runs by the share of corrupted labels, in the order they ran."""
    found: dict[float, list[Run]] = {}
    for run in runs:
        found.setdefault(run.corrupted, []).append(run)
    return found


def by_method(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs by their method, in the order they ran."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.method, []).append(run)
    return found


def table(runs: Sequence[Run], *, times: bool = False) -> str:
    """A line for every method, of runs with the same share of corrupted labels: means over the seeds ± their standard
    errors, and what of the accuracy is gained on the runs without mixing, seed by seed, for these have the same data
    and the same first weights. With `times` the median of the seconds, and p20 to p80, too."""
    methods = by_method(runs)
    without = {run.seed: run.accuracy for run in methods[NO_MIXING]}
    lines = []
    for method, of in methods.items():
        gained = [100 * (run.accuracy - without[run.seed]) for run in of]
        cells = [
            method,
            mean_and_error([100 * run.accuracy for run in of]),
            "" if method == NO_MIXING else mean_and_error(gained, "+.1f"),
            mean_and_error([run.nll for run in of], ".2f"),
            mean_and_error([100 * run.ece for run in of]),
            mean_and_error([run.scaled_nll for run in of], ".2f"),
            mean_and_error([100 * run.scaled_ece for run in of]),
        ]
        lines.append((*cells, median_and_spread([run.seconds_an_epoch for run in of])) if times else tuple(cells))
    header = (condition(runs[0].corrupted), "accuracy %", "gained", "NLL", "ECE %", "NLL, scaled", "ECE %, scaled")
    return markdown((*header, "seconds an epoch") if times else header, lines)


def mean_and_error(values: Sequence[float], form: str = ".1f") -> str:
    """The mean ± its standard error, which one value alone does not have."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):{form}} ± {error:{form.removeprefix('+')}}"


def median_and_spread(values: Sequence[float]) -> str:
    low, high = (quantile(values, q) for q in (0.2, 0.8))
    return f"{statistics.median(values):.3f} ({low:.3f} to {high:.3f})"


def headline(runs: Sequence[Run]) -> str:
    """The accuracy without mixing, and the range of it with, of runs with the same share of corrupted labels."""
    accuracies = {method: [100 * run.accuracy for run in of] for method, of in by_method(runs).items()}
    without = mean_and_error(accuracies.pop(NO_MIXING))
    mixed = [statistics.fmean(values) for values in accuracies.values()]
    return (
        f"With {condition(runs[0].corrupted)}, {without} % of the test images are recognised without mixing, and "
        f"{min(mixed):.1f} to {max(mixed):.1f} % with it."
    )


_PANELS = (
    ("test accuracy (%)", "accuracy", 100),
    ("NLL, scaled", "scaled_nll", 1),
    ("ECE (%)", "ece", 100),
    ("ECE (%), scaled", "scaled_ece", 100),
)
_STYLES = (("#d95f02", "s"), ("#1f77b4", "o"))


def draw(runs: Sequence[Run], path: Path) -> None:
    """A pale dot for every run, and the mean with its standard error."""
    methods = list(by_method(runs))[::-1]
    figure = Figure(figsize=(13, 0.36 * len(methods) + 1.5), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    for axes, (title, name, factor) in zip(panels, _PANELS, strict=True):
        for (corrupted, same), (color, marker) in zip(conditions(runs).items(), _STYLES, strict=True):
            for method, of in by_method(same).items():
                values, height = [factor * getattr(run, name) for run in of], methods.index(method)
                axes.plot(values, [height] * len(values), marker, color=color, alpha=0.25, clip_on=False)
                label = condition(corrupted) if height == 0 else None
                error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
                middle = statistics.fmean(values)
                axes.errorbar(middle, height, xerr=error, fmt=marker, color=color, capsize=3, label=label)
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
