"""Mixing on a GPU, against a vectorised copy, torchvision and torch.compile of the same mathematics.

    python -m benchmarks.gpu_mix [--backends cuda] [--out benchmarks/results] [--commit SHA] [--dry-run]

256x3x224x224 and 512x3x32x32, float32 and bfloat16. Time on the device: several calls in a CUDA graph, over clones of
the batch that outgrow the cache, their data restored before every replay; everything once a round, in an order drawn
anew. Ratios are to the fastest copy of as many bytes in the same run. Before they are timed, plans are applied once and
compared with the reference, modules with torchvision's. Writes <gpu>-mix.csv, <gpu>-targets.csv and
<gpu>-environment.json. Exit status 1: a target is missed or was not measured; 2: there is no GPU. --dry-run: tiny
batches on the CPU.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fusedmix as fm
from benchmarks import peers
from benchmarks.common import (
    RESULTS,
    Check,
    Timing,
    dtype_name,
    environment,
    host_microseconds,
    markdown,
    parser,
    slug,
    targets_table,
    write_csv,
    write_json,
)
from benchmarks.device_timing import extra_memory, finish
from benchmarks.gpu_batch import METHODS, Batch, Entry
from benchmarks.gpu_targets import targets
from fusedmix import backends as fused_backends

LARGE, SMALL = (256, 3, 224, 224), (512, 3, 32, 32)
CLASSES: dict[tuple[int, ...], int] = {LARGE: 1000, SMALL: 100}


def measure_host(device: torch.device, backend: str, loops: int) -> list[Timing]:
    """What calls cost the host, on a batch so small that the device keeps up."""
    tiny = Batch((32, 3, 8, 8), torch.float32, device, 10)
    x, y = tiny.clones.x[0], tiny.y
    plan = tiny.plan("CutMix", "roll", "batch")
    masks = (plan.partner, plan.kind, plan.geometry, plan.value, 2, int(plan.pairing), int(plan.per))
    operators = fused_backends.operators(device.type, backend)
    calls: list[tuple[str, str, str, Callable[[], Any]]] = [
        ("fusedmix", "operator mix_", "CutMix", lambda: operators.mix_(x, *masks)),
        ("fusedmix", "mix_", "CutMix", lambda: fm.mix_(x, plan, backend=backend)),
        ("fusedmix", "mix_labels", "CutMix", lambda: fm.mix_labels(y, plan, num_classes=10, backend=backend)),
    ]
    for method, peer in peers.TORCHVISION.items():
        for sampling in ("host", "device"):
            mix = METHODS[method](num_classes=10, inplace=True, sampling=sampling, backend=backend)
            calls.append(("fusedmix", f"module, sampling={sampling}", method, partial(mix, x, y)))
        calls.append(("torchvision", "module", method, partial(peer(num_classes=10), x, y)))
    rows = []
    for provider, call, method, function in calls:
        row = tiny.row(call, method, measure="host", provider=provider, pairing="roll", per="batch", inplace=True)
        row.backend, row.inplace = (backend, True) if provider == "fusedmix" else ("", False)
        function()
        row.record(host_microseconds(function, loops, finish=lambda: finish(device)))
        rows.append(row)
    return rows


def measure_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, backend: str) -> list[Check]:
    """In place: what a call allocates beside the targets that it returns."""
    x: Tensor = torch.randn(shape, device=device).to(dtype)
    y = torch.randint(CLASSES[shape], (shape[0],), device=device)
    allowed = max(2**20, x.nbytes // 16) / 2**20
    checks = []
    for pairing in ("roll", "flip", "random"):
        mix = fm.MixUp(num_classes=CLASSES[shape], pairing=pairing, per="sample", inplace=True, backend=backend)
        extra = extra_memory(partial(mix, x, y)) - 4 * shape[0] * CLASSES[shape]
        what = f"{backend}: memory in place beside targets, {pairing}, {dtype_name(dtype)} {'x'.join(map(str, shape))}"
        checks.append(Check(what, extra / 2**20, allowed, "MiB"))
    return checks


def run(given: Namespace, device: torch.device) -> tuple[list[Timing], list[Check], list[str]]:
    """All rows and checks, and what there was no time for."""
    deadline = time.monotonic() + given.budget
    rounds, loops = (2, 2) if given.dry_run else (given.rounds, 40)
    rows: list[Timing] = []
    checks: list[Check] = []
    left_out = []
    for shape in (LARGE, SMALL):
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{dtype_name(dtype)} {'x'.join(map(str, shape))}"
            if time.monotonic() > deadline:
                left_out.append(name)
                continue
            batch = Batch((6, 3, 8, 16) if given.dry_run else shape, dtype, device, CLASSES[shape])
            entries: list[Entry] = []
            for backend in given.backends:
                entries += batch.plans(METHODS, backend, labels=shape == SMALL)
                entries += [*batch.out_of_place(backend), *batch.steps(backend), *batch.modules(backend)]
            entries += [*batch.torchvision(), *(batch.compiled() if shape == LARGE else ())]
            found = batch.measure(entries, rounds)
            checks += targets(found, large=shape == LARGE)
            rows += found
            del batch, entries
            if device.type == "cuda":
                torch.cuda.empty_cache()
                for backend in given.backends:
                    checks += measure_memory(shape, dtype, device, backend)
    for backend in given.backends:
        rows += measure_host(device, backend, loops)
    return rows, checks, left_out


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--backends", type=lambda words: words.split(","), help="default: the one that is chosen")
    arguments.add_argument("--rounds", type=int, default=60)
    arguments.add_argument("--budget", type=float, default=150.0, help="seconds after which no shape is begun")
    arguments.add_argument("--dry-run", action="store_true", help="tiny batches on the CPU; writes only to --out")
    given = arguments.parse_args()
    if not given.dry_run and not torch.cuda.is_available():
        print("gpu_mix: torch finds no GPU (--dry-run shows on the CPU that it runs)")
        return 2
    device = torch.device("cpu" if given.dry_run else "cuda")
    given.backends = given.backends or [fused_backends.choose(device.type)]
    rows, checks, left_out = run(given, device)

    env = environment(device, given.commit)
    if given.out is not None or not given.dry_run:
        folder, name = given.out or RESULTS, given.name or ("dry-run" if given.dry_run else slug(env["device"]))
        write_csv(folder / f"{name}-mix.csv", rows, env)
        write_csv(folder / f"{name}-targets.csv", checks, env)
        write_json(folder / f"{name}-environment.json", env)
    header = ("what", "by", "in place", "pairing", "per", "dtype", "shape", "us", "p20", "p80", "x copy")
    print(
        markdown(
            header,
            [
                (
                    f"{r.method}: {r.call}",
                    r.backend or r.provider,
                    "yes" if r.inplace else "no",
                    *(r.pairing, r.per, r.dtype, r.shape),
                    *(f"{t:.2f}" for t in (r.median_us, r.p20_us, r.p80_us)),
                    f"{r.copy_ratio:.2f}" if r.copy_ratio else "host",
                )
                for r in rows
            ],
        )
    )
    print(f"\n{targets_table(checks)}")
    for name in left_out:
        print(f"no time was left for {name}")
    return 0 if given.dry_run or (not left_out and all(check.met for check in checks)) else 1


if __name__ == "__main__":
    sys.exit(main())
