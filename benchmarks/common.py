"""What the benchmarks share: where results are kept, and the arguments."""

from __future__ import annotations

from argparse import ArgumentParser
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
