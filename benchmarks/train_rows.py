"""The rows of train_step, and the tables of train_step and data_loader."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusedmix.bench import report
from fusedmix.bench.results import markdown
from fusedmix.bench.timing import Timing, quantile


@dataclass
class StepTiming(Timing):
    """A training step (`call`: "step", "graph step"), or its mixing alone ("mixing")."""

    model: str = ""
    mixer: str = ""
    threads: int = 0
    # Of the step, what it takes more than the step that does not mix: medians and quantiles over the rounds, each of
    # which measures both.
    mixing_share: float = math.nan
    share_p20: float = math.nan
    share_p80: float = math.nan

    def record_share(self, steps: Sequence[float], without: Sequence[float]) -> None:
        """From the times of both in every round."""
        shares = [1 - none / step for step, none in zip(steps, without, strict=True)]
        self.mixing_share = statistics.median(shares)
        self.share_p20, self.share_p80 = (quantile(shares, q) for q in (0.2, 0.8))


def step_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of one model: its steps, what mixing adds to them, and mixing alone. Values may be texts, as a CSV has them."""
    alone = {row["mixer"]: row for row in rows if row["call"] == "mixing"}

    def milliseconds(row: Mapping[str, Any]) -> str:
        timing = _timing(row)
        return f"{report.milliseconds(timing)}{report.mark(timing)}"

    lines = []
    for row in rows:
        if row["call"] == "mixing":
            continue
        name = row["mixer"] + (", as a CUDA graph" if row["call"] == "graph step" else "")
        shares = [float(row[key]) for key in ("mixing_share", "share_p20", "share_p80")]
        share = "" if math.isnan(shares[0]) else f"{shares[0]:.1%} ({shares[1]:.1%} to {shares[2]:.1%})"
        mixing = alone.get(row["mixer"]) if row["call"] == "step" else None
        direct = f"{float(mixing['median_us']) / float(row['median_us']):.1%}" if mixing else ""
        lines.append((name, milliseconds(row), share, milliseconds(mixing) if mixing else "", direct))
    header = ("mixing", "step, ms", "of the step, by difference", "mixing alone, ms", "of the step")
    return markdown(header, lines)


def _timing(row: Mapping[str, Any]) -> Timing:
    """The times of a row, which may be texts."""
    times = {name: float(row[name]) for name in ("median_us", "p20_us", "p80_us")}
    return Timing(row["measure"], row["provider"], row["call"], **times)


def loader_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Samples a second: a line for each way to mix, a column for each size and number of workers."""
    columns = list(dict.fromkeys((row["shape"], row["workers"]) for row in rows))
    rates = {(row["how"], row["shape"], row["workers"]): row for row in rows}

    def cell(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return ""
        middle, low, high = (1e6 / float(row[f"{name}_us"]) for name in ("median", "p80", "p20"))
        return f"{middle:.0f} ({low:.0f} to {high:.0f}){report.mark(_timing(row))}"

    lines = []
    for how, where in dict.fromkeys((row["how"], row["where"]) for row in rows):
        lines.append((how, where, *(cell(rates.get((how, *column))) for column in columns)))
    sides = [shape.partition("x3x")[2].replace("x", "×") for shape, _ in columns]
    heads = [f"{side}, {workers} workers" for side, (_, workers) in zip(sides, columns, strict=True)]
    return markdown(("samples a second", "mixed in", *heads), lines)
