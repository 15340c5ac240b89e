"""Is one commit slower than another? Both are checked out, built and timed in turns, in one run on one machine.

    python -m benchmarks.compare BASE [HEAD] [-k PATTERN] [--threshold 1.1]      # times of the cpp backend's calls
    python -m benchmarks.compare BASE [HEAD] --instructions                      # what callgrind counts of its kernels

HEAD is the commit of that name unless given; what is not committed is not compared. Each commit gets a temporary git
worktree, a cache of its own and processes of its own, which run the cases of HEAD's benchmarks/regression.py; a case is
timed by base and head one after the other, in an order drawn anew, several times a process and in several processes,
because where a process happens to put its memory is worth some per cent. A ratio is the median of head/base over all
turns, with the 95 % interval that resampling the processes and their turns gives. Slower is what has the whole
interval above the threshold. Instructions are counted once for each commit: there is no noise, and 1.02 is the
threshold.

Prints a Markdown table; --out writes compare.csv and compare-environment.json. Exit status 1: a call is slower, or HEAD
cannot run it; 2: nothing could be compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks import count
from benchmarks.common import ROOT
from fusedmix.bench.environment import environment
from fusedmix.bench.results import markdown, write_csv, write_json

_SECONDS = 0.005  # that a turn of one commit takes at least
_RESAMPLES = 1000
_CASES = "benchmarks/regression.py"
_DRIVER = "csrc/benchmarks/count.cpp"


class CompareError(RuntimeError):
    """The message says why."""


@dataclass
class Comparison:
    """One row: a call at two commits."""

    name: str
    unit: str  # "us", or "instructions"
    base: float  # the median; of instructions, what was counted
    head: float
    ratio: float  # head / base
    low: float  # of its 95 % interval
    high: float
    threshold: float
    verdict: str = ""  # "SLOWER", "faster" or nothing: beyond the threshold or not

    def __post_init__(self) -> None:
        if self.low > self.threshold:
            self.verdict = "SLOWER"
        elif self.high < 1 / self.threshold:
            self.verdict = "faster"

    def row(self) -> tuple[str, ...]:
        times = [f"{value:.1f}" if self.unit == "us" else f"{value:.0f}" for value in (self.base, self.head)]
        digits = 3 if self.unit == "us" else 4
        interval = f"{self.low:.{digits}f} to {self.high:.{digits}f}" if self.low != self.high else ""
        return (self.name, *times, f"{self.ratio:.{digits}f}", interval, self.verdict)


@dataclass
class Side:
    """One of the two commits."""

    word: str  # base or head
    commit: str
    tree: Path
    cache: Path
    library: str = ""
    failed: dict[str, str] = field(default_factory=dict)  # by case


# ---- what is measured ----


Turns = list[tuple[float, float]]  # seconds of a call: base, head


def ratio_of(processes: Sequence[Turns]) -> tuple[float, float, float]:
    """The median of head/base over all turns of all pairs of processes, and its 95 % interval.

    Resampled are the pairs of processes, and in each the turns: turns of one process are alike.
    """
    ratios = [[head / base for base, head in turns] for turns in processes]
    draw = random.Random(0)
    medians = []
    for _ in range(_RESAMPLES):
        drawn = [draw.choice(ratios) for _ in ratios]
        medians.append(statistics.median(ratio for turns in drawn for ratio in draw.choices(turns, k=len(turns))))
    medians.sort()
    low, high = medians[int(0.025 * _RESAMPLES)], medians[int(0.975 * _RESAMPLES) - 1]
    return statistics.median(ratio for turns in ratios for ratio in turns), low, high


class Worker:
    """A process that runs the cases on the fusedmix of one commit."""

    def __init__(self, side: Side, cases: Path, pattern: str) -> None:
        path = os.pathsep.join(filter(None, (str(side.tree), os.environ.get("PYTHONPATH"))))
        env = {**os.environ, "PYTHONPATH": path, "FUSEDMIX_CACHE_DIR": str(side.cache)}
        # One thread; and nothing asked of fusedmix from outside that would make the commits alike.
        env |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        for name in ("FUSEDMIX_BACKEND", "FUSEDMIX_JIT"):
            env.pop(name, None)
        self._process = subprocess.Popen(
            [sys.executable, str(cases), pattern],
            cwd=cases.parent,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.origin = json.loads(self._answer(side))
            side.failed |= self.origin["failed"]
            if not self.origin["cases"]:
                raise CompareError(f"{side.word} ({side.commit[:12]}) can run no case{_reasons([side])}")
            check_origin(side, self.origin)
        except BaseException:
            self.close()
            raise
        side.library = self.origin["library"]

    def seconds(self, side: Side, name: str, calls: int) -> float:
        """Of one call, from `calls` of them in a row."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name} {calls}\n")
        self._process.stdin.flush()
        return float(self._answer(side))

    def _answer(self, side: Side) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise CompareError(f"the process of {side.word} ({side.commit[:12]}) ended: {self._process.wait()}")
        return line

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()


def check_origin(side: Side, origin: dict[str, str]) -> None:
    """Raises CompareError unless a process runs the package and the library of its own commit."""
    expected = {"package": side.tree, "library": side.cache}
    for what, folder in expected.items():
        if not Path(origin[what]).resolve().is_relative_to(folder.resolve()):
            raise CompareError(
                f"{side.word} ({side.commit[:12]}) must use a {what} in {folder}, but it uses {origin[what]}"
            )


def times(sides: tuple[Side, Side], given: Namespace, scratch: Path) -> list[Comparison]:
    """All cases that both commits have."""
    cases = scratch / "cases" / "regression.py"
    cases.parent.mkdir()
    shutil.copy(sides[1].tree / _CASES, cases)
    order = random.Random(0)
    found: dict[str, list[Turns]] = {}
    for _ in range(given.processes):
        with contextlib.ExitStack() as stack:
            workers = []
            for side in sides:
                worker = Worker(side, cases, given.k)
                stack.callback(worker.close)
                workers.append(worker)
            only = [name for name in workers[0].origin["cases"] if name in workers[1].origin["cases"]]
            if not only:
                raise CompareError(f"the commits have no case in common{_reasons(sides)}")
            calls = {name: _calls(workers[0], sides[0], name) for name in only}
            for name in only:
                found.setdefault(name, []).append([])
            for _ in range(given.rounds):
                order.shuffle(only)
                for name in only:
                    turn = [0.0, 0.0]
                    for which in order.sample((0, 1), 2):
                        turn[which] = workers[which].seconds(sides[which], name, calls[name])
                    found[name][-1].append((turn[0], turn[1]))
    rows = []
    for name, processes in sorted(found.items()):
        base, head = (statistics.median(turn[i] for turns in processes for turn in turns) * 1e6 for i in (0, 1))
        rows.append(Comparison(name, "us", base, head, *ratio_of(processes), given.threshold or 1.1))
    return rows


def _calls(worker: Worker, side: Side, name: str) -> int:
    """How many calls make a turn."""
    return max(1, round(_SECONDS / min(worker.seconds(side, name, 1) for _ in range(3))))


def _reasons(sides: Sequence[Side]) -> str:
    return "".join(f"\n{side.word}: {name}: {reason}" for side in sides for name, reason in side.failed.items())


def counts(sides: tuple[Side, Side], given: Namespace, scratch: Path) -> list[Comparison]:
    """All kernels that both commits have."""
    count.check_tools()
    programs = []
    for side in sides:
        driver = side.tree / _DRIVER  # It calls what the kernels of the same commit declare.
        if not driver.exists():
            raise CompareError(f"{side.word} ({side.commit[:12]}) has no {_DRIVER}")
        # Commits that share all that the count depends on share a build.
        parts = (f"{side.commit}:csrc", f"{side.commit}:CMakeLists.txt")
        hashes = [_git("rev-parse", "--verify", part, folder=side.tree)[:12] for part in parts]
        programs.append(count.build(side.tree, driver, (given.cache or scratch) / "-".join(["count", *hashes])))
        side.library = str(programs[-1])
    known = set(count.names(programs[0]))
    listed = [name for name in count.names(programs[1]) if name in known and re.search(given.k, name)]
    if not listed:
        raise CompareError(f"no kernel has {given.k!r} in its name")
    rows = []
    for name in listed:
        base, head = (count.instructions(program, name) for program in programs)
        ratio = head / base
        rows.append(Comparison(name, "instructions", base, head, ratio, ratio, ratio, given.threshold or 1.02))
    return rows


# ---- the two commits ----


def _git(*words: str, folder: Path) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise CompareError(f"git {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def checked_out(
    repository: Path, commits: tuple[str, str], scratch: Path, cache: Path | None
) -> Iterator[tuple[Side, Side]]:
    """Worktrees of both commits, removed afterwards."""
    sides = []
    try:
        for word, name in zip(("base", "head"), commits, strict=True):
            commit = _git("rev-parse", "--verify", f"{name}^{{commit}}", folder=repository)
            side = Side(word, commit, scratch / word, cache or scratch / f"cache-{commit[:12]}")
            _git("worktree", "add", "--detach", "--force", str(side.tree), commit, folder=repository)
            sides.append(side)
        yield sides[0], sides[1]
    finally:
        for side in sides:
            _git("worktree", "remove", "--force", str(side.tree), folder=repository)


def run(given: Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="fusedmix-compare-") as folder:
        scratch = Path(folder)
        with checked_out(given.repository, (given.base, given.head), scratch, given.cache) as sides:
            if not (sides[1].tree / _CASES).exists():
                raise CompareError(f"{given.head} has no {_CASES}")
            rows = (counts if given.instructions else times)(sides, given, scratch)
    for side in sides:
        print(f"{side.word}: {side.commit[:12]}, {side.library}")
    unit = rows[0].unit
    header = ("call", f"base, {unit}", f"head, {unit}", "head/base", "95 %", "")
    print(f"\n{markdown(header, [row.row() for row in rows])}")
    if any(side.failed for side in sides):
        print(f"\nnot compared:{_reasons(sides)}")
    slower = [row.name for row in rows if row.verdict == "SLOWER"]
    threshold = f"{rows[0].threshold:g} times base"
    print(f"\n{len(slower)} of {len(rows)} slower than {threshold}, beyond noise: {', '.join(slower) or 'none'}")
    if given.quick and not given.instructions:
        print("--quick: three turns of one process are too few for intervals that mean something")
    if given.out is not None:
        env = environment(torch.device("cpu"), f"{sides[0].commit[:12]}..{sides[1].commit[:12]}")
        write_csv(given.out / "compare.csv", rows, env)
        write_json(given.out / "compare-environment.json", {**env, "threads": 1})
    return 1 if slower or sides[1].failed else 0


def main() -> int:
    arguments = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("base", help="a commit, by any name that git knows")
    arguments.add_argument("head", nargs="?", default="HEAD")
    arguments.add_argument("-k", default="", metavar="PATTERN", help="only what this regular expression is found in")
    arguments.add_argument("--threshold", type=float, help="ratio that counts as slower: 1.1, of instructions 1.02")
    arguments.add_argument("--instructions", action="store_true", help="count them under callgrind instead of timing")
    arguments.add_argument("--processes", type=int, default=5, help="of each commit, one after the other")
    arguments.add_argument("--rounds", type=int, default=10, help="turns of a case in each process")
    arguments.add_argument("--quick", action="store_true", help="one process and three turns: shows that it runs")
    arguments.add_argument("--out", type=Path, help="the folder that result files are written to")
    arguments.add_argument("--repository", type=Path, default=ROOT)
    arguments.add_argument("--cache", type=Path, help="a folder of built libraries to use for both and to leave there")
    given = arguments.parse_args()
    if given.quick:
        given.processes, given.rounds = 1, 3
    if given.threshold is not None and given.threshold <= 1:
        arguments.error(f"--threshold must be above 1, but got {given.threshold}")
    try:
        return run(given)
    except (CompareError, count.CountError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
