"""The command line: `fusedmix info`, `fusedmix demo`, `fusedmix bench`; also `python -m fusedmix`.

PyTorch is imported by the commands that need it, so that help and errors come at once.
"""

from __future__ import annotations

import argparse
import codecs
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from fusedmix.bench.cases import DTYPES, LAYOUTS, METHODS, PEERS, PERS, product_of, quick_cases, swept_cases
from fusedmix.version import __version__

_INTERRUPTED, _BROKEN_PIPE = 130, 141  # as a shell has them: 128 and the number of the signal
# What is printed where the terminal or the file has no such character.
_ASCII = {"λ": "lambda", "α": "alpha", "µ": "u", "×": "x", "±": "+-", "≥": ">=", "≤": "<=", "–": "-"}


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


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_positive(word) for word in text.split(","))


def _words(*allowed: str) -> Callable[[str], tuple[str, ...]]:
    def words(text: str) -> tuple[str, ...]:
        given = tuple(text.split(","))
        for word in given:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"must be among {', '.join(allowed)}, got {word!r}")
        return given

    return words


# argparse names a type after its function in "invalid ... value"
_positive.__name__ = _seed.__name__ = "int"


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """With the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fusedmix", description="Mix the images and labels of a training batch in one pass."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="{info,demo,bench}")

    commands.add_parser("info", help="versions, GPU, compilers, which backends work here and which is chosen")

    demo = commands.add_parser(
        "demo",
        help="a contact sheet of every method, then training on wrong labels: two to three minutes",
        formatter_class=_Help,
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("fusedmix-demo"),
        metavar="DIR",
        help="folder for the pictures and the table",
    )
    demo.add_argument("--seed", type=_seed, default=0, help="seed of the pictures, and the first of five for training")
    demo.add_argument("--epochs", type=_positive, default=12, metavar="N", help="epochs of each training run")
    demo.add_argument("--skip-training", action="store_true", help="only the contact sheet")

    bench = commands.add_parser(
        "bench",
        help="mixing timed side by side with the peers installed here: table, CSV, plot",
        description="Times whole steps (draws, images, targets) of fusedmix and of the peers installed here, on the "
        "same tensors, after it was shown that they do the same. Without an axis of its own: every method, size and "
        "number of draws, then one other axis after the other. With any: all combinations of the given values.",
        formatter_class=_Help,
    )
    bench.add_argument("--quick", action="store_true", help="small batches; ends within a minute")
    bench.add_argument("--out", type=Path, default=Path("fusedmix-bench"), metavar="DIR", help="folder for the results")
    bench.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if torch finds one")
    bench.add_argument("--threads", type=_positive, metavar="N", help="of torch, on the CPU; default: torch's choice")
    bench.add_argument("--rounds", type=_positive, metavar="N", help="default: 3 if --quick, else 9")
    bench.add_argument("--commit", help="of the checkout, where there is no .git to ask")
    bench.add_argument(
        "--peers", type=_words(*PEERS), metavar="A,B", help=f"of {','.join(PEERS)}; --quick: not torch.compile"
    )
    bench.add_argument("--methods", type=_words(*METHODS), metavar="A,B", help=f"of {','.join(METHODS)}")
    bench.add_argument("--per", type=_words(*PERS), metavar="A,B", help=f"of {','.join(PERS)}")
    bench.add_argument("--sizes", type=_numbers, metavar="N,M", help="sides of the square images")
    bench.add_argument("--batches", type=_numbers, metavar="N,M", help="samples; default: by the size")
    bench.add_argument("--dtypes", type=_words(*DTYPES), metavar="A,B", help=f"of {','.join(DTYPES)}")
    bench.add_argument("--layouts", type=_words(*LAYOUTS), metavar="A,B", help=f"of {','.join(LAYOUTS)}")
    bench.add_argument("--classes", type=_numbers, metavar="N,M", help="numbers of classes")
    bench.add_argument("--backward", action="store_true", help="the gradient of the images too")
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
    _make_folder(parser, args.out)
    demo.run(args.out, seed=args.seed, epochs=args.epochs, skip_training=args.skip_training)
    return 0


def _bench(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the profiler warns of memory that is older than itself
    import torch

    from fusedmix import bench

    if missing := bench.missing_packages():
        return _fail("bench", f'{", ".join(missing)} not installed: pip install "fusedmix[bench]"')
    if args.device == "cuda" and not torch.cuda.is_available():
        return _fail("bench", "--device cuda: torch finds no GPU")
    if args.threads:
        torch.set_num_threads(args.threads)
    axes = {
        "method": args.methods,
        "per": args.per,
        "size": args.sizes,
        "batch": args.batches,
        "dtype": args.dtypes,
        "layout": args.layouts,
        "classes": args.classes,
        "backward": (True,) if args.backward else None,
    }
    given = {name: values for name, values in axes.items() if values}
    if args.quick and given:
        parser.error("argument --quick: it has cases of its own, and excludes the axes")
    _make_folder(parser, args.out)
    cases = list(product_of(given)) if given else quick_cases() if args.quick else swept_cases()
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    # torch.compile takes seconds for every case.
    peers = args.peers or [peer for peer in PEERS if not (args.quick and peer == "torch.compile")]
    rounds = args.rounds or (3 if args.quick else 9)
    options = {"device": device, "peers": peers, "rounds": rounds, "quick": args.quick, "commit": args.commit}
    return 0 if bench.run(args.out, cases, **options) else 1


def _make_folder(parser: argparse.ArgumentParser, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # can it be written to?
            pass
    except OSError as error:
        parser.error(f"argument --out: cannot use {folder} as a folder: {error.strerror}")


def _fail(command: str, message: str) -> int:
    print(f"fusedmix {command}: {message}", file=sys.stderr)
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    codecs.register_error("fusedmix", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="fusedmix")
    try:
        status = _run(argv)
        sys.stdout.flush()  # here, where a pipe that nobody reads any more can be met quietly
    except KeyboardInterrupt:
        print("\nfusedmix: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it exits
        return _BROKEN_PIPE
    return status


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    from fusedmix.backends import BackendError

    try:
        if args.command == "info":
            return _info()
        return _demo(parser, args) if args.command == "demo" else _bench(parser, args)
    except BackendError as error:  # FUSEDMIX_BACKEND asks for what cannot run here
        return _fail(args.command, str(error))


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    return "".join(_ASCII.get(character, "?") for character in lost), error.end


if __name__ == "__main__":
    sys.exit(main())
