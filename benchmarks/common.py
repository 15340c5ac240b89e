"""What the benchmarks share: the environment they ran in, timing, targets, and the files that results go to."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import json
import os
import platform
import random
import re
import statistics
import subprocess
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

import fusedmix as fm

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
# In every row of every CSV: a figure without them means nothing.
ENVIRONMENT = ("device", "driver", "torch", "cuda", "triton", "commit", "date")


# ---- Where and when --------------------------------------------------------------------------------------------------


def environment(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """Everything that a result depends on; `device` is the name of the GPU, or of the processor."""
    found: dict[str, Any] = {
        "device": _cpu(),
        "driver": "",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "triton": installed("triton"),
        "commit": commit or _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "fusedmix": fm.__version__,
        "torchvision": installed("torchvision"),
        "timm": installed("timm"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found |= {
            "device": gpu.name,
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
            "capability": f"{gpu.major}.{gpu.minor}",
            "multiprocessors": gpu.multi_processor_count,
            "memory_gib": round(gpu.total_memory / 2**30),
            "l2_mib": round(gpu.L2_cache_size / 2**20),
        }
    return found


def installed(distribution: str) -> str:
    """The version of a package, or ""."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def slug(device: str) -> str:
    """The name that result files begin with: "NVIDIA H200" -> "h200"."""
    words = [word for word in re.split(r"[^a-z0-9]+", device.lower()) if word not in ("", "nvidia", "geforce", "tesla")]
    return "-".join(words[:2]) or "device"


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    return (
        f"{commit}{'-dirty' if _output('git', 'status', '--porcelain', '--', '.', ':!benchmarks/results') else ''}"
        if commit
        else "unknown"
    )


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


# ---- Timing ----------------------------------------------------------------------------------------------------------


@dataclass
class Timing:
    """One row: what was called, on what, and how long it took."""

    # device: time on the GPU; wall: of the call; host: of the call on a tiny batch, without the work; first process: of
    # the first calls, what they compile included; later process: the same where it has been compiled
    measure: str
    provider: str  # fusedmix, torchvision, torch.compile, torch, triton, numpy
    call: str  # mix_, mix, mix_ + mix_labels, step (images and targets in one operator), module, copy, clone, mask
    method: str = ""
    backend: str = ""
    pairing: str = ""
    per: str = ""
    inplace: bool = False
    dtype: str = ""
    shape: str = ""
    share: float = 1.0  # of the batch that is read and written
    bytes: int = 0  # read and written
    median_us: float = 0.0
    p20_us: float = 0.0
    p80_us: float = 0.0
    least_us: float = 0.0
    repeats: int = 0
    copy_ratio: float = 0.0  # to a copy in the same run: of the batch on a CPU, of as many bytes on a GPU; 0: none

    def record(self, microseconds: Sequence[float]) -> None:
        """Fills in the summary of its times."""
        self.median_us = statistics.median(microseconds)
        self.p20_us, self.p80_us = (_quantile(microseconds, q) for q in (0.2, 0.8))
        self.least_us, self.repeats = min(microseconds), len(microseconds)


def _quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def interleave(
    measures: Mapping[Any, Callable[[], Callable[[], float]]], rounds: int, finish: Callable[[], None] | None = None
) -> dict[Any, list[float]]:
    """Measures everything once a round, in an order drawn anew, so that what disturbs the machine disturbs all alike.

    Args:
        measures: by key: starts a measurement and returns what reads its microseconds.
        finish: called at the end of a round, before the times are read (waits for a device).
    """
    order = random.Random(0)
    times: dict[Any, list[float]] = {key: [] for key in measures}
    for _ in range(rounds):
        keys = list(measures)
        order.shuffle(keys)
        started = [(key, measures[key]()) for key in keys]
        if finish is not None:
            finish()
        for key, read in started:
            times[key].append(read())
    return times


def wall(call: Callable[[], Any], prepare: Callable[[], Any] | None = None) -> Callable[[], Callable[[], float]]:
    """A measurement for `interleave`: the wall-clock time of a call, its result freed outside of it."""

    def measure() -> Callable[[], float]:
        if prepare is not None:
            prepare()
        start = time.perf_counter()
        result = call()
        microseconds = (time.perf_counter() - start) * 1e6
        del result
        return lambda: microseconds

    return measure


def host_microseconds(
    call: Callable[[], Any], loops: int, calls: int = 50, finish: Callable[[], None] | None = None
) -> list[float]:
    """Of a call, from many short loops: the least of them is what the call costs where nothing disturbs it."""
    times = []
    for _ in range(loops):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) * 1e6 / calls)
        if finish is not None:
            finish()
    return times


# ---- Targets and files -----------------------------------------------------------------------------------------------


@dataclass
class Check:
    """A target and what was measured."""

    what: str
    value: float
    limit: float
    unit: str  # "x copy", "us", "MiB", ...
    at_least: bool = False  # else at most
    met: bool = False

    def __post_init__(self) -> None:
        self.met = self.value >= self.limit if self.at_least else self.value <= self.limit

    def row(self) -> tuple[str, str, str, str]:
        return (
            self.what,
            f"{self.value:.3g} {self.unit}",
            f"{'≥' if self.at_least else '≤'} {self.limit:.3g}",
            "pass" if self.met else "FAIL",
        )


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def targets_table(checks: Sequence[Check]) -> str:
    """All targets, and how many are met."""
    met = sum(check.met for check in checks)
    table = markdown(("target", "measured", "limit", ""), [check.row() for check in checks])
    return f"{table}\n\n{met} of {len(checks)} targets met"


def write_csv(path: Path, rows: Sequence[Any], env: Mapping[str, Any]) -> None:
    """A file of rows of one kind, dataclasses, each with the environment."""
    names = [field.name for field in fields(rows[0])] if rows else []
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names, *ENVIRONMENT])
        for row in rows:
            values = [f"{v:.6g}" if isinstance(v, float) else v for v in asdict(row).values()]
            writer.writerow([*values, *(env[name] for name in ENVIRONMENT)])


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def parser(description: str | None) -> ArgumentParser:
    """The arguments that every benchmark takes."""
    made = ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("--commit", help="of the checkout, where there is no .git to ask")
    made.add_argument("--out", type=Path, help="the folder that result files are written to")
    made.add_argument("--name", help="what result files begin with, instead of the device")
    made.add_argument("--quick", action="store_true", help="tiny batches and few repeats: shows that it runs")
    return made


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
