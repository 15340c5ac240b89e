"""Everything that needs a GPU, in one command: builds, tests, memory checks, benchmarks. Offline, below eight minutes.

    python -m benchmarks.gpu_suite [--commit SHA] [--out benchmarks/results] [--stages build,tests,...] [--dry-run]
    python -m benchmarks.gpu_suite --stages left     # what an earlier run with the same --out did not finish

A stage that fails or runs out of time does not stop the others, nor does a backend that is broken or cannot be had stop
the other one; a table at the end says how each went. Tests come before benchmarks, and those that need no GPU are left
out; the tests of triton are a stage of their own. Writes <gpu>-suite.json and what the tests of agreement found,
<gpu>-agreement.csv, beside the files of the benchmarks, and all that a stage printed into <gpu>-logs. The first is
written after every stage, and a run of other stages of the same commit adds to it. What --work holds is kept for that
run: caches, and the kernels' test, which may have been built elsewhere. Exit status 0: every stage that could run
passed; 1: one did not; 2: there is no GPU. --dry-run: on the CPU, what can run there.
"""

from __future__ import annotations

import contextlib
import json
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from benchmarks import failures, kernel_test
from benchmarks.common import RESULTS, ROOT, parser
from fusedmix.backends import native
from fusedmix.bench.environment import environment, slug
from fusedmix.bench.results import markdown, write_json

TOTAL = 480.0  # seconds
# Seconds that a stage may take, in the order in which they run: what is right before how fast it is.
BUDGETS = {
    "build": 150.0,
    "kernels": 120.0,
    "tests": 120.0,
    "triton": 120.0,
    "benchmark": 200.0,
    "input": 75.0,
    "training": 60.0,
    "memcheck": 60.0,
    "racecheck": 60.0,
    "initcheck": 60.0,
    "synccheck": 60.0,
}
# Of the training steps: the model of which mixing takes the largest share, and as many rounds as fit.
MODEL, ROUNDS = "vit_s", 8
# The tests with cases that need a GPU; `--on-gpu` (tests/conftest.py) leaves the other cases out.
_WITH_GPU = (
    "test_gpu",
    "test_gpu_finish",
    "test_ops",
    "test_losses",
    "test_pixel_losses",
    "test_label_maps",
    "test_integer_images",
    "test_term_losses",
    "test_multi",
    "test_derivatives",
    "test_plans",
    "test_plans_partners",
    "test_accuracy",
    "test_fmix",
    "test_gridmix",
    "test_puzzle",
    "test_spectral",
    "test_timm",
    "test_prefetch_loader",
    "test_analysis",
    "test_agreement",
    "operators/test_sample",
    "operators/test_masks",
    "operators/test_fourier",
    "operators/test_gathers",
    "operators/test_label_grid",
    "operators/test_border_costs",
    "operators/test_arrange_blocks",
    "operators/test_triton_numbers",
    "operators/test_triton_finish",
    "operators/test_triton_gathers",
)
TESTS = tuple(f"{name}.py" for name in _WITH_GPU)
DEFAULT_TESTS = [f"tests/{name}" for name in TESTS]
_GRACE = 5.0  # seconds to write a report in, for what has been interrupted
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
        self.logs = folder / "logs" if self.out is None else self.out / f"{self.name}-logs"
        self.ends = time.monotonic() + TOTAL
        self.earlier = self._earlier()
        self.stages = self.left() if given.stages == ["left"] else given.stages

    def run(self) -> list[Stage]:
        stages = []
        self.logs.mkdir(parents=True, exist_ok=True)
        for name, budget in BUDGETS.items():
            if name not in self.stages:
                continue
            stage = Stage(name)
            stages.append(stage)
            left = min(budget, self.ends - time.monotonic() - _GRACE)
            if left < 5:
                stage.detail = "no time was left"
                continue
            print(f"== {name}", flush=True)
            (self.logs / f"{name}.log").unlink(missing_ok=True)
            begin = time.monotonic()
            run: Callable[[Stage, float], None] = self._sanitize if name in SANITIZER else getattr(self, f"_{name}")
            run(stage, left)
            stage.seconds = round(time.monotonic() - begin, 1)
            for line in stage.output:
                print(line)
            self.write(stages)  # now, because whoever lends the GPU may end the run at any time
        return stages

    # ---- what an earlier run left

    @property
    def file(self) -> Path | None:
        return None if self.out is None else self.out / f"{self.name}-suite.json"

    def _earlier(self) -> dict[str, Any]:
        """What an earlier run of the same commit on the same device wrote, or nothing."""
        if self.file is None or not self.file.is_file():
            return {"stages": [], "tests": {}}
        found: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        same = all(found["environment"][key] == self.environment[key] for key in ("commit", "device", "torch"))
        return found if same else {"stages": [], "tests": {}}

    def left(self) -> list[str]:
        """The stages that the earlier run did not come to the end of, whatever they found."""
        ended = {stage["name"] for stage in self.earlier["stages"] if stage["result"] in ("pass", "fail")}
        return [name for name in BUDGETS if name not in ended]

    def write(self, stages: Sequence[Stage]) -> None:
        """The file of all stages, those of the earlier run included unless they have run anew."""
        if self.file is None:
            return
        known = {stage["name"]: stage for stage in self.earlier["stages"]}
        known |= {s.name: asdict(s) for s in stages if s.result != "not run" or s.name not in known}
        found = {
            "environment": self.environment,
            "stages": [known[name] for name in BUDGETS if name in known],
            "tests": self.earlier["tests"] | self.tests,
        }
        write_json(self.file, found)

    # ---- stages

    def _build(self, stage: Stage, limit: float) -> None:
        if self._lacks_cuda(stage):
            return
        status = native.status("cuda")
        cache = self.folder / "cache"
        if status.startswith("built ahead") or cache.exists():  # building is not to be measured, but it must load
            load = "from fusedmix.backends import native; native.load('cuda'); native.load('cpp')"
            self._command(stage, [sys.executable, "-c", load], limit)
            built = status.replace(f"{ROOT}{os.sep}", "") if status.startswith("built ahead") else "kept by --work"
            stage.detail = built if stage.result == "pass" else ""
            return
        options = ["--quick", "--device", self.device.type, "--cache", str(cache)]
        output = self._command(stage, [sys.executable, "-m", "benchmarks.first_use", *options, *self._files()], limit)
        loaded = re.search(r'"loading_s": \{([^}]*)\}', output)
        stage.detail = " ".join(loaded[1].replace('"', "").split()) + " (s)" if loaded else ""

    def _kernels(self, stage: Stage, limit: float) -> None:
        if self._lacks_cuda(stage):
            return
        shim = ["--shim"] if self.given.dry_run else []
        begin, how = time.monotonic(), "built ahead"
        if self._binary() is None:
            command = [sys.executable, "-m", "benchmarks.kernel_test", str(self.folder / "kernels"), *shim]
            self._command(stage, command, limit)
            if stage.result != "pass":
                return
            how = f"built in {time.monotonic() - begin:.0f} s"
        large = [] if self.given.dry_run else ["--large"]
        output = self._command(stage, [str(self._binary()), *large], limit - (time.monotonic() - begin))
        stage.detail = f"{how}; {_last(output)}"

    def _binary(self) -> Path | None:
        """The kernels' test, if it has been built: by this run, an earlier one, or elsewhere."""
        return kernel_test.built(self.folder / "kernels", shim=self.given.dry_run)

    def _benchmark(self, stage: Stage, limit: float) -> None:
        dry = ["--dry-run"] if self.given.dry_run else ["--rounds", "40", "--budget", str(limit * 0.75)]
        ends = time.monotonic() + limit
        command = [sys.executable, "-m", "benchmarks.gpu_mix", *self._files()]
        output = self._command(stage, [*command, *dry], limit)
        lost = stage.output
        for backend in () if self.given.dry_run else ("cuda", "triton"):
            # A kernel that fails may take the process with it, and all that was measured: then each by itself.
            left = ends - time.monotonic()
            if stage.result == "pass" or "targets met" in output or left < 60:
                break
            alone = ["--backends", backend, "--budget", str(left * 0.75)]
            output = self._command(stage, [*command, *alone], left)
            stage.result, stage.output = "fail", [*lost, f"again, {backend} alone:", *stage.output]
        met = re.search(r"\d+ of \d+ targets met", output)
        stage.detail = met[0] if met else ""
        if stage.result != "pass":
            missed = [line for line in output.splitlines() if "FAIL" in line or line.startswith("not measured")]
            stage.output = missed or stage.output

    def _training(self, stage: Stage, limit: float) -> None:
        stage.detail = "resnet20" if self.given.dry_run else MODEL
        how = ["--dry-run"] if self.given.dry_run else ["--device", "cuda", "--rounds", str(ROUNDS)]
        command = [sys.executable, "-m", "benchmarks.train_step", "--models", stage.detail, *self._files(), *how]
        self._command(stage, command, limit)

    def _input(self, stage: Stage, limit: float) -> None:
        how = ["--quick"] if self.given.dry_run else ["--device", "cuda", "--budget", str(limit * 0.75)]
        output = self._command(stage, [sys.executable, "-m", "benchmarks.input_step", *self._files(), *how], limit)
        met = re.search(r"\d+ of \d+ targets met", output)
        stage.detail = met[0] if met else ""

    def _tests(self, stage: Stage, limit: float) -> None:
        self._pytest(stage, limit, "not triton")

    def _triton(self, stage: Stage, limit: float) -> None:
        # Apart from the others: compiling takes long, and a kernel that fails may take later tests with it.
        self._pytest(stage, limit, "triton")

    def _pytest(self, stage: Stage, limit: float, which: str) -> None:
        report = self.folder / f"{stage.name}.xml"
        workers = min(12, os.cpu_count() or 1)
        parallel = ["-n", str(workers)] if workers > 1 and find_spec("xdist") else []
        options = ["-q", "-k", which, "-m", "", "-p", "no:cacheprovider"]  # -m "": those marked thorough as well
        written = self.logs / f"{stage.name}-failures.txt"
        for earlier in (report, written):
            earlier.unlink(missing_ok=True)
        options += ["-p", "benchmarks.failures", f"--write-failures={written}"]
        command = [sys.executable, "-m", "pytest", *self.given.tests, *options]
        if self.given.tests == DEFAULT_TESTS:
            command.append("--on-gpu")
            command += [] if self.out is None else [f"--write-agreement={self.out / f'{self.name}-agreement.csv'}"]
        # Inductor compiles in the worker: each would start a pool of processes, which import torch, all at once.
        alone = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
        self._command(stage, [*command, *parallel, f"--junitxml={report}"], limit, alone)
        try:
            found = summarise(report)
        except (FileNotFoundError, ElementTree.ParseError):  # it was not written, or not to its end
            if not written.exists():
                return
            names = failures.failed(written)
            self.tests[stage.name] = {"counts": {}, "failed": names[:100], "skipped": {}}
            stage.detail = f"{len(names)} failed of those that ended, {workers if parallel else 1} workers, no report"
            return
        self.tests[stage.name] = found
        counts = ", ".join(f"{n} {word}" for word, n in found["counts"].items() if n)
        # pytest reports what was interrupted in the middle as passed.
        unfinished = ", at most as many of them unfinished" if stage.result == "timeout" else ""
        stage.detail = f"{counts}, {workers if parallel else 1} workers{unfinished}"

    def _sanitize(self, stage: Stage, limit: float) -> None:
        tool = sanitizer()
        if self.given.dry_run or tool is None or (binary := self._binary()) is None:
            reasons = ("dry run", "compute-sanitizer is not found", "the kernels' test is not built")
            stage.detail = reasons[0 if self.given.dry_run else (1 if tool is None else 2)]
            return
        raw = ["--raw"] if stage.name == "initcheck" else []
        output = self._command(stage, [tool, "--tool", stage.name, "--error-exitcode", "99", str(binary), *raw], limit)
        stage.detail = next((line.strip("= ") for line in output.splitlines() if "SUMMARY" in line), _last(output))
        if "not supported" in output and "SUMMARY: 0 errors" not in output:
            stage.result, stage.detail = "not run", "compute-sanitizer does not support the device here"

    def _lacks_cuda(self, stage: Stage) -> bool:
        """Whether the backend `cuda` cannot be had here, which is then said: the other one still is."""
        reason = None if self.given.dry_run else native.why_not("cuda")
        stage.detail = reason or ""
        return reason is not None

    # ---- processes

    def _files(self) -> list[str]:
        files = [] if self.out is None else ["--out", str(self.out)]
        return [*files, "--commit", self.environment["commit"], "--name", self.name]

    def _command(
        self, stage: Stage, command: Sequence[str], limit: float, settings: Mapping[str, str] = MappingProxyType({})
    ) -> str:
        """Runs a command in a session of its own, so that all of it can be ended, and notes how it went."""
        caches = {
            "FUSEDMIX_CACHE_DIR": str(self.folder / "cache"),
            "TRITON_CACHE_DIR": str(self.folder / "triton-cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor-cache"),
        }
        env = {**os.environ, **caches, **settings, "PYTHONUNBUFFERED": "1"}
        log = self.logs / f"{stage.name}.log"
        with log.open("a", encoding="utf-8") as file:
            print("$", *command, file=file, flush=True)
            begin = file.tell()
            if (
                signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            ):  # in the background of a shell: who is started inherits it
                signal.signal(signal.SIGINT, signal.default_int_handler)
            process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                stage.result = "pass" if process.wait(max(limit, 1.0)) == 0 else "fail"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                stage.result = "timeout"
        output = log.read_bytes()[begin:].decode(errors="replace").replace(f"{ROOT}{os.sep}", "")
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
    arguments.add_argument("--stages", type=lambda words: words.split(","), default=list(BUDGETS), help="or: left")
    arguments.add_argument("--tests", nargs="+", default=DEFAULT_TESTS, help="what pytest runs")
    arguments.add_argument("--work", type=Path, help="where caches and the kernels' test are kept; default: nowhere")
    given = arguments.parse_args()
    unknown = set(given.stages) - set(BUDGETS) - ({"left"} if len(given.stages) == 1 else set())
    if unknown:
        arguments.error(f"--stages must be of {', '.join(BUDGETS)}, but got {', '.join(sorted(unknown))}")
    if not given.dry_run and not torch.cuda.is_available():
        print("gpu_suite: torch finds no GPU (--dry-run runs on the CPU what can be run there)")
        return 2
    with tempfile.TemporaryDirectory(prefix="fusedmix-suite-") as folder:
        suite = Suite(given, (given.work or Path(folder)).absolute())
        stages = suite.run()
    rows = [(s.name, s.result, f"{s.seconds:.1f}", s.detail) for s in stages]
    total = sum(stage.seconds for stage in stages)
    print(f"\n{markdown(('stage', 'result', 's', ''), rows)}\n\n{suite.environment['device']}, {total:.0f} s in all")
    return 0 if all(stage.result in ("pass", "not run") for stage in stages) else 1


if __name__ == "__main__":
    sys.exit(main())
