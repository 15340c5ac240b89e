"""What `fusedmix info` prints: the versions, the machine, and which backends work on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch

from fusedmix import backends
from fusedmix.backends import native
from fusedmix.version import __version__


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = 100) -> str:
    """Left-aligned columns; the last one wraps so that no line is longer than `width`."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header) - 1)]
    indent = sum(w + 2 for w in widths)
    lines = []
    for row in cells:
        start = "".join(f"{cell:<{w}}  " for cell, w in zip(row, widths, strict=False))
        # A reason may be a whole compiler message: never less than 30 columns for it.
        last = textwrap.wrap(row[-1], max(30, width - indent)) or [""]
        lines += [start + last[0], *(" " * indent + more for more in last[1:])]
    return "\n".join(line.rstrip() for line in lines)


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():  # Linux: platform.processor() is empty or just "x86_64" there
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{model}, {capability}, {os.cpu_count()} logical cores, {torch.get_num_threads()} torch threads"


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return ["none that torch can use"]
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found.append(
            f"{device.name}, compute capability {device.major}.{device.minor}, {device.total_memory / 2**30:.0f} GiB"
        )
    return found


def report() -> str:
    """The whole text of `fusedmix info`."""
    facts = [
        ("fusedmix", __version__),
        ("python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})"),
        ("torchvision", _installed("torchvision")),
        ("triton", _installed("triton")),
        ("platform", platform.platform()),
        ("CPU", _cpu()),
        *(("GPU", gpu) for gpu in _gpus()),
        *native.tools(),
        *((f"{name} library", native.status(name)) for name in native.LIBRARIES),
    ]
    width = shutil.get_terminal_size((100, 24)).columns
    rows = [
        (b.name, b.device, "yes" if b.works else "no", "yes" if b.chosen else "no", b.reason) for b in backends.report()
    ]
    return (
        "\n".join(f"{name:<14}{value}" for name, value in facts)
        + "\n\n"
        + table(("backend", "device", "works", "chosen", "reason"), rows, width)
    )
