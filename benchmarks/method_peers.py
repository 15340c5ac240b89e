"""The methods that look at the images or take them apart, on a CPU, beside OpenMixup's code for the same batch.

    git clone https://github.com/Westlake-AI/openmixup
    pip install opencv-contrib-python-headless
    python -m benchmarks.method_peers --openmixup openmixup [--threads 2] [--out benchmarks/results] [--quick]

float32, 64x3x224x224. OpenMixup's functions run as they are, with `.cuda()` made to do nothing. They draw once for a
batch, and SaliencyMix looks at one image of it, so its line per sample is OpenCV's saliency of every image and nothing
else. (puzzle_peers.py has PuzzleMix, beside its authors' code.) Everything is measured once a round, in an order drawn
anew. Writes cpu-methods.csv, cpu-methods-targets.csv and cpu-methods-environment.json. Exit
status 1: a target is missed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fusedmix as fm
from benchmarks.common import parser
from benchmarks.cpu_results import keep
from fusedmix.backends import choose
from fusedmix.bench.results import Check, markdown
from fusedmix.bench.timing import Timing, interleave, wall

# How many times as fast as OpenMixup. (SaliencyMix per batch looks at as many images as per sample: that is no target.)
FASTER = {("ResizeMix", "batch"): 5.0, ("ResizeMix", "sample"): 5.0, ("SaliencyMix", "sample"): 10.0}
CLASSES = 1000


class OpenMixup:
    """Functions of a checkout of OpenMixup, whose package need not be installable here."""

    def __init__(self, folder: Path) -> None:
        utils = types.ModuleType("openmixup.models.utils")
        utils.batch_shuffle_ddp = None  # type: ignore[attr-defined]  # of several processes
        for name in ("openmixup", "openmixup.models"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules[utils.__name__] = utils
        self.modules = {}
        for name in ("resizemix", "saliencymix"):
            path = folder / "openmixup" / "models" / "augments" / f"{name}.py"
            spec = importlib.util.spec_from_file_location(f"openmixup_{name}", path)
            assert spec is not None
            assert spec.loader is not None
            self.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(self.modules[name])

    def __call__(self, name: str, *args: Any, **options: Any) -> Any:
        with _on_the_cpu():
            return getattr(self.modules[name], name)(*args, **options)


@contextlib.contextmanager
def _on_the_cpu() -> Iterator[None]:
    kept = Tensor.cuda
    Tensor.cuda = lambda self, *_, **__: self  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        Tensor.cuda = kept  # type: ignore[method-assign]


def saliency_of_all(images: Tensor) -> None:
    """OpenCV's fine-grained saliency of every image, as the authors of SaliencyMix call it for one."""
    import cv2

    for image in images.numpy().transpose(0, 2, 3, 1):
        cv2.saliency.StaticSaliencyFineGrained_create().computeSaliency(image)


def measures(peer: OpenMixup, shape: tuple[int, ...]) -> tuple[list[Timing], dict[int, Any]]:
    """The rows, and what measures each: ours and theirs, one after the other."""
    images = torch.rand(shape)
    labels = torch.randint(CLASSES, shape[:1])

    def module(make: Callable[..., fm.MixTransform], per: str, **options: Any) -> Callable[..., Any]:
        return make(num_classes=CLASSES, per=per, **options)

    resize = wall(lambda: peer("resizemix", images, labels))
    salient = wall(lambda: peer("saliencymix", images, labels))
    pairs: dict[tuple[str, str], tuple[Any, Any]] = {}
    for per in ("batch", "sample"):
        pairs["ResizeMix", per] = wall(functools.partial(module(fm.ResizeMix, per), images, labels)), resize
        in_place = functools.partial(module(fm.SaliencyMix, per, inplace=True), images, labels)
        theirs = salient if per == "batch" else wall(lambda: saliency_of_all(images))
        pairs["SaliencyMix", per] = wall(in_place), theirs

    rows: list[Timing] = []
    calls: dict[int, Any] = {}
    for (method, per), both in pairs.items():
        for provider, call in zip(("fusedmix", "openmixup"), both, strict=True):
            row = Timing("wall", provider, "module", method, per=per, dtype="float32")
            row.backend = choose("cpu") if provider == "fusedmix" else ""
            row.shape = "x".join(map(str, shape))
            calls[len(rows)] = call
            rows.append(row)
    return rows, calls


def targets(rows: list[Timing]) -> list[Check]:
    """How many times as fast as OpenMixup."""
    return [
        Check(
            f"{ours.method} per {ours.per}, faster than OpenMixup",
            theirs.median_us / ours.median_us,
            FASTER[ours.method, ours.per],
            "x",
            True,
        )
        for ours, theirs in zip(rows[::2], rows[1::2], strict=True)
        if (ours.method, ours.per) in FASTER
    ]


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--openmixup", type=Path, required=True, help="a checkout of OpenMixup")
    arguments.add_argument("--threads", type=int, default=2, help="of torch")
    arguments.add_argument("--rounds", type=int, default=15)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    shape = (4, 3, 64, 64) if given.quick else (64, 3, 224, 224)
    rows, calls = measures(OpenMixup(given.openmixup), shape)
    rounds = 2 if given.quick else given.rounds
    interleave(calls, 2)
    times = interleave(calls, rounds)
    for index, row in enumerate(rows):
        row.record(times[index])
    header = ("method", "per", "by", "ms", "p20", "p80")
    table = [
        (r.method, r.per, r.provider, *(f"{t / 1e3:.2f}" for t in (r.median_us, r.p20_us, r.p80_us))) for r in rows
    ]
    print(markdown(header, table))
    return keep(given, "methods", rows, targets(rows))


if __name__ == "__main__":
    sys.exit(main())
