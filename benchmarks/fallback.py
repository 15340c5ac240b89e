"""What serves where there is no compiler (the backend `reference`), beside torchvision.

    python -m benchmarks.fallback [--threads 1 2] [--out benchmarks/results] [--quick]

Modules as they come, (images, labels) in and out, float32, 1000 classes. Each is called once a round beside
torchvision's, small batches many times, in an order drawn anew. Prints a Markdown table and writes
cpu-fallback.csv, cpu-fallback-targets.csv and cpu-fallback-environment.json. Exit status 1: a target is missed.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch

import fusedmix as fm
from benchmarks.common import RESULTS, parser
from benchmarks.cpu_mix import PEERS, same_batch
from fusedmix.bench.environment import environment
from fusedmix.bench.results import Check, markdown, targets_table, write_csv, write_json
from fusedmix.bench.timing import Timing, interleave, wall

CLASSES = 1000
SHAPES = ((128, 3, 224, 224), (512, 3, 32, 32), (64, 3, 32, 32), (8, 3, 32, 32), (4, 3, 8, 8))
MORE: dict[str, Any] = {"HMix": fm.HMix, "GMix": fm.GMix, "FMix": fm.FMix}
LIMIT = 1.1  # times torchvision's time, of a median


def times_of(call: Any, times: int) -> None:
    for _ in range(times):
        call()


def measure(shape: tuple[int, ...], rounds: int, threads: int) -> list[Timing]:
    """A row for each module, torchvision's as well. Raises if the two do not give the same batch."""
    torch.set_num_threads(threads)
    x, y = torch.randn(shape), torch.randint(CLASSES, shape[:1])
    modules: list[tuple[Timing, Any]] = []

    def add(provider: str, method: str, module: Any, **said: Any) -> None:
        row = Timing(f"wall, {threads} threads", provider, "module", method, pairing="roll", dtype="float32", **said)
        row.backend = "reference" if provider == "fusedmix" else ""
        row.shape = "x".join(map(str, shape))
        modules.append((row, module))

    for name, (ours, theirs) in PEERS.items():
        mix, peer = ours(num_classes=CLASSES, backend="reference"), theirs(num_classes=CLASSES)
        same_batch(name, mix, peer, x, y)
        add("torchvision", name, peer, per="batch")
        add("fusedmix", name, mix, per="batch")
        add("fusedmix", name, ours(num_classes=CLASSES, backend="reference", inplace=True), per="batch", inplace=True)
    for name, ours in {**{name: pair[0] for name, pair in PEERS.items()}, **MORE}.items():
        for per in ("batch", "sample") if name in MORE else ("sample",):
            add("fusedmix", name, ours(num_classes=CLASSES, backend="reference", per=per), per=per)

    loops = max(1, min(200, 2_000_000 // x.numel()))
    calls = {i: wall(partial(times_of, partial(module, x, y), loops)) for i, (_, module) in enumerate(modules)}
    interleave(calls, 1)
    times = interleave(calls, rounds)
    for i, (row, _) in enumerate(modules):
        row.record([t / loops for t in times[i]])
    return [row for row, _ in modules]


def peer_of(row: Timing, rows: list[Timing]) -> Timing | None:
    """The row of torchvision that a row is compared with."""
    same = (row.measure, row.shape, row.method)
    return next((r for r in rows if r.provider == "torchvision" and (r.measure, r.shape, r.method) == same), None)


def targets(rows: list[Timing]) -> list[Check]:
    """The fallback is never slower than what it replaces."""
    found = []
    for row in rows:
        peer = peer_of(row, rows)
        if row.provider == "fusedmix" and row.per == "batch" and peer is not None:
            what = f"{row.method}{' in place' if row.inplace else ''}, {row.shape}, {row.measure}"
            found.append(Check(what, row.median_us / peer.median_us, LIMIT, "x torchvision"))
    return found


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of torch, one after the other")
    arguments.add_argument("--rounds", type=int, default=31)
    given = arguments.parse_args()
    shapes, rounds = (((4, 3, 8, 8),), 3) if given.quick else (SHAPES, given.rounds)
    rows = [row for threads in given.threads for shape in shapes for row in measure(shape, rounds, threads)]
    checks = targets(rows)
    env = environment(torch.device("cpu"), given.commit)
    if not given.quick or given.out is not None:
        folder, name = given.out or RESULTS, given.name or "cpu-fallback"
        write_csv(folder / f"{name}.csv", rows, env)
        write_csv(folder / f"{name}-targets.csv", checks, env)
        write_json(folder / f"{name}-environment.json", env)
    header = ("batch", "measure", "method", "per", "provider", "in place", "us", "p20", "p80", "x torchvision")
    table = []
    for row in rows:
        peer = peer_of(row, rows)
        ratio = f"{row.median_us / peer.median_us:.2f}" if peer is not None else ""
        inplace = "yes" if row.inplace else "no"
        numbers = (f"{t:.0f}" for t in (row.median_us, row.p20_us, row.p80_us))
        table.append((row.shape, row.measure, row.method, row.per, row.provider, inplace, *numbers, ratio))
    print(markdown(header, table))
    print()
    print(targets_table(checks))
    return 0 if all(check.met for check in checks) or given.quick else 1


if __name__ == "__main__":
    sys.exit(main())
