"""What the benchmarks share: where results are kept, the arguments, and how what fails is noted."""

from __future__ import annotations

import contextlib
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"


def parser(description: str | None) -> ArgumentParser:
    """The arguments that every benchmark takes."""
    made = ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("--commit", help="of the checkout, where there is no .git to ask")
    made.add_argument("--out", type=Path, help="the folder that result files are written to")
    made.add_argument("--name", help="what result files begin with, instead of the device")
    made.add_argument("--quick", action="store_true", help="tiny batches and few repeats: shows that it runs")
    return made


@contextlib.contextmanager
def noting(failed: list[str], what: str) -> Iterator[None]:
    """Notes an error in place of raising it: one backend or peer that is broken stops no other."""
    try:
        yield
    except Exception as error:
        failed.append(f"{what}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
