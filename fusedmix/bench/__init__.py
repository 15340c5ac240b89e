"""What `fusedmix bench` does: mixing side by side with the peers that are installed, on the same tensors in one run.

Importing this needs nothing beyond torch; peers, NumPy and matplotlib are imported when it runs.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fusedmix.bench.cases import Case


def missing_packages() -> list[str]:
    """What nothing can be measured without."""
    return [] if importlib.util.find_spec("numpy") else ["numpy"]


def run(
    out: Path,
    cases: Sequence[Case],
    *,
    device: torch.device,
    peers: Sequence[str],
    rounds: int,
    quick: bool = False,
    commit: str | None = None,
    name: str = "bench",
) -> bool:
    """Measures the cases, telling how far it is; writes <name>.csv, <name>-environment.json, <name>.md and <name>.png
    into `out`, and prints the table.

    Args:
        out: a folder.
        cases: what is measured.
        device: where.
        peers: who is measured beside fusedmix, of those that are installed.
        rounds: how often.
        quick: the chosen backend alone, and short measurements.
        commit: of the checkout, where there is no .git to ask.
        name: of the files.

    Returns:
        Whether everybody was shown to do what a case says; who was not has no figures.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts allocations is no topic here
    from fusedmix.bench import contenders, report
    from fusedmix.bench.environment import environment
    from fusedmix.bench.results import write_csv, write_json
    from fusedmix.bench.sweep import Bench, Row

    absent = [peer for peer in contenders.missing() if peer in peers]
    env = environment(device, commit)
    backends = contenders.backends_for(device)[: 1 if quick else None]
    print(
        f"fusedmix bench: {env['device']}, {env['threads']} threads, backends {', '.join(backends)}, {len(cases)} cases"
    )
    if absent:
        print(f'not installed, and so left out: {", ".join(absent)} (pip install "fusedmix[bench]")')
    bench = Bench(device, backends, [peer for peer in peers if peer not in absent], rounds, 0.03 if quick else 0.1)
    rows: list[Row] = []
    begin = time.perf_counter()
    for n, case in enumerate(cases):
        print(f"[{n + 1}/{len(cases)}, {time.perf_counter() - begin:.0f} s] {case}", flush=True)
        rows += bench.measure(case)
    written = [f"{name}.csv", f"{name}-environment.json", f"{name}.md"]
    write_csv(out / written[0], rows, env)
    write_json(out / written[1], env)
    table = report.table(rows)
    (out / written[2]).write_text(table + "\n", encoding="utf-8")
    if importlib.util.find_spec("matplotlib"):
        report.plot(
            rows, out / f"{name}.png", f"{env['device']}, torch {env['torch']}, {env['commit']}, {env['date'][:10]}"
        )
        written.append(f"{name}.png")
    else:
        print("no picture: matplotlib is not installed")
    print(f"\n{table}\n\nwritten into {out}: {', '.join(written)}")
    failed = [row for row in rows if row.failed]
    for row in failed:
        who = f"{row.provider} {row.backend}".strip()
        print(f"no figures: {who}, {row.method} per {row.per}, {row.dtype}: {row.failed}")
    return not failed
