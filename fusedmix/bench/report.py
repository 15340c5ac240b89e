"""The table and the picture of a sweep, from its rows or from the CSV they were written to."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fusedmix.bench.cases import PEERS, Case
from fusedmix.bench.results import markdown
from fusedmix.bench.sweep import Row
from fusedmix.bench.timing import Timing

BUSY = 2.0  # between the 20th and the 80th percentile of the times of a call: something else was running
_PARSE: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float, "bool": lambda text: text == "True"}


def read(path: Path, kind: type[Any] = Row) -> list[Any]:
    """The rows of a CSV, dataclasses of one kind, without its columns of the environment."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [kind(**{field.name: _PARSE[str(field.type)](line[field.name]) for field in fields(kind)}) for line in lines]


def by_case(rows: Iterable[Row]) -> dict[Case, list[Row]]:
    """The rows of each case, in their order."""
    found: dict[Case, list[Row]] = {}
    for row in rows:
        found.setdefault(Case(**{field.name: getattr(row, field.name) for field in fields(Case)}), []).append(row)
    return found


def table(rows: Sequence[Row]) -> str:
    """A line for each case: ours in milliseconds and copies of as many bytes; peers as multiples of ours in the same
    place (out of place where they can do no other). Times that vary as they do on a busy machine are marked."""
    peers = [peer for peer in PEERS if any(row.provider == peer for row in rows)]
    header = ("case", "in place, ms", "× copy", "out of place, ms", "× copy", *peers)
    lines = []
    for case, of_case in by_case(rows).items():
        ours = {place: _ours(of_case, place) for place in (True, False)}
        cells: list[str] = [str(case)]
        for place in (True, False):
            row = ours[place]
            cells += [f"{milliseconds(row)}{mark(row)}", f"{row.copy_ratio:.2f}"] if row else ["", ""]
        lines.append((*cells, *(_beside(of_case, peer, ours) for peer in peers)))
    return markdown(header, lines) + busy(rows)


def milliseconds(row: Row | Timing) -> str:
    """The median, and the 20th and the 80th percentile."""
    median, low, high = (us / 1e3 for us in (row.median_us, row.p20_us, row.p80_us))
    digits = 1 if median >= 10 else 2 if median >= 1 else 3
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def busy(rows: Sequence[Row | Timing]) -> str:
    """What stands below a table with marked times, or nothing."""
    marked = sum(mark(row) != "" for row in rows)
    if not marked:
        return ""
    return (
        f"\n\n(busy): {marked} of {len(rows)} measurements vary by more than a factor of {BUSY:g} between their "
        "20th and 80th percentile. Something else was running; measure again on a quiet machine."
    )


def mark(row: Row | Timing) -> str:
    """ " (busy)" if the times of a row vary too much to be believed."""
    return " (busy)" if row.p80_us > BUSY * row.p20_us > 0 else ""


def _ours(rows: Sequence[Row], inplace: bool) -> Row | None:
    """The row of the chosen backend: the first."""
    found = [row for row in rows if row.provider == "fusedmix" and row.inplace == inplace]
    return found[0] if found and not found[0].failed else None


def _beside(rows: Sequence[Row], peer: str, ours: dict[bool, Row | None]) -> str:
    """How many times as long a peer takes; no ratio where it was not shown to do the same, or did not run."""
    found = sorted((row for row in rows if row.provider == peer), key=lambda row: row.inplace)
    if not found:
        return ""
    row, beside = found[0], ours[found[0].inplace]
    if row.failed:
        return "differs" if row.failed.startswith("AssertionError") else "failed"
    if beside is None:
        return ""
    return f"{row.median_us / beside.median_us:.1f}×{mark(row)}"


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """A panel for each size of the base cases, bars for each method: time in copies of as many bytes."""
    from matplotlib.figure import Figure

    base = [(case, of_case) for case, of_case in by_case(rows).items() if _is_base(case)]
    sizes = sorted({case.size for case, _ in base})
    names = ["fusedmix, in place", "fusedmix", *(peer for peer in PEERS if any(row.provider == peer for row in rows))]
    figure = Figure(figsize=(11, 1 + 3.2 * len(sizes)), layout="constrained")
    figure.suptitle(title)
    for n, size in enumerate(sizes):
        axes = figure.add_subplot(len(sizes), 1, n + 1)
        cases = [(case, of_case) for case, of_case in base if case.size == size]
        width = 0.8 / len(names)
        for k, name in enumerate(names):
            bars = [(at, _ratio(of_case, name)) for at, (_, of_case) in enumerate(cases)]
            drawn = [(at + (k - len(names) / 2 + 0.5) * width, value) for at, value in bars if value is not None]
            if drawn:
                axes.bar([at for at, _ in drawn], [value for _, value in drawn], width, label=name)
            else:
                axes.bar([0.0], [0.0], width, label=name)  # one colour for one name in every panel
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_yscale("log")
        axes.set_ylabel("time, in copies of as many bytes")
        axes.set_xticks(range(len(cases)), [f"{case.method}\nper {case.per}" for case, _ in cases], fontsize=8)
        axes.set_title("x".join(map(str, cases[0][0].shape)), fontsize=10)
        if n == 0:
            axes.legend(fontsize=8, ncols=4)
    figure.savefig(path, dpi=110)


def _is_base(case: Case) -> bool:
    return (case.dtype, case.layout, case.backward) == ("float32", "contiguous", False)


def _ratio(rows: Sequence[Row], name: str) -> float | None:
    if name.startswith("fusedmix"):
        row = _ours(rows, name.endswith("in place"))
        return row.copy_ratio if row else None
    found = [row for row in rows if row.provider == name and not row.failed]
    return min(row.copy_ratio for row in found) if found else None
