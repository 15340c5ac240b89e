"""Mixing on a CPU, against a plain copy of the batch, x.clone() and torchvision.

    python -m benchmarks.cpu_mix [--threads 2] [--out benchmarks/results] [--quick]

float32, 128x3x224x224. Everything is measured once a round, in an order drawn anew; before every call the batch is
restored, so that all find the same data and the same caches. Ratios are to `out.copy_(x)` of the batch, `out` being
memory in use. Prints a Markdown table and writes cpu-mix.csv, cpu-targets.csv and cpu-environment.json. Exit status
1: a target is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

import fusedmix as fm
from benchmarks.common import RESULTS, parser
from benchmarks.first_use import import_seconds
from fusedmix.backends import choose
from fusedmix.bench.environment import environment
from fusedmix.bench.results import Check, markdown, targets_table, write_csv, write_json
from fusedmix.bench.timing import Timing, host_microseconds, interleave, wall
from fusedmix.methods import Per

CLASSES = 1000
METHODS: dict[str, Callable[..., fm.MixTransform]] = {"MixUp": fm.MixUp, "HMix": fm.HMix, "GMix": fm.GMix}
BOX_LAMS = (0.75, 0.5, 0.25)
PEERS = {"MixUp": (fm.MixUp, v2.MixUp), "CutMix": (fm.CutMix, v2.CutMix)}

Measured = tuple[Timing, Callable[[], Any]]


def with_plans(x: Tensor) -> list[Measured]:
    """mix_ and mix, for every method, pairing and number of draws. Per sample has the masks of per batch once for each
    sample, so that the work is the same."""
    size = tuple(x.shape[2:])
    found: list[Measured] = []

    def add(method: str, plan: fm.MixPlan, pairing: str, share: float) -> None:
        for per in (Per.BATCH, Per.SAMPLE):
            same = replace(plan, per=per)
            row = Timing("wall", "fusedmix", "mix_", method, pairing=pairing, per=per.name.lower(), inplace=True)
            row.share = share
            found.append((row, partial(fm.mix_, x, same)))
        row = Timing("wall", "fusedmix", "mix", method, pairing=pairing, per="batch", share=share)
        found.append((row, partial(fm.mix, x, plan)))

    for pairing in ("roll", "flip"):
        for name, method in METHODS.items():
            add(name, method(pairing=pairing).sample(len(x), size, lam=0.3, seed=1), pairing, 1.0)
        for lam in BOX_LAMS:
            plan = fm.CutMix(pairing=pairing).sample(len(x), size, lam=lam, seed=1)
            add("CutMix", plan, pairing, 1.0 - float(plan.weight[0]))
    return found


def same_batch(name: str, mix: Any, peer: Any, x: Tensor, y: Tensor) -> None:
    """Raises unless our module and torchvision's make the same batch of the same seed."""
    results = []
    for module in (mix, peer):
        torch.manual_seed(0)
        results.append(module(x, y))
    # A box is a copy. A blend: rounded once here, three times there.
    tolerance = 0.0 if name == "CutMix" else 4 * torch.finfo(x.dtype).eps * float(x.abs().max())
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0.0, atol=tolerance)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0.0, atol=0.0)


def with_peers(x: Tensor, y: Tensor) -> list[Measured]:
    """The modules, which also draw and mix labels, beside torchvision's. Raises if their results differ."""
    found: list[Measured] = []
    for name, (ours, theirs) in PEERS.items():
        mix, peer = ours(num_classes=CLASSES), theirs(num_classes=CLASSES)
        in_place = ours(num_classes=CLASSES, inplace=True)
        same_batch(name, mix, peer, x, y)
        row = Timing("wall", "fusedmix", "module", name, pairing="roll", per="batch")
        found.append((row, partial(mix, x, y)))
        row = replace(row, inplace=True)
        found.append((row, partial(in_place, x, y)))
        row = Timing("wall", "torchvision", "module", name, pairing="roll", per="batch")
        found.append((row, partial(peer, x, y)))
    return found


def measure(shape: tuple[int, ...], rounds: int) -> list[Timing]:
    """The wall-clock times of everything."""
    pristine = torch.randn(shape)
    x, out = pristine.clone(), torch.empty_like(pristine).fill_(0.0)
    y = torch.randint(CLASSES, (shape[0],))
    measured: list[Measured] = [
        (Timing("wall", "torch", "copy"), lambda: out.copy_(x)),
        (Timing("wall", "torch", "clone"), x.clone),
        *with_plans(x),
        *with_peers(x, y),
    ]
    calls = {index: wall(call, lambda: x.copy_(pristine)) for index, (_, call) in enumerate(measured)}
    interleave(calls, 1)  # builds, page faults, thread pools
    times = interleave(calls, rounds)
    rows = [row for row, _ in measured]
    for index, row in enumerate(rows):
        row.record(times[index])
        row.dtype, row.shape = "float32", "x".join(map(str, shape))
        row.bytes = int(2 * row.share * pristine.nbytes)
        row.backend = choose("cpu") if row.provider == "fusedmix" else ""
    for row in rows:
        row.copy_ratio = row.median_us / rows[0].median_us
    return rows


def measure_host(loops: int) -> list[Timing]:
    """What a call costs before and after the work: modules on a tiny batch."""
    x, y = torch.randn(4, 3, 8, 8), torch.randint(CLASSES, (4,))
    rows = []
    for name, (ours, theirs) in PEERS.items():
        for provider, module in (("fusedmix", ours), ("torchvision", theirs)):
            mix = module(num_classes=CLASSES)
            row = Timing(
                "host", provider, "module", name, pairing="roll", per="batch", dtype="float32", shape="4x3x8x8"
            )
            row.backend = choose("cpu") if provider == "fusedmix" else ""
            row.record(host_microseconds(partial(mix, x, y), loops))
            rows.append(row)
    return rows


def targets(rows: list[Timing], host: list[Timing]) -> list[Check]:
    """What this release promises on a CPU."""
    clone = next(row for row in rows if row.call == "clone")
    checks = []
    for row in rows:
        name = f"{row.method} {row.pairing}, per {row.per}"
        if row.call == "mix_" and row.method in ("MixUp", "HMix"):
            limit = 1.0 if row.pairing == "roll" else 0.7
            checks.append(Check(f"{name}, in place", row.copy_ratio, limit, "x copy"))
        if row.call == "mix_" and row.method == "CutMix":
            what = f"{name}, in place, box {row.share:.0%}"
            checks.append(Check(what, row.copy_ratio, 0.1 + 1.4 * row.share, "x copy"))
        if row.call == "mix_" and row.method == "GMix" and row.per == "sample":
            checks.append(Check(f"{name}, in place", row.copy_ratio, 2.0, "x copy"))
        if row.call == "mix_" and row.per == "sample":
            same = (row.method, row.pairing, row.share)
            twin = next(r for r in rows if (r.method, r.pairing, r.share) == same and r.per == "batch" and r.inplace)
            what = f"{name} against per batch, {row.share:.0%} of the batch"
            checks.append(Check(what, row.median_us / twin.median_us, 1.1, "x"))
        if row.call == "mix" and row.provider == "fusedmix":
            what = f"{name}, out of place, {row.share:.0%} of the batch"
            checks.append(Check(what, row.median_us / clone.median_us, 1.0, "x clone"))
    for name in PEERS:
        times = {row.provider: row.median_us for row in host if row.method == name}
        checks.append(Check(f"{name}, host time of a call", times["fusedmix"], times["torchvision"], "us"))
    return checks


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2, help="of torch")
    arguments.add_argument("--rounds", type=int, default=25)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    shape, rounds, loops, pairs = (
        ((4, 3, 32, 32), 3, 3, 1) if given.quick else ((128, 3, 224, 224), given.rounds, 100, 5)
    )
    rows = measure(shape, rounds)
    host = measure_host(loops)
    imports = import_seconds(pairs)
    checks = targets(rows, host)

    env = environment(torch.device("cpu"), given.commit)
    if not given.quick or given.out is not None:
        folder, name = given.out or RESULTS, given.name or "cpu"
        write_csv(folder / f"{name}-mix.csv", [*rows, *host], env)
        write_csv(folder / f"{name}-targets.csv", checks, env)
        write_json(folder / f"{name}-environment.json", {**env, "import": imports})
    header = ("method", "call", "in place", "pairing", "per", "share", "ms", "p20", "p80", "x copy")
    table = [
        (
            f"{row.method or row.call} ({row.provider})",
            row.call,
            "yes" if row.inplace else "no",
            row.pairing,
            row.per,
            f"{row.share:.0%}",
            *(f"{t / 1e3:.2f}" for t in (row.median_us, row.p20_us, row.p80_us)),
            f"{row.copy_ratio:.2f}",
        )
        for row in rows
    ]
    print(markdown(header, table))
    print()
    calls = [(f"{r.method} ({r.provider})", *(f"{t:.1f}" for t in (r.median_us, r.p20_us, r.p80_us))) for r in host]
    print(markdown(("host time of a call", "us", "p20", "p80"), calls))
    print(f"\nimport fusedmix: {imports['added_by_fusedmix_s']} s on top of torch's {imports['torch_s']} s\n")
    print(targets_table(checks))
    return 0 if all(check.met for check in checks) or given.quick else 1


if __name__ == "__main__":
    sys.exit(main())
