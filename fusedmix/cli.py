"""The command line: `fusedmix info`, `fusedmix demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fusedmix.backends import BackendError


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**31:
        raise argparse.ArgumentTypeError(f"must lie in [0, 2^31), got {number}")
    return number


# argparse names a type after its function in "invalid ... value"
_positive.__name__ = _seed.__name__ = "int"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fusedmix", description="Mix the images and labels of a training batch in one pass."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{info,demo}")

    commands.add_parser("info", help="versions, GPU, compilers, which backends work here and which is chosen")

    demo = commands.add_parser(
        "demo",
        help="mix photographs with every method into a contact sheet, then compare short training runs",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("fusedmix-demo"),
        metavar="DIR",
        help="folder for the pictures and the table",
    )
    demo.add_argument("--seed", type=_seed, default=0, help="seed of the contact sheet and first seed of the training")
    demo.add_argument("--epochs", type=_positive, default=12, metavar="N", help="epochs of each training run")
    demo.add_argument("--skip-training", action="store_true", help="only the contact sheet")
    return parser


def _info() -> int:
    from fusedmix import info

    print(info.report())
    return 0


def _demo(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from fusedmix import demo

    missing = demo.missing_packages()
    if missing:
        return _fail("demo", f'{", ".join(missing)} not installed: pip install "fusedmix[demo]"')
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: cannot use {args.out} as a folder: {error.strerror}")
    demo.run(args.out, seed=args.seed, epochs=args.epochs, skip_training=args.skip_training)
    return 0


def _fail(command: str, message: str) -> int:
    print(f"fusedmix {command}: {message}", file=sys.stderr)
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        return _info() if args.command == "info" else _demo(parser, args)
    except BackendError as error:  # FUSEDMIX_BACKEND asks for what cannot run here
        return _fail(args.command, str(error))


if __name__ == "__main__":
    sys.exit(main())
