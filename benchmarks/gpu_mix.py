"""Mixing on a GPU, against a vectorised copy, torchvision and torch.compile of the same mathematics.

    python -m benchmarks.gpu_mix [--backends cuda,triton] [--out benchmarks/results] [--commit SHA] [--dry-run]

256x3x224x224 and 512x3x32x32, and label losses of 256x21841 (gpu_loss.py), float32 and bfloat16; as far as time allows
also channels_last, uint8, 1024x3x224x224 and 8192x3x32x32. Time on the device:
several calls in a CUDA graph, over clones of the batch that outgrow the cache, their data restored before every replay;
everything once a round, in an order drawn anew. Ratios are to the fastest copy of as many bytes in the same run.
Before it is timed, everything is compared: plans, steps, modules, adjoints and peers with the reference, copies with
what they copy; what differs or fails then, or in a backend's first calls, is left out and said. When all of a batch is
timed, the kernels that each call launches are written beside it. Writes <gpu>-mix.csv, <gpu>-targets.csv and
<gpu>-environment.json, anew after every batch. Exit status 1: a target is missed or was not measured; 2: there is no
GPU. --dry-run: tiny batches on the CPU.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fusedmix as fm
from benchmarks import gpu_first, gpu_loss, peers
from benchmarks.common import RESULTS, noting, parser
from benchmarks.gpu_batch import METHODS, Batch, Entry
from benchmarks.gpu_targets import host_targets, rest_targets, targets
from fusedmix import backends as fused_backends
from fusedmix.bench.device import extra_memory, finish
from fusedmix.bench.environment import environment, slug
from fusedmix.bench.results import Check, dtype_name, markdown, targets_table, write_csv, write_json
from fusedmix.bench.timing import Timing, host_microseconds

LARGE, SMALL = (256, 3, 224, 224), (512, 3, 32, 32)
HUGE, MANY = (1024, 3, 224, 224), (8192, 3, 32, 32)  # of which one block cannot hold a wide column
DRY = (6, 3, 8, 16)
FMIX_MEMORY = 24  # MiB, while masks are made
CLASSES: dict[tuple[int, ...], int] = {LARGE: 1000, SMALL: 100, HUGE: 1000, MANY: 100}
FLOATS = (torch.float32, torch.bfloat16)
# Shape, dtype, whether it is channels_last; the rest, in the order of what is asked first, as far as time allows.
FIRST = [(shape, dtype, False) for shape in (LARGE, SMALL) for dtype in FLOATS]
REST = [
    *((LARGE, dtype, True) for dtype in FLOATS),
    (LARGE, torch.uint8, False),
    *((shape, dtype, False) for shape in (HUGE, MANY) for dtype in FLOATS),
]


def measure_host(device: torch.device, backends: list[str], loops: int) -> tuple[list[Timing], list[str]]:
    """What calls cost the host, on a batch so small that the device keeps up; and what could not be measured."""
    tiny = Batch((32, 3, 8, 8), torch.float32, device, 10, backends)
    x, y = tiny.clones.x[0], tiny.y
    plan = tiny.plan("CutMix", "roll", "batch")
    masks = (plan.partner, plan.masks, int(plan.families), 2, int(plan.pairing), int(plan.per))
    calls: list[tuple[str, str, str, Callable[[], Any], Callable[[], None]]] = []
    for backend in backends:
        operators = fused_backends.operators(device.type, backend)
        check = partial(tiny.as_reference, plan, backend, labels=True)  # mix_ is the operator and its checks
        labels = partial(fm.mix_labels, y, plan, num_classes=10, backend=backend)
        calls += [
            (backend, "operator mix_", "CutMix", partial(operators.mix_, x, *masks), check),
            (backend, "mix_", "CutMix", partial(fm.mix_, x, plan, backend=backend), check),
            (backend, "mix_labels", "CutMix", labels, check),
        ]
        for method in peers.TORCHVISION:
            for sampling in ("host", "device"):
                mix = METHODS[method](num_classes=10, inplace=True, sampling=sampling, backend=backend)
                check = partial(tiny.as_its_plan, mix)
                calls.append((backend, f"module, sampling={sampling}", method, partial(mix, x, y), check))
    for method, peer in peers.TORCHVISION.items():
        calls.append(("", "module", method, partial(peer(num_classes=10), x, y), partial(tiny.as_torchvision, method)))
    rows = []
    for backend, call, method, function, check in calls:
        row = tiny.row(
            call, method, measure="host", backend=backend, pairing="roll", per="batch", inplace=bool(backend)
        )
        row.provider = "fusedmix" if backend else "torchvision"
        with noting(tiny.failed, f"{backend or row.provider}: {call} {method}, time on the host"):
            check()
            function()
            row.record(host_microseconds(function, loops, finish=lambda: finish(device)))
            rows.append(row)
    return rows, tiny.failed


def measure_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, backend: str) -> list[Check]:
    """In place: what a call allocates beside the targets that it returns."""
    x: Tensor = torch.randn(shape, device=device).to(dtype)
    y = torch.randint(CLASSES[shape], (shape[0],), device=device)
    allowed = max(2**20, x.nbytes // 16) / 2**20
    checks = []
    for pairing in ("roll", "flip", "random"):
        mix = fm.MixUp(num_classes=CLASSES[shape], pairing=pairing, per="sample", inplace=True, backend=backend)
        extra = extra_memory(partial(mix, x, y), device) - 4 * shape[0] * CLASSES[shape]
        what = f"{backend}: memory in place beside targets, {pairing}, {dtype_name(dtype)} {'x'.join(map(str, shape))}"
        checks.append(Check(what, extra / 2**20, allowed, "MiB"))
    return checks


def measure_fmix_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, backend: str) -> Check:
    """In place, the masks made anew: what a call allocates beside its targets."""
    x: Tensor = torch.randn(shape, device=device).to(dtype)
    y = torch.randint(CLASSES[shape], (shape[0],), device=device)
    allowed = max(2**20, x.nbytes // 16) / 2**20
    mix = fm.FMix(num_classes=CLASSES[shape], per="sample", inplace=True, sampling="device", backend=backend)
    extra = extra_memory(partial(mix, x, y), device) - 4 * shape[0] * CLASSES[shape]
    bits = shape[0] * shape[2] * shape[3] / 8 / 2**20
    what = f"{backend}: memory of FMix in place beside targets, {dtype_name(dtype)} {'x'.join(map(str, shape))}"
    return Check(what, extra / 2**20, allowed + FMIX_MEMORY + bits, "MiB")


def measure_numpy(size: tuple[int, ...], rounds: int) -> Timing:
    """FMix's mask as it is made on a CPU: normals, an FFT and a sort by NumPy, one mask after the other."""
    import numpy as np

    from fusedmix.bench.fmix_numpy import mask

    generator = np.random.default_rng(0)

    def one() -> Any:
        return mask(*size, 0.5, generator)

    if not abs(one().sum() - 0.5 * math.prod(size)) < 1:
        raise RuntimeError("NumPy's mask has not as many ones as it should")
    row = Timing("host", "numpy", "mask", "FMix", per="sample", dtype="float32", shape="x".join(map(str, size)))
    row.record(host_microseconds(one, rounds, calls=1))
    return row


def entries_of(batch: Batch, shape: tuple[int, ...], first: bool) -> list[Entry]:
    """What is measured on a batch: everything on those that come first, of the others what their shape may change."""
    if not first:
        plans = batch.plans(methods=("MixUp", "CutMix", "GMix"), pairings=("roll", "random"))
        return [*plans, *batch.out_of_place(methods=("MixUp",))]
    found = [*batch.plans(labels=shape == SMALL), *batch.out_of_place(), *batch.steps(), *batch.modules()]
    if shape == LARGE:
        found += [*batch.adjoints(), *batch.fmix(), *batch.compiled()]
    return [*found, *batch.torchvision()]


@dataclass
class Report:
    """What has been measured so far."""

    rows: list[Timing] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # and why


def run(given: Namespace, device: torch.device, report: Report, write: Callable[[], None]) -> None:
    """Measures everything, what is asked first before the rest, and has the report written whenever a part is done."""
    deadline = math.inf if given.dry_run else time.monotonic() + given.budget
    rounds, loops = (1, 2) if given.dry_run else (given.rounds, 40)
    first_shape = DRY if given.dry_run else LARGE
    rows, broken = gpu_first.measure(given.backends, device, first_shape)
    report.rows += rows
    report.left_out += [f"{backend}: {reason}" for backend, reason in broken.items()]
    backends = [backend for backend in given.backends if backend not in broken]

    def part(name: str, measure: Callable[[], None]) -> None:
        if time.monotonic() > deadline:
            report.left_out.append(f"{name}: no time was left")
            return
        with noting(report.left_out, name):
            measure()
        write()
        finish(device)  # an error where a kernel has taken the device with it: nothing else can be measured then

    def host() -> None:
        found, failed = measure_host(device, backends, loops)
        report.left_out += failed
        report.checks += host_targets(found)
        report.rows += [*found, measure_numpy(first_shape[2:], rounds)]

    def mixing(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, first: bool, name: str) -> None:
        batch = Batch(DRY if given.dry_run else shape, dtype, device, CLASSES[shape], backends, channels_last)
        try:
            found = batch.measure(entries_of(batch, shape, first), rounds, deadline)
        finally:
            report.left_out += batch.failed
        report.rows += found
        if first:
            report.checks += targets(found, large=shape == LARGE)
        else:
            report.checks += rest_targets(found)
        del batch
        if device.type != "cuda":
            return
        torch.cuda.empty_cache()
        for backend in backends if first else ():
            with noting(report.left_out, f"{backend}: memory, {name}"):
                report.checks += measure_memory(shape, dtype, device, backend)
            with noting(report.left_out, f"{backend}: memory of FMix, {name}"):
                report.checks.append(measure_fmix_memory(shape, dtype, device, backend))

    def losses() -> None:
        found, beside, failed = gpu_loss.run(backends, device, given.dry_run, rounds)
        report.rows += found
        report.checks += beside
        report.left_out += failed

    part("time on the host", host)  # before anything is profiled, which may make launches slower
    for shape, dtype, channels_last in (*FIRST, *REST):
        first = (shape, dtype, channels_last) in FIRST
        name = f"{dtype_name(dtype)} {'x'.join(map(str, shape))}{', channels_last' if channels_last else ''}"
        part(name, partial(mixing, shape, dtype, channels_last, first, name))
        if (shape, dtype, channels_last) == FIRST[-1]:
            part("label losses", losses)


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--backends", type=lambda words: words.split(","), help="default: cuda,triton")
    arguments.add_argument("--rounds", type=int, default=60)
    arguments.add_argument("--budget", type=float, default=150.0, help="seconds after which nothing is begun")
    arguments.add_argument("--dry-run", action="store_true", help="tiny batches on the CPU; writes only to --out")
    given = arguments.parse_args()
    if not given.dry_run and not torch.cuda.is_available():
        print("gpu_mix: torch finds no GPU (--dry-run shows on the CPU that it runs)")
        return 2
    device = torch.device("cpu" if given.dry_run else "cuda")
    given.backends = given.backends or ([fused_backends.choose(device.type)] if given.dry_run else ["cuda", "triton"])
    env = environment(device, given.commit)
    report = Report()

    def write() -> None:
        if given.out is not None or not given.dry_run:
            folder, name = given.out or RESULTS, given.name or ("dry-run" if given.dry_run else slug(env["device"]))
            write_csv(folder / f"{name}-mix.csv", report.rows, env)
            write_csv(folder / f"{name}-targets.csv", report.checks, env)
            write_json(folder / f"{name}-environment.json", env)

    run(given, device, report, write)
    header = ("what", "by", "in place", "pairing", "per", "dtype", "shape", "layout", "us", "p20", "p80", "x copy")
    print(
        markdown(
            header,
            [
                (
                    f"{r.method}: {r.call}",
                    r.backend or r.provider,
                    "yes" if r.inplace else "no",
                    *(r.pairing, r.per, r.dtype, r.shape, r.layout),
                    *(f"{t:.2f}" for t in (r.median_us, r.p20_us, r.p80_us)),
                    f"{r.copy_ratio:.2f}" if r.copy_ratio else r.measure,
                )
                for r in report.rows
            ],
        )
    )
    print(f"\n{targets_table(report.checks)}")
    for what in report.left_out:
        print(f"not measured: {what}")
    return 0 if given.dry_run or (not report.left_out and all(check.met for check in report.checks)) else 1


if __name__ == "__main__":
    sys.exit(main())
