"""Mixing in a DataLoader's workers (`collate_fn`) against mixing on the device, after loading: samples a second.

    python -m benchmarks.data_loader [--device cuda] [--threads 2] [--out benchmarks/results] [--quick]

A dataset of uint8 images in memory, of 32x32 and of 224x224, in batches; 0 and 2 workers, which stay from epoch to
epoch. What comes out is the same for all: float32 images in [0, 1] on the device, and dense targets. Either the batch
is mixed where it is collated (torchvision's idiom, with float images; fusedmix, with uint8 images in place; timm's
FastCollateMixup and ours, with uint8 samples), or it is collated, brought to the device, made float and mixed there.
A measurement is an epoch, its start included; everything once a round, in an order drawn anew. What the collate
functions give, ours and the peers', is compared for the same seeds first; what differs is said and left out, and the
exit status is 1. Writes cpu-data-loader.csv or <gpu>-data-loader.csv, and their environment. Exit status 2: no GPU.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import timm.data
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

import fusedmix as fm
from benchmarks.common import RESULTS, noting, parser
from benchmarks.train_mixers import ALPHAS, TIMM, seed_all
from benchmarks.train_rows import loader_table
from fusedmix.backends import choose
from fusedmix.bench.device import finish
from fusedmix.bench.environment import environment, slug
from fusedmix.bench.results import write_csv, write_json
from fusedmix.bench.timing import Timing, interleave
from fusedmix.integrations import timm as fused_timm

CLASSES = 100
WORKERS = (0, 2)
# side: samples, batch
SIZES = {32: (8192, 128), 224: (512, 64)}
QUICK = {32: (32, 8)}

Batch = tuple[Tensor, Tensor]


@dataclass
class LoaderTiming(Timing):
    """An epoch: the times are those of one sample."""

    how: str = ""
    where: str = ""  # "collate", "device", or "" where nothing is mixed
    workers: int = 0
    batch: int = 0
    samples_per_s: float = 0.0


class Images(Dataset[tuple[Any, int]]):
    """Random uint8 images and classes. Each access copies: timm's FastCollateMixup writes into what it is given."""

    def __init__(self, count: int, side: int) -> None:
        generator = np.random.default_rng(0)
        self._images = generator.integers(0, 256, (count, 3, side, side), dtype=np.uint8)
        self._labels = generator.integers(0, CLASSES, count).tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._images[index].copy(), self._labels[index]


class Collated:
    """A batch of the samples, made float first if asked for, then mixed. A class, so that workers can be given it."""

    def __init__(self, mix: Callable[[Tensor, Tensor], Batch], as_float: bool) -> None:
        self.mix, self.as_float = mix, as_float

    def __call__(self, samples: Sequence[Any]) -> Batch:
        images, labels = default_collate(samples)
        return self.mix(unit(images) if self.as_float else images, labels)


def unit(images: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1]; anything else as it is."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


@dataclass(frozen=True)
class Pipeline:
    """How samples become a mixed batch."""

    how: str
    provider: str
    collate: Callable[[Sequence[Any]], Batch] | None = None
    on_device: Callable[[Tensor, Tensor], Batch] | None = None
    twin: str = ""  # the pipeline of a peer whose batches it must give for the same seed

    @property
    def where(self) -> str:
        return "collate" if self.collate is not None else ("device" if self.on_device is not None else "")

    def finished(self, images: Tensor, labels: Tensor, device: torch.device) -> Batch:
        """What a training step takes, of what the loader gives."""
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        images = unit(images)
        return (images, labels) if self.on_device is None else self.on_device(images, labels)


def pipelines() -> list[Pipeline]:
    theirs = v2.RandomChoice([getattr(v2, name)(alpha=alpha, num_classes=CLASSES) for name, alpha in ALPHAS.items()])

    def ours(**options: Any) -> fm.RandomMix:
        methods = [getattr(fm, name)(alpha=alpha) for name, alpha in ALPHAS.items()]
        return fm.RandomMix(methods, num_classes=CLASSES, **options)

    per_sample = ours(per="sample", sampling="device", inplace=True)
    by_timm = timm.data.Mixup(num_classes=CLASSES, **TIMM)
    fast = timm.data.FastCollateMixup(num_classes=CLASSES, **TIMM)
    return [
        Pipeline("nothing mixed", "torch"),
        Pipeline("torchvision RandomChoice", "torchvision", Collated(theirs, True)),
        Pipeline("fusedmix RandomMix, float", "fusedmix", Collated(ours(), True), twin="torchvision RandomChoice"),
        Pipeline("fusedmix RandomMix, uint8 in place", "fusedmix", Collated(ours(inplace=True), False)),
        Pipeline("timm FastCollateMixup", "timm", fast),
        Pipeline(
            "fusedmix FastCollateMixup",
            "fusedmix",
            fused_timm.FastCollateMixup(num_classes=CLASSES, **TIMM),
            twin="timm FastCollateMixup",
        ),
        Pipeline("torchvision RandomChoice, after loading", "torchvision", on_device=theirs),
        Pipeline("timm Mixup, after loading", "timm", on_device=by_timm),
        Pipeline("fusedmix RandomMix, after loading", "fusedmix", on_device=ours(inplace=True)),
        Pipeline("the same, device, per sample", "fusedmix", on_device=per_sample),
    ]


def disagreement(pipeline: Pipeline, twin: Pipeline, dataset: Images, batch: int) -> str | None:
    """How the batches of two collate functions differ for the same seeds; None: by rounding only."""
    for seed in range(4):
        batches = []
        for each in (pipeline, twin):
            assert each.collate is not None
            seed_all(seed)
            batches.append(each.collate([dataset[i] for i in range(batch)]))
        (images, targets), (their_images, their_targets) = batches
        eps = torch.finfo(torch.float32).eps
        for what, mine, other, allowed in (
            ("images", images, their_images, 0 if images.dtype == torch.uint8 else 4 * eps),
            ("targets", targets, their_targets, 4 * eps),
        ):
            largest = float((mine.double() - other.double()).abs().max())
            if mine.dtype != other.dtype or not largest <= allowed:
                return f"{what} of {pipeline.how} and {twin.how} differ by {largest:.3g} (seed {seed})"
    return None


def measure(
    side: int, samples: int, batch: int, device: torch.device, rounds: int
) -> tuple[list[LoaderTiming], list[str]]:
    """The rows of one size, and what is left out, with the reason."""
    dataset = Images(samples, side)
    found = {pipeline.how: pipeline for pipeline in pipelines()}
    failed: list[str] = []
    calls: dict[tuple[str, int], Callable[[], Callable[[], float]]] = {}
    for pipeline in found.values():
        with noting(failed, f"{pipeline.how}, {side}x{side}"):
            if pipeline.twin:
                differs = disagreement(pipeline, found[pipeline.twin], dataset, batch)
                if differs:
                    raise RuntimeError(differs)
            for workers in WORKERS:
                loader = DataLoader(
                    dataset,
                    batch_size=batch,
                    shuffle=True,
                    num_workers=workers,
                    collate_fn=pipeline.collate,
                    persistent_workers=workers > 0,
                    pin_memory=device.type == "cuda",
                )
                calls[pipeline.how, workers] = epoch(loader, pipeline, device)
    interleave(calls, 1)  # starts the workers
    times = interleave(calls, rounds)
    rows = []
    for (how, workers), microseconds in times.items():
        pipeline = found[how]
        row = LoaderTiming("wall", pipeline.provider, "epoch", how=how, where=pipeline.where, workers=workers)
        row.backend = choose(device.type) if pipeline.provider == "fusedmix" else ""
        row.dtype, row.shape, row.batch = "uint8", f"{samples}x3x{side}x{side}", batch
        row.record([each / samples for each in microseconds])
        row.samples_per_s = 1e6 / row.median_us
        rows.append(row)
    return rows, failed


def epoch(loader: DataLoader[Any], pipeline: Pipeline, device: torch.device) -> Callable[[], Callable[[], float]]:
    """A measurement for `interleave`: microseconds of an epoch."""
    rounds = itertools.count()

    def measure() -> Callable[[], float]:
        seed_all(next(rounds))
        finish(device)
        start = time.perf_counter()
        for images, labels in loader:
            pipeline.finished(images, labels, device)
        finish(device)
        microseconds = (time.perf_counter() - start) * 1e6
        return lambda: microseconds

    return measure


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where batches are brought to")
    arguments.add_argument("--threads", type=int, default=2, help="of torch, in the process that trains")
    arguments.add_argument("--rounds", type=int, default=15)
    given = arguments.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("data_loader: torch finds no GPU (--device cpu mixes on the CPU after loading)")
        return 2
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    rows: list[LoaderTiming] = []
    left_out: list[str] = []
    for side, (samples, batch) in (QUICK if given.quick else SIZES).items():
        found, failed = measure(side, samples, batch, device, 2 if given.quick else given.rounds)
        rows += found
        left_out += failed

    env = environment(device, given.commit)
    if given.out is not None or not given.quick:
        prefix = given.name or ("cpu" if device.type == "cpu" else slug(env["device"]))
        write_csv((given.out or RESULTS) / f"{prefix}-data-loader.csv", rows, env)
        write_json((given.out or RESULTS) / f"{prefix}-data-loader-environment.json", env)
    print(loader_table([asdict(row) for row in rows]))
    for what in left_out:
        print(f"not measured: {what}")
    return 1 if left_out else 0


if __name__ == "__main__":
    sys.exit(main())
