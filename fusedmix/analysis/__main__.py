"""The command line: python -m fusedmix.analysis examples|coefficients|moons|designs|unbounded --out DIR [--quick]."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fusedmix import demo
from fusedmix.backends import BackendError
from fusedmix.bench.environment import environment
from fusedmix.bench.results import write_csv

_FIGURES = {
    "examples": "Figure 3: photographs mixed by every method over λ",
    "coefficients": "Figure 4: the regularisation coefficients a(d), Monte Carlo beside exact and printed forms",
    "moons": "Figure 1: the mixed loss and its second-order approximation over training, on two moons",
    "designs": "Beside Figure 4: masks found for the coefficients that are wanted, and what is measured of them",
    "unbounded": "Beside Figure 2: the mixed loss and its approximation for λ outside [0, 1], on two moons",
}
# Where a figure is that is drawn, printed and written from its rows.
_MODULES = {"coefficients": "curves", "moons": "moons", "designs": "design_curves", "unbounded": "unbounded"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fusedmix.analysis",
        description="The figures of Park et al., NeurIPS 2022, as a picture, a CSV and a table each.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(_FIGURES) + "}")
    for name, figure in _FIGURES.items():
        command = commands.add_parser(name, help=figure, description=figure + ".")
        command.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help="folder for the picture and the CSV"
        )
        command.add_argument("--quick", action="store_true", help="coarse, in seconds")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Draw one figure; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    missing = demo.missing_packages()
    if missing:
        return _fail(args.command, f'{", ".join(missing)} not installed: pip install "fusedmix[demo]"')
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: cannot use {args.out} as a folder: {error.strerror}")
    picture, numbers = (args.out / f"{args.command}.{kind}" for kind in ("png", "csv"))
    print(f"{_FIGURES[args.command]}\n")
    try:
        if args.command == "examples":
            from fusedmix.analysis import examples

            shown, mixtures = examples.compute(quick=args.quick)
            examples.draw(mixtures, picture)
            print(examples.table(shown))
            write_csv(numbers, shown, environment(torch.device("cpu")))
        else:
            figure = importlib.import_module(f"fusedmix.analysis.{_MODULES[args.command]}")
            found = figure.compute(quick=args.quick)
            figure.draw(found, picture)
            print(figure.table(found))
            write_csv(numbers, found, environment(torch.device("cpu")))
    except BackendError as error:  # FUSEDMIX_BACKEND asks for what cannot run here
        return _fail(args.command, str(error))
    print(f"\nWritten: {picture}, {numbers}")
    return 0


def _fail(command: str, message: str) -> int:
    print(f"fusedmix.analysis {command}: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
