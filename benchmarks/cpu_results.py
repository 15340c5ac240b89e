"""How the benchmarks of a CPU end: files, targets, exit status."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

import torch

from benchmarks.common import RESULTS
from fusedmix.bench.environment import environment
from fusedmix.bench.results import Check, targets_table, write_csv, write_json
from fusedmix.bench.timing import Timing


def keep(given: Namespace, what: str, rows: Sequence[Timing], checks: Sequence[Check]) -> int:
    """Writes cpu-WHAT.csv, cpu-WHAT-targets.csv and cpu-WHAT-environment.json, unless a quick run names no folder, and
    prints the targets. Returns the exit status: 1 if one of them is missed."""
    if not given.quick or given.out is not None:
        env = environment(torch.device("cpu"), given.commit)
        folder, name = given.out or RESULTS, f"{given.name or 'cpu'}-{what}"
        write_csv(folder / f"{name}.csv", rows, env)
        write_csv(folder / f"{name}-targets.csv", checks, env)
        write_json(folder / f"{name}-environment.json", env)
    print(f"\n{targets_table(checks)}")
    return 0 if all(check.met for check in checks) or given.quick else 1
