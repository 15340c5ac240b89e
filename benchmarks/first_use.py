"""From nothing to the first mixed batch: importing, building at first use, and the same once it is built.

    python -m benchmarks.first_use [--device cuda] [--out benchmarks/results] [--commit SHA] [--pip]

Every figure is of a process of its own. The first one has an empty FUSEDMIX_CACHE_DIR and builds what it needs; the
second finds it there. --pip also times `pip install` of the checkout into a new virtual environment that sees this
one's packages.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, ROOT, parser
from fusedmix.bench.environment import environment, slug
from fusedmix.bench.results import write_json

# Prints what happened when, in seconds since the epoch.
_FIRST_BATCH = """
import json, sys, time
at = {"started": time.time()}
import torch
at["torch imported"] = time.time()
import fusedmix as fm
at["fusedmix imported"] = time.time()
from fusedmix.backends import native
built = {}
for name in sys.argv[2].split(","):
    begin = time.time()
    native.load(name)
    built[name] = round(time.time() - begin, 2)
at["backends ready"] = time.time()
x, y = torch.rand(8, 3, 32, 32, device=sys.argv[1]), torch.randint(10, (8,), device=sys.argv[1])
mix = fm.CutMix(num_classes=10)
images, targets = mix(x, y)
targets.sum().item()
at["first batch"] = time.time()
print(json.dumps({"at": at, "backends": built}))
"""


def first_batch(device: str, cache: Path, backends: str) -> dict[str, Any]:
    """Seconds from the start of a process to each step on the way to its first mixed batch."""
    begin = time.time()
    command = [sys.executable, "-c", _FIRST_BATCH, device, backends]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "FUSEDMIX_CACHE_DIR": str(cache)}, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    said = json.loads(done.stdout.splitlines()[-1])
    return {
        **{f"{step}_s": round(at - begin, 2) for step, at in said["at"].items()},
        "loading_s": said["backends"],  # of each backend, and building where it had to be built
    }


def import_seconds(pairs: int) -> dict[str, float]:
    """What `import fusedmix` adds to `import torch`: the median over pairs of processes."""

    def seconds(modules: str) -> float:
        code = f"import time; t = time.perf_counter(); import {modules}; print(time.perf_counter() - t)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        return float(done.stdout)

    alone, both = [], []
    for _ in range(pairs):
        alone.append(seconds("torch"))
        both.append(seconds("torch, fusedmix"))
    added = statistics.median(b - a for a, b in zip(alone, both, strict=True))
    return {"torch_s": round(statistics.median(alone), 3), "added_by_fusedmix_s": round(added, 3)}


def pip_install() -> float:
    """Seconds of `pip install --no-deps .`, which builds no native code."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True, system_site_packages=True)
        python = Path(folder, "bin", "python")
        begin = time.time()
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", ROOT], check=True, capture_output=True)
        return round(time.time() - begin, 1)


def measure(device: str, cache: Path, pairs: int, pip: bool = False) -> dict[str, Any]:
    """All of it. `cache` must be empty, and holds the libraries afterwards."""
    backends = "cpp,cuda" if device == "cuda" else "cpp"
    return {
        "first_process": first_batch(device, cache, backends),
        "second_process": first_batch(device, cache, backends),
        "import": import_seconds(pairs),
        **({"pip_install_s": pip_install()} if pip else {}),
    }


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--cache", type=Path, help="an empty folder to build into, instead of a temporary one")
    arguments.add_argument("--pip", action="store_true", help="also time pip install")
    given = arguments.parse_args()
    pairs = 1 if given.quick else 5
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.device, given.cache or Path(folder), pairs, given.pip)
    env = environment(torch.device(given.device), given.commit)
    name = given.name or (slug(env["device"]) if given.device == "cuda" else "cpu")
    if not given.quick or given.out is not None:
        write_json((given.out or RESULTS) / f"{name}-first-use.json", {**found, "environment": env})
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
