"""Instructions of the CPU backend's calls (csrc/benchmarks/count.cpp), counted by valgrind's callgrind.

No torch and no Python are in the process that is counted, one thread, and the same numbers every time: two runs of one
build agree to about 1e-4, on a machine as busy as it likes. What it cannot see is memory: a count is no time.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_REGION = "fusedmix_counted"
_FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off")


class CountError(RuntimeError):
    """A tool is missing, or a build failed; the message says which, and why."""


def check_tools() -> None:
    """Raises CountError if something that is needed is not here."""
    for tool, remedy in (("valgrind", "apt install valgrind"), ("cmake", "pip install cmake")):
        if shutil.which(tool) is None:
            raise CountError(f"counting instructions needs {tool}, which is not found: {remedy}")


def build(tree: Path, driver: Path, folder: Path) -> Path:
    """The program that calls the kernels of a checkout.

    Args:
        tree: the checkout whose CPU backend is built, by its own CMakeLists.txt.
        driver: the source of the program.
        folder: where it is built; a finished one found there is taken as it is, anything else removed.

    Raises:
        CountError: one of the compilers failed, or the checkout has no such backend.
    """
    program = folder / "fusedmix_count"
    if program.exists():
        return program
    shutil.rmtree(folder, ignore_errors=True)  # left by a build that was interrupted, of a checkout that is gone
    folder.mkdir(parents=True)
    csrc = tree / "csrc"
    jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    parts = [*_FLAGS, f"-I{csrc}", f"-I{csrc / 'include'}", str(driver), str(folder / "libfusedmix_cpu.a"), "-pthread"]
    unfinished = folder / "unfinished"
    for command in (
        ["cmake", "-S", str(tree), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", "-DFUSEDMIX_CUDA=OFF"],
        ["cmake", "--build", str(folder), "--target", "fusedmix_cpu", "--parallel", jobs],
        [*compiler, *parts, "-o", str(unfinished)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip().splitlines()
            line = next(
                (line for line in said if re.search(r"\berror\b", line, re.IGNORECASE)), said[-1] if said else ""
            )
            raise CountError(f"{shlex.join(command[:2])} ... failed for {tree}: {line}")
    unfinished.replace(program)
    return program


def names(program: Path) -> list[str]:
    """What the program can call."""
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()


def instructions(program: Path, name: str) -> int:
    """Those of one call, which is not the first."""
    valgrind: Sequence[str | Path] = (
        *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
        *("--collect-atstart=no", f"--toggle-collect={_REGION}"),
        *(program, name),
    )
    done = subprocess.run(valgrind, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or found is None or int(found[1]) == 0:
        raise CountError(f"valgrind did not count {name}: {done.stderr.strip().splitlines()[-1:]}")
    return int(found[1])
