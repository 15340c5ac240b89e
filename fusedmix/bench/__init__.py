"""What `fusedmix bench` does: mixing side by side with the peers that are installed, on the same tensors in one run.

Importing this needs nothing; PyTorch, peers, NumPy and matplotlib are imported when it runs.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from fusedmix.bench.cases import Case
    from fusedmix.bench.sweep import Bench, Row

QUICK = 50.0  # seconds after which --quick begins no other case


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
        quick: the chosen backend alone, short measurements, and no case that begins after `QUICK` seconds.
        commit: of the checkout, where there is no .git to ask.
        name: of the files.

    Returns:
        Whether everybody was shown to do what a case says; who was not has no figures.

    Raises:
        KeyboardInterrupt, BrokenPipeError: the run was ended. What was measured until then has been written.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts allocations is no topic here
    from fusedmix.bench import contenders
    from fusedmix.bench.environment import environment
    from fusedmix.bench.sweep import Bench

    absent = [peer for peer in contenders.missing() if peer in peers]
    env = environment(device, commit)
    backends = contenders.backends_for(device)[: 1 if quick else None]
    print(
        f"fusedmix bench: {env['device']}, {env['threads']} threads, backends {', '.join(backends)}, {len(cases)} cases"
    )
    if absent:
        print(f'not installed, and so left out: {", ".join(absent)} (pip install "fusedmix[bench]")')
    bench = Bench(device, backends, [peer for peer in peers if peer not in absent], rounds, 0.03 if quick else 0.1)
    rows, ended = _measured(bench, cases, quick)
    if rows:
        _write(out, name, rows, env, quiet=isinstance(ended, BrokenPipeError))
    if ended is not None:
        raise ended
    failed = [row for row in rows if row.failed]
    for row in failed:
        who = f"{row.provider} {row.backend}".strip()
        print(f"no figures: {who}, {row.method} per {row.per}, {row.dtype}: {row.failed}")
    return not failed


def _measured(bench: Bench, cases: Sequence[Case], quick: bool) -> tuple[list[Row], BaseException | None]:
    """The rows of the cases, and what ended the run before the last of them."""
    rows: list[Row] = []
    begin = time.perf_counter()
    try:
        for n, case in enumerate(cases):
            took = time.perf_counter() - begin
            if quick and took > QUICK:
                print(f"{len(cases) - n} cases are left out, to end within a minute")
                break
            print(f"[{n + 1}/{len(cases)}, {progress(n, len(cases), took)}] {case}", flush=True)
            rows += bench.measure(case)
    except (KeyboardInterrupt, BrokenPipeError) as error:
        return rows, error
    return rows, None


def progress(done: int, cases: int, took: float) -> str:
    """The time that has passed and that is left, and how many programs run: more than this one disturb it."""
    left = took / done * (cases - done) if done else 0.0
    words = [f"{took:.0f} s", f"some {left / 60:.0f} min left" if left > 90 else f"some {left:.0f} s left"]
    if hasattr(os, "getloadavg"):
        words.append(f"load {os.getloadavg()[0]:.1f}")
    return ", ".join(words if done else [words[0], *words[2:]])


def _write(out: Path, name: str, rows: Sequence[Row], env: dict[str, Any], quiet: bool) -> None:
    """Writes the files, and prints the table."""
    from fusedmix.bench import report
    from fusedmix.bench.results import write_csv, write_json

    written = [f"{name}.csv", f"{name}-environment.json", f"{name}.md"]
    write_csv(out / written[0], rows, env)
    write_json(out / written[1], env)
    table = report.table(rows)
    (out / written[2]).write_text(table + "\n", encoding="utf-8")
    said = []
    if importlib.util.find_spec("matplotlib"):
        title = f"{env['device']}, torch {env['torch']}, {env['commit']}, {env['date'][:10]}"
        report.plot(rows, out / f"{name}.png", title)
        written.append(f"{name}.png")
    else:
        said.append("no picture: matplotlib is not installed")
    if not quiet:
        print(*said, f"\n{table}\n\nwritten into {out}: {', '.join(written)}", sep="\n")
