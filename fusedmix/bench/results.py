"""Targets, tables, and the files that results go to."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fusedmix.bench.environment import ENVIRONMENT


@dataclass
class Check:
    """A target and what was measured."""

    what: str
    value: float
    limit: float
    unit: str  # "x copy", "us", "MiB", ...
    at_least: bool = False  # else at most
    met: bool = False

    def __post_init__(self) -> None:
        self.met = self.value >= self.limit if self.at_least else self.value <= self.limit

    def row(self) -> tuple[str, str, str, str]:
        return (
            self.what,
            f"{self.value:.3g} {self.unit}",
            f"{'≥' if self.at_least else '≤'} {self.limit:.3g}",
            "pass" if self.met else "FAIL",
        )


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def targets_table(checks: Sequence[Check]) -> str:
    """All targets, and how many are met."""
    met = sum(check.met for check in checks)
    table = markdown(("target", "measured", "limit", ""), [check.row() for check in checks])
    return f"{table}\n\n{met} of {len(checks)} targets met"


def write_csv(path: Path, rows: Sequence[Any], env: Mapping[str, Any]) -> None:
    """A file of rows, dataclasses of one kind, each with the environment."""
    names = [field.name for field in fields(rows[0])] if rows else []
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names, *ENVIRONMENT])
        for row in rows:
            values = [f"{v:.6g}" if isinstance(v, float) else v for v in asdict(row).values()]
            writer.writerow([*values, *(env[name] for name in ENVIRONMENT)])


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
