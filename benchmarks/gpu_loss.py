"""The label losses on a GPU, forward and backward, for gpu_mix: by every backend, by PyTorch on dense targets, a copy.

Captured in CUDA graphs over clones of the logits that outgrow the cache, as gpu_mix times mixing. The floor is the time
in which the fastest copy moves as many bytes as two reads of the logits and one write of their gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fusedmix as fm
from benchmarks.common import noting
from benchmarks.cpu_loss import LARGE, LOSSES, Loss
from benchmarks.gpu_batch import DRY_SECONDS, as_copied
from fusedmix.bench import copies
from fusedmix.bench.device import Clones, Replays, finish
from fusedmix.bench.results import Check, dtype_name
from fusedmix.bench.timing import Timing, interleave

DRY = (6, 40)
FASTER, FLOOR = 3.0, 1.2  # times PyTorch on dense targets; times the floor


def measure(
    backends: Sequence[str], dtype: torch.dtype, device: torch.device, shape: tuple[int, int], rounds: int
) -> tuple[list[Timing], list[str]]:
    """The rows of one dtype, and what could not be measured."""
    clones = Clones(shape, dtype, device)
    logits = [x.detach().requires_grad_() for x in clones.x]
    y = torch.randint(shape[1], shape[:1], device=device)
    plan = fm.CutMix(per="sample", pairing="random", backend="reference").sample(
        shape[0], (32, 32), seed=1, device=device
    )
    entries: list[tuple[Timing, Callable[[int], Any]]] = []
    failed: list[str] = []

    def row(provider: str, call: str, **more: Any) -> Timing:
        made = Timing("device", provider, call, pairing="random", per="sample", dtype=dtype_name(dtype), **more)
        made.shape, made.bytes = "x".join(map(str, shape)), 3 * clones.bytes
        return made

    def step(loss: Loss, k: int) -> Tensor:
        return torch.autograd.grad(loss(logits[k], y, plan), logits[k])[0]

    for name, (ours, theirs) in LOSSES.items():
        expected = step(theirs, 0)
        for backend in backends:
            call = partial(step, partial(ours, backend=backend))
            with noting(failed, f"{backend}: {name}, {dtype_name(dtype)}"):
                tolerance = 8 * torch.finfo(dtype).eps
                torch.testing.assert_close(call(0), expected, rtol=tolerance, atol=1e-6)
                entries.append((row("fusedmix", name, backend=backend), call))
        entries.append((row("torch", name), partial(step, theirs)))
    for name, copy in copies.copies(device).items():
        # Of the logits: two thirds of the bytes, which the ratio is told.
        with noting(failed, f"copy: {name}, {dtype_name(dtype)}"):
            as_copied(name, copy, clones.out[0], clones.x[0])
            entries.append((row("copy", "copy", method=name), partial(_copy, copy, clones)))

    starts = {}
    for n, (timing, call) in enumerate(entries):
        with noting(failed, f"{timing.backend or timing.provider}: {timing.call}, {timing.dtype}"):
            ours = timing.provider == "fusedmix"
            replays = Replays(call, clones, device, must_capture=ours, seconds=DRY_SECONDS)
            timing.measure = replays.measure
            starts[n] = replays.start
    interleave(starts, 2, lambda: finish(device))
    times = interleave(starts, rounds, lambda: finish(device))
    rows = [entries[n][0] for n in starts]
    for n, timing in zip(starts, rows, strict=True):
        timing.record(times[n])
    floor = 1.5 * min((r.median_us for r in rows if r.provider == "copy"), default=float("nan"))
    for timing in rows:
        timing.copy_ratio = timing.median_us / floor
    return rows, failed


def _copy(copy: copies.Copy, clones: Clones, k: int) -> None:
    copy(clones.out[k], clones.x[k])


def targets(rows: list[Timing]) -> list[Check]:
    """Beside PyTorch on dense targets, and beside the floor."""
    checks = []
    for ours in rows:
        if ours.provider != "fusedmix":
            continue
        what = f"{ours.backend}: {ours.call}, forward and backward, {ours.dtype} {ours.shape}"
        checks.append(Check(f"{what}, beside the floor", ours.copy_ratio, FLOOR, "x floor"))
        for theirs in rows:
            if theirs.provider == "torch" and (theirs.call, theirs.dtype) == (ours.call, ours.dtype):
                ratio = theirs.median_us / ours.median_us
                checks.append(Check(f"{what}, faster than PyTorch on dense targets", ratio, FASTER, "x", at_least=True))
    return checks


def run(
    backends: Sequence[str], device: torch.device, dry_run: bool, rounds: int
) -> tuple[list[Timing], list[Check], list[str]]:
    """The rows of both dtypes, the checks, and what was not measured."""
    rows: list[Timing] = []
    left_out: list[str] = []
    for dtype in (torch.float32, torch.bfloat16):
        found, failed = measure(backends, dtype, device, DRY if dry_run else LARGE, rounds)
        rows += found
        left_out += failed
    return rows, targets(rows), left_out
