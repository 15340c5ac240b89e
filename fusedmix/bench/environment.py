"""Where and when something was measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import fusedmix as fm

# In every row of every CSV: a figure without them means nothing.
ENVIRONMENT = ("device", "driver", "torch", "cuda", "triton", "commit", "date")
_ROOT = Path(__file__).resolve().parents[2]


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
    """Of the checkout that the package is in; else its release."""
    if not (_ROOT / "pyproject.toml").is_file():
        return f"release {fm.__version__}"
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    changed = _output("git", "status", "--porcelain", "--", ".", ":!benchmarks/results")
    return f"{commit}-dirty" if changed else commit


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
