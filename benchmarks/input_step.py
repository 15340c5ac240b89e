"""From bytes to a mixed, normalised batch: everything that a training does between its loader and its model.

    python -m benchmarks.input_step [--device cuda] [--threads 2] [--out benchmarks/results] [--quick]

Random uint8 images and labels that are there already, 64x3x224x224 on a CPU and 256x3x224x224 on a GPU, become
normalised images in float32 or bfloat16, contiguous or channels_last, mixed by MixUp, CutMix or not at all, in one case
flipped and erased before, and dense targets of 1000 classes:

    fusedmix       a module with finish=, by every backend there is; fm.finish where nothing is mixed
    torchvision    ToDtype, Normalize, RandomErasing, MixUp or CutMix, then the dtype and the layout
    timm           PrefetchLoader and Mixup, which pairs by a flip; and by one changed import those of
                   fusedmix.integrations.timm
    torch.compile  one function of bytes, labels and what was drawn

Before it is timed each is compared: who differs, or fails, has no figures, and the exit status is 1. Batches rotate
over copies that outgrow the last cache. Everything is timed once a round, in an order drawn anew: by the wall clock on
a CPU; on a GPU in CUDA graphs, or eagerly what cannot be captured ("device, eager"). A bar before each case shows how
many are done, how long that took, and how long the rest will take.

How to read the table: images a second of ours, then milliseconds of the batch, then the same in copies of as many bytes
(each byte read once, each number of the new batch written once); of the others images a second, and in brackets how
many times as long as ours they take. "(busy)" marks times that vary by more than a factor of two. Writes
cpu-input-step.csv or <gpu>-input-step.csv, their targets and their environment, anew after every case. Exit status 1
also if a target is missed; 2: there is no GPU. --quick: tiny batches, and torch.compile traces without compiling.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import input_peers
from benchmarks.common import RESULTS, noting, parser
from benchmarks.input_rows import CASES, PEERS, QUICK, Case, InputTiming, input_table, row_of, targets
from fusedmix.bench import device as on_device
from fusedmix.bench import progress
from fusedmix.bench.contenders import backends_for, missing
from fusedmix.bench.device import Clones, Replays
from fusedmix.bench.environment import environment, slug
from fusedmix.bench.results import targets_table, write_csv, write_json
from fusedmix.bench.sweep import copies_of
from fusedmix.bench.timing import interleave

BATCHES = {"cpu": 64, "cuda": 256}
SIDE = 224
SECONDS = 0.1  # that one measurement on a CPU may take


def measure(case: Case, device: torch.device, given: Namespace, left_out: list[str]) -> list[InputTiming]:
    """The rows of a case, copies of as many bytes last. What fails beside them is noted in `left_out`."""
    torch.compiler.reset()  # the same function is compiled for every case: past eight torch.compile gives up
    batch, side = (8, 16) if given.quick else (BATCHES[device.type], SIDE)
    seconds, rounds = (0.01, 2) if given.quick else (SECONDS, given.rounds)
    nhwc = case.input_format == "NHWC"
    clones = Clones((batch, side, side, 3) if nhwc else (batch, 3, side, side), torch.uint8, device)
    y = torch.randint(input_peers.CLASSES, (batch,), device=device)
    floor = clones.bytes * (1 + input_peers.dtype_of(case).itemsize)
    about = {"shape": f"{batch}x3x{side}x{side}", "bytes": floor}
    rows: list[InputTiming] = []
    starts: dict[int, Callable[[], Callable[[], float]]] = {}
    steps: list[tuple[InputTiming, Callable[[], Any]]] = []
    for contender in input_peers.contenders(case, device, backends_of(device), traced=given.quick):
        row = row_of(case, "", contender.provider, "step", backend=contender.backend, **about)
        rows.append(row)
        try:
            contender.check(clones.x[0], y)
            replays = Replays(_on(contender.step, clones, y), clones, device, False, False, seconds)
            row.measure = replays.measure
            starts[len(rows) - 1] = replays.start
            steps.append((row, partial(contender.step, clones.x[0], y)))
        except Exception as error:  # one that fails stops no other; it gets no figures
            row.failed = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    for name, replays in copies_of(floor, clones, device, seconds):
        rows.append(row_of(case, replays.measure, f"copy ({name})", "copy", **about))
        starts[len(rows) - 1] = replays.start
    finish = partial(on_device.finish, device)
    interleave(starts, 1, finish)
    for index, times in interleave(starts, rounds, finish).items():
        rows[index].record(times)
        rows[index].images_per_s = batch * 1e6 / rows[index].median_us
    copy = min(row.median_us for row in rows if row.call == "copy")
    for row in rows:
        row.copy_ratio = row.median_us / copy
    if device.type == "cuda":
        with noting(left_out, f"the names of kernels, {case}"):
            for (row, _), names in zip(steps, on_device.kernels([step for _, step in steps]), strict=True):
                row.kernels = " + ".join(names)
    return rows


def backends_of(device: torch.device) -> list[str]:
    """Ours that are measured: of a CPU the one that is chosen; of a GPU every one with kernels, if there is any."""
    found = backends_for(device)
    kernels = [name for name in found if name != "reference"]
    return kernels if device.type == "cuda" and kernels else found[:1]


def _on(step: Callable[[Tensor, Tensor], Any], clones: Clones, y: Tensor) -> Callable[[int], Any]:
    return lambda k: step(clones.x[k], y)


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments.add_argument("--threads", type=int, default=2, help="of torch")
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--budget", type=float, default=math.inf, help="seconds after which no case is begun")
    given = arguments.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("input_step: torch finds no GPU (--device cpu measures on the CPU)")
        return 2
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    cases = QUICK if given.quick else CASES
    env = environment(device, given.commit)
    prefix = given.name or ("cpu" if device.type == "cpu" else slug(env["device"]))
    rows: list[InputTiming] = []
    left_out: list[str] = []
    absent = [peer for peer in missing() if peer in PEERS]
    if absent:
        print(f'not installed, and so left out: {", ".join(absent)} (pip install "fusedmix[bench]")')
    begin = time.perf_counter()
    for n, case in enumerate(cases):
        took = time.perf_counter() - begin
        if took > given.budget:
            left_out += [f"{case}: no time was left" for case in cases[n:]]
            break
        bar = "#" * n + "." * (len(cases) - n)
        print(f"[{bar}] {n + 1}/{len(cases)}, {progress(n, len(cases), took)}: {case}", flush=True)
        with noting(left_out, str(case)):
            rows += measure(case, device, given, left_out)
        if rows and (given.out is not None or not given.quick):
            folder = given.out or RESULTS
            write_csv(folder / f"{prefix}-input-step.csv", rows, env)
            write_csv(folder / f"{prefix}-input-step-targets.csv", targets(rows), env)
            write_json(folder / f"{prefix}-input-step-environment.json", env)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if rows:
        print(f"\n{input_table(rows)}\n\n{rows[0].shape}, {env['device']}\n\n{targets_table(targets(rows))}")
    left_out += [f"{row.name}, {row.case}: {row.failed}" for row in rows if row.failed]
    for what in left_out:
        print(f"not measured: {what}")
    return 1 if left_out or not (given.quick or all(check.met for check in targets(rows))) else 0


if __name__ == "__main__":
    sys.exit(main())
