"""FMix's masks on a CPU, against the NumPy pipeline of its authors' description, on one thread each.

    python -m benchmarks.cpu_fmix [--out benchmarks/results] [--quick]

A mask of ours is one of 256 (64 from 224x224 on) drawn by one call of `sample`, plan included; each of theirs is a
call. Before anything is timed the two are compared: as many ones, and boundaries as long on average. Then whole calls
of modules in place, draws and masks included. Prints a Markdown table and writes cpu-fmix.csv and cpu-fmix-targets.csv.
Exit status 1: a target is missed.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

import fusedmix as fm
from benchmarks.common import RESULTS, parser
from fusedmix.backends import choose
from fusedmix.bench.contenders import check_masks
from fusedmix.bench.environment import environment
from fusedmix.bench.fmix_numpy import mask
from fusedmix.bench.results import Check, markdown, targets_table, write_csv
from fusedmix.bench.timing import Timing, interleave, wall

LAM = 0.5


def measure(sides: tuple[int, ...], rounds: int) -> list[Timing]:
    """Microseconds for one mask."""
    rows, calls, masks = [], {}, []
    generator = np.random.default_rng(0)
    for side in sides:
        check_masks(side)
        n = 256 if side < 224 else 64
        module = fm.FMix(per="sample")
        for provider, count, call in (
            ("fusedmix", n, lambda s=side, n=n, module=module: module.sample(n, (s, s), lam=LAM)),
            ("numpy", 1, lambda s=side: mask(s, s, LAM, generator)),
        ):
            backend = choose("cpu") if provider == "fusedmix" else ""
            rows.append(Timing("wall", provider, "mask", "FMix", backend=backend, per="sample", shape=f"{side}x{side}"))
            masks.append(count)
            calls[len(rows) - 1] = wall(call)
    for times in (interleave(calls, 1), interleave(calls, rounds)):
        for index, row in enumerate(rows):
            row.record([t / masks[index] for t in times[index]])
    return rows


def measure_steps(batch: int, side: int, rounds: int) -> list[Timing]:
    """Whole calls of modules in place, on two threads: draws, masks, images and targets."""
    pristine = torch.randn(batch, 3, side, side)
    x, y = pristine.clone(), torch.randint(1000, (batch,))
    rows, calls = [], {}
    for method in (fm.MixUp, fm.CutMix, fm.FMix):
        for per in ("batch", "sample"):
            module = method(num_classes=1000, per=per, inplace=True)
            name = method.__name__
            row = Timing("wall", "fusedmix", "module", name, choose("cpu"), "roll", per, True, "float32")
            row.shape = "x".join(map(str, x.shape))
            rows.append(row)
            calls[len(rows) - 1] = wall(lambda module=module: module(x, y), lambda: x.copy_(pristine))
    interleave(calls, 1)
    for index, times in interleave(calls, rounds).items():
        rows[index].record(times)
    return rows


def main() -> int:
    given = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    rows = measure((32, 64) if given.quick else (32, 64, 224, 384), 3 if given.quick else 25)
    torch.set_num_threads(2)
    steps = measure_steps(*((4, 32, 3) if given.quick else (128, 224, 15)))
    by_key = {(row.provider, row.shape): row.median_us for row in rows}
    shapes = sorted({row.shape for row in rows}, key=lambda shape: int(shape.partition("x")[0]))
    ratios = {shape: by_key["numpy", shape] / by_key["fusedmix", shape] for shape in shapes}
    checks = [
        Check(f"masks of {shape} against NumPy", ratios[shape], 5.0, "x", at_least=True)
        for shape in shapes
        if shape in ("32x32", "224x224")
    ]
    env = environment(torch.device("cpu"), given.commit)
    if not given.quick or given.out is not None:
        folder, name = given.out or RESULTS, given.name or "cpu"
        write_csv(folder / f"{name}-fmix.csv", [*rows, *steps], env)
        write_csv(folder / f"{name}-fmix-targets.csv", checks, env)
    lines = [
        (shape, f"{by_key['fusedmix', shape]:.0f}", f"{by_key['numpy', shape]:.0f}", f"{ratios[shape]:.1f}")
        for shape in shapes
    ]
    print(markdown(("us a mask", "fusedmix", "NumPy", "ratio"), lines))
    print()
    print(
        markdown(("ms a call, in place", "per", "ms"), [(r.method, r.per, f"{r.median_us / 1e3:.2f}") for r in steps])
    )
    print()
    print(targets_table(checks))
    return 0 if all(check.met for check in checks) or given.quick else 1


if __name__ == "__main__":
    sys.exit(main())
