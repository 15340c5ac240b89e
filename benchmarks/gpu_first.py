"""The first calls of a backend in processes of their own: what compiling its kernels takes, and if it works at all.

gpu_mix begins with it, because a kernel that fails may take its process with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from benchmarks.common import ROOT
from fusedmix.bench.results import dtype_name
from fusedmix.bench.timing import Timing

LIMIT = 120.0  # seconds
DTYPE = torch.bfloat16
# Prints the microseconds of the first call and of the next by each sampler, if they mix as the reference does. What is
# built by nvcc is there already.
_FIRST_CALLS = """
import json, sys, time
import torch
import fusedmix as fm
from fusedmix import backends
device, backend, dtype, shape = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3]), json.loads(sys.argv[4])
backends.operators(device, backend)
x, y = torch.rand(shape, device=device).to(dtype), torch.arange(shape[0], device=device) % 10
took = {}
for sampling in ("host", "device"):
    mix = fm.CutMix(num_classes=10, inplace=True, sampling=sampling, backend=backend)
    for call in ("first call", "second call"):
        y.sum().item()
        begin = time.perf_counter()
        mix(x, y)[1].sum().item()
        took[f"{call}, sampling={sampling}"] = (time.perf_counter() - begin) * 1e6
    torch.manual_seed(0)
    before = x.clone()
    mix(x, y)
    torch.manual_seed(0)
    if not torch.equal(x, fm.mix(before, mix.sample(len(x), x.shape[2:], device=device), backend="reference")):
        sys.exit(f"CutMix with sampling={sampling} does not mix as the reference does")
print(json.dumps(took))
"""


def first_calls(backend: str, device: torch.device, shape: Sequence[int]) -> list[Timing] | str:
    """Rows for a process that finds no compiled Triton kernels and for a later one; or why there are none."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "TRITON_CACHE_DIR": folder}
        command = [sys.executable, "-c", _FIRST_CALLS, device.type, backend, dtype_name(DTYPE), json.dumps(list(shape))]
        for measure in ("first process", "later process"):
            try:
                done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT)
            except subprocess.TimeoutExpired:
                return f"its first calls took more than {LIMIT:.0f} s"
            if done.returncode != 0:
                lines = done.stderr.strip().splitlines()
                return lines[-1] if lines else f"its process ended with status {done.returncode}"
            for call, microseconds in json.loads(done.stdout.splitlines()[-1]).items():
                row = Timing(measure, "fusedmix", call, "CutMix", backend, "roll", "batch", inplace=True)
                row.dtype, row.shape = dtype_name(DTYPE), "x".join(map(str, shape))
                row.record([microseconds])
                rows.append(row)
    return rows


def measure(backends: Sequence[str], device: torch.device, shape: Sequence[int]) -> tuple[list[Timing], dict[str, str]]:
    """The rows of all backends that work, and why the others do not."""
    with ThreadPoolExecutor() as pool:
        found = dict(zip(backends, pool.map(lambda name: first_calls(name, device, shape), backends), strict=True))
    rows = [row for result in found.values() if not isinstance(result, str) for row in result]
    return rows, {name: result for name, result in found.items() if isinstance(result, str)}
