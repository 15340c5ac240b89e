"""Launching Triton kernels: what is compiled once is launched without Triton's own search for it."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from fusedmix.backends.triton.numbers import INTERPRETED

WARPS = 4


class Kernel:
    """A kernel and what has been compiled of it.

    Triton's launcher finds the compiled kernel by looking at every argument, which takes about as long as everything
    else that a call does. Here it is found by a key that holds all that Triton specialises on: the constants, the
    element types, and which pointers are multiples of 16. Kernels are declared so that nothing else is.
    """

    def __init__(self, function: Any, warps: int = WARPS) -> None:
        self.function, self.warps = function, warps
        self._compiled: dict[Any, Any] = {}

    def __call__(
        self, programs: int, arguments: tuple[Any, ...], constants: tuple[Any, ...], device: torch.device
    ) -> None:
        """Launches on the current stream of a device; on the CPU, runs in Triton's interpreter."""
        if programs == 0:
            return
        if INTERPRETED:
            import numpy as np

            with np.errstate(all="ignore"):  # IEEE arithmetic, as on a GPU: infinities are not news
                self.function[(programs,)](*arguments, *constants)
            return
        with on(device):
            key = (device.index, constants, *map(_specialised_on, arguments))
            compiled = self._compiled.get(key)
            if compiled is None:
                self._compiled[key] = self.function[(programs,)](
                    *arguments, *constants, num_warps=self.warps, enable_fp_fusion=False
                )
            else:
                compiled[(programs, 1, 1)](*arguments, *constants)


def _specialised_on(argument: Any) -> Any:
    """What a kernel is compiled for: of a tensor its type and its alignment, of numbers how wide they are."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, tuple):
        # Into tuples Triton's do_not_specialize does not reach.
        return tuple((_specialised_on(part), part == 1, part % 16 == 0) for part in argument)
    return -(1 << 31) <= argument < 1 << 31 if isinstance(argument, int) else float


def on(device: torch.device) -> Any:
    """Makes a GPU the current one, if it is not."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


@functools.lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; in the interpreter, few enough that tests see batches that are cut into units."""
    return 2 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def milliseconds(call: Callable[[], None], device: torch.device, repeats: int = 10) -> float:
    """The median time of a call."""
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with on(device):
                start.record()
                call()
                stop.record()
                stop.synchronize()
            times.append(start.elapsed_time(stop))
        else:
            begin = time.perf_counter()
            call()
            times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)
