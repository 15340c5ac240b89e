"""What the modules take on the host with backend="triton", and how often they launch: without a GPU.

    python -m benchmarks.triton_host [--quick]

Triton compiles for a GPU and launches through a driver that does nothing, batches on the CPU stand for those on a GPU.
So this is the time of Python, and of torch for memory on the CPU: less than on a machine with a GPU, by what its
driver and its allocator take. It says where time goes and whether a commit adds to it, and nothing else.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import fusedmix as fm
from benchmarks.common import parser
from fusedmix import backends
from fusedmix.bench.results import markdown
from fusedmix.bench.timing import host_microseconds, quantile

CASES: dict[str, Callable[..., Any]] = {
    "MixUp": fm.MixUp,
    "CutMix": fm.CutMix,
    "CutMix, per sample": lambda **of: fm.CutMix(per="sample", **of),
    "CutMix, per sample, random": lambda **of: fm.CutMix(per="sample", pairing="random", **of),
    "GMix, per sample": lambda **of: fm.GMix(per="sample", **of),
    "RandomMix, per sample": lambda **of: fm.RandomMix([fm.MixUp(), fm.CutMix()], per="sample", **of),
}


class Driver:
    """A driver of one GPU that does nothing but to note what is launched."""

    def __init__(self, arch: int = 90) -> None:
        self.launches = launches = []  # type: list[tuple[int, tuple[int, ...], tuple[Any, ...]]]
        self.arch = arch

        class Launcher:
            """Of one compiled kernel. Notes a number of its own, the grid and the arguments."""

            def __init__(self, source: Any, metadata: Any) -> None:
                self.kept = source, metadata

            def __call__(self, *launched: Any) -> None:
                launches.append((id(self), launched[:3], launched[9:]))

        self.launcher_cls, self.utils = Launcher, self

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10}

    def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
        return 0, 0, 0, 0, 1024  # the last: threads of a block, at most


def _multiprocessors(device: torch.device) -> int:
    return 132


def _serves_the_cpu() -> bool:
    return True


def main() -> int:
    given = parser(__doc__).parse_args()
    if backends.triton_is_interpreted():
        print("triton_host: kernels are not to be interpreted: unset TRITON_INTERPRET", file=sys.stderr)
        return 2
    from fusedmix.backends.triton import mix_launch

    torch.set_num_threads(1)
    driver.set_active(noting := Driver())
    batch, loops = (8, 2) if given.quick else (512, 400)
    x, y = torch.rand(batch, 3, 32, 32), torch.randint(1000, (batch,))
    rows = []
    with (
        mock.patch.object(mix_launch, "multiprocessors", _multiprocessors),
        mock.patch.object(backends, "triton_is_interpreted", _serves_the_cpu),
    ):
        for name, make in CASES.items():
            for inplace in (True, False):
                mix = make(num_classes=1000, backend="triton", inplace=inplace)
                mix(x, y)  # compiles
                noting.launches.clear()
                mix(x, y)
                launches = len(noting.launches)
                times = host_microseconds(lambda mix=mix: mix(x, y), loops, calls=10, finish=noting.launches.clear)
                spread = (statistics.median(times), quantile(times, 0.2), quantile(times, 0.8))
                rows.append((name, "in place" if inplace else "out of place", launches, *(f"{t:.0f}" for t in spread)))
    print(markdown(("module", "", "launches", "us", "p20", "p80"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
