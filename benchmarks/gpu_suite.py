"""Everything that needs a GPU, in one command: builds, tests, memory checks, benchmarks. Offline, below eight minutes.

    python -m benchmarks.gpu_suite [--commit SHA] [--out benchmarks/results] [--stages build,tests,...] [--dry-run]

A stage that fails or runs out of time does not stop the others; a table at the end says how each went. Writes
<gpu>-suite.json beside the files of first_use and gpu_mix. Exit status 0: every stage that could run passed; 1: one did
not; 2: there is no GPU. --dry-run: on the CPU, what can run there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, ROOT, environment, markdown, parser, slug, write_json

TOTAL = 480.0  # seconds
# Seconds that a stage may take, in the order in which they run: what is measured before what takes longest to check.
BUDGETS = {
    "build": 150.0,
    "kernels": 120.0,
    "benchmark": 200.0,
    "tests": 220.0,
    "memcheck": 60.0,
    "racecheck": 60.0,
    "initcheck": 60.0,
    "synccheck": 60.0,
}
SANITIZER = ("memcheck", "racecheck", "initcheck", "synccheck")


@dataclass
class Stage:
    """How one stage went."""

    name: str
    result: str = "not run"  # pass, fail, timeout, not run
    seconds: float = 0.0
    detail: str = ""
    output: list[str] = field(default_factory=list)  # the end of it, unless it passed


class Suite:
    def __init__(self, given: Namespace, folder: Path) -> None:
        self.given, self.folder = given, folder
        self.device = torch.device("cpu" if given.dry_run else "cuda")
        self.environment = environment(self.device, given.commit)
        self.name = "dry-run" if given.dry_run else slug(self.environment["device"])
        self.out: Path | None = given.out or (None if given.dry_run else RESULTS)
        self.tests: dict[str, Any] = {}
        self.binary: Path | None = None
        self.ends = time.monotonic() + TOTAL

    def run(self) -> list[Stage]:
        stages = []
        for name, budget in BUDGETS.items():
            if name not in self.given.stages:
                continue
            stage = Stage(name)
            stages.append(stage)
            left = min(budget, self.ends - time.monotonic())
            if left < 5:
                stage.detail = "no time was left"
                continue
            print(f"== {name}", flush=True)
            begin = time.monotonic()
            run: Callable[[Stage, float], None] = self._sanitize if name in SANITIZER else getattr(self, f"_{name}")
            run(stage, left)
            stage.seconds = round(time.monotonic() - begin, 1)
            for line in stage.output:
                print(line)
        return stages

    # ---- stages

    def _build(self, stage: Stage, limit: float) -> None:
        options = ["--quick", "--device", self.device.type, "--cache", str(self.folder / "cache")]
        output = self._command(stage, [sys.executable, "-m", "benchmarks.first_use", *options, *self._files()], limit)
        loaded = re.search(r'"loading_s": \{([^}]*)\}', output)
        stage.detail = " ".join(loaded[1].replace('"', "").split()) + " (s)" if loaded else ""

    def _kernels(self, stage: Stage, limit: float) -> None:
        shim = ["--shim"] if self.given.dry_run else []
        begin = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.kernel_test", str(self.folder / "kernels"), *shim]
        built = self._command(stage, command, limit)
        if stage.result != "pass":
            return
        self.binary = Path(built.splitlines()[-1])
        took = time.monotonic() - begin
        large = [] if self.given.dry_run else ["--large"]
        output = self._command(stage, [str(self.binary), *large], limit - took)
        stage.detail = f"built in {took:.0f} s; {_last(output)}"

    def _benchmark(self, stage: Stage, limit: float) -> None:
        dry = ["--dry-run"] if self.given.dry_run else ["--budget", str(limit * 0.75)]
        output = self._command(stage, [sys.executable, "-m", "benchmarks.gpu_mix", *dry, *self._files()], limit)
        (self.folder / "benchmark.txt").write_text(output)
        met = re.search(r"\d+ of \d+ targets met", output)
        stage.detail = met[0] if met else ""
        if stage.result != "pass":
            stage.output = [line for line in output.splitlines() if "FAIL" in line or "no time" in line] or stage.output

    def _tests(self, stage: Stage, limit: float) -> None:
        report = self.folder / "tests.xml"
        workers = min(8, os.cpu_count() or 1)
        parallel = ["-n", str(workers)] if workers > 1 and find_spec("xdist") else []
        command = [sys.executable, "-m", "pytest", self.given.tests, "-q", "-p", "no:cacheprovider", *parallel]
        self._command(stage, [*command, f"--junitxml={report}"], limit)
        if report.exists():
            self.tests = summarise(report)
            counts = ", ".join(f"{n} {word}" for word, n in self.tests["counts"].items() if n)
            stage.detail = f"{counts}, {workers if parallel else 1} workers"

    def _sanitize(self, stage: Stage, limit: float) -> None:
        tool = sanitizer()
        if self.given.dry_run or tool is None or self.binary is None:
            reasons = ("dry run", "compute-sanitizer is not found", "the kernels stage built nothing")
            stage.detail = reasons[0 if self.given.dry_run else (1 if tool is None else 2)]
            return
        raw = ["--raw"] if stage.name == "initcheck" else []
        output = self._command(
            stage, [tool, "--tool", stage.name, "--error-exitcode", "99", str(self.binary), *raw], limit
        )
        stage.detail = next((line.strip("= ") for line in output.splitlines() if "SUMMARY" in line), _last(output))
        if "not supported" in output and "SUMMARY: 0 errors" not in output:
            stage.result, stage.detail = "not run", "compute-sanitizer does not support the device here"

    # ---- processes

    def _files(self) -> list[str]:
        files = [] if self.out is None else ["--out", str(self.out)]
        return [*files, "--commit", self.environment["commit"], "--name", self.name]

    def _command(self, stage: Stage, command: Sequence[str], limit: float) -> str:
        """Runs a command in a session of its own, so that all of it can be ended, and notes how it went."""
        env = {**os.environ, "FUSEDMIX_CACHE_DIR": str(self.folder / "cache"), "PYTHONUNBUFFERED": "1"}
        log = self.folder / f"{stage.name}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                stage.result = "pass" if process.wait(max(limit, 1.0)) == 0 else "fail"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                stage.result = "timeout"
        output = log.read_text(errors="replace").replace(f"{ROOT}{os.sep}", "")
        stage.output = [] if stage.result == "pass" else output.splitlines()[-40:]
        return output


def _last(output: str) -> str:
    return next((line for line in reversed(output.splitlines()) if line.strip()), "")


def sanitizer() -> str | None:
    """compute-sanitizer, on PATH or beside nvcc."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = (shutil.which("compute-sanitizer", path=path) for path in (None, *(f"{h}/bin" for h in homes if h)))
    return next((path for path in found if path), None)


def summarise(report: Path) -> dict[str, Any]:
    """What a JUnit file says: counts, what failed, and why tests were skipped."""
    counts = dict.fromkeys(("passed", "failed", "errors", "skipped"), 0)
    failed: list[str] = []
    skipped: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [kind for kind in ("failure", "error") if case.find(kind) is not None]
        skip = case.find("skipped")
        if bad:
            counts["failed" if bad[0] == "failure" else "errors"] += 1
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif skip is not None:
            counts["skipped"] += 1
            skipped[skip.get("message", "")] += 1
        else:
            counts["passed"] += 1
    return {"counts": counts, "failed": failed[:100], "skipped": dict(skipped.most_common(30))}


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--dry-run", action="store_true", help="on the CPU; writes only to --out")
    arguments.add_argument("--stages", type=lambda words: words.split(","), default=list(BUDGETS))
    arguments.add_argument("--tests", default="tests", help="what pytest runs")
    given = arguments.parse_args()
    unknown = set(given.stages) - set(BUDGETS)
    if unknown:
        arguments.error(f"--stages must be of {', '.join(BUDGETS)}, but got {', '.join(sorted(unknown))}")
    if not given.dry_run and not torch.cuda.is_available():
        print("gpu_suite: torch finds no GPU (--dry-run runs on the CPU what can be run there)")
        return 2
    with tempfile.TemporaryDirectory(prefix="fusedmix-suite-") as folder:
        suite = Suite(given, Path(folder))
        stages = suite.run()
    if suite.out is not None:
        found = {
            "environment": suite.environment,
            "stages": [asdict(stage) for stage in stages],
            "tests": suite.tests,
        }
        write_json(suite.out / f"{suite.name}-suite.json", found)
    rows = [(s.name, s.result, f"{s.seconds:.1f}", s.detail) for s in stages]
    total = sum(stage.seconds for stage in stages)
    print(f"\n{markdown(('stage', 'result', 's', ''), rows)}\n\n{suite.environment['device']}, {total:.0f} s in all")
    return 0 if all(stage.result in ("pass", "not run") for stage in stages) else 1


if __name__ == "__main__":
    sys.exit(main())
