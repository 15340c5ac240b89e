"""Time on the device: calls captured in a CUDA graph, replayed over copies of the batch that outgrow the cache.

On a CPU (dry runs) the same calls are timed by the wall clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LEAST_CALLS = 4  # in a graph: what a replay costs before its first kernel is shared among them
_CYCLES_AHEAD = 4_000_000  # that the device waits, some 2 ms, for the host to launch what is in no graph


class Clones:
    """Copies of one random batch, together more than three times the second-level cache: when a replay comes back to
    the first, nothing of it is cached any more."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        size = math.prod(shape) * dtype.itemsize
        cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
        self.count = max(_LEAST_CALLS, 3 * cache // size + 1)
        self._pristine = torch.randn((self.count, *shape), device=device).to(dtype)
        self._all = self._pristine.clone()
        self.x: list[Tensor] = list(self._all.unbind())
        self.out: list[Tensor] = list(torch.empty_like(self._all).unbind())
        self.bytes = size

    def refill(self) -> None:
        """The data as they were. In one launch, which is also what the host needs to run ahead of the device."""
        self._all.copy_(self._pristine)


class Replays:
    """A call for each clone, captured once. `call(k)` works on clone k.

    Attributes:
        measure: "device"; "device, eager" for what cannot be captured; "wall" without a GPU.
    """

    def __init__(
        self, call: Callable[[int], Any], clones: Clones, device: torch.device, must_capture: bool = True
    ) -> None:
        self._call, self._clones = call, clones
        self._graph: torch.cuda.CUDAGraph | None = None
        self._kept: list[Any] = []
        self.measure = "wall"
        if device.type != "cuda":
            call(0)
            return
        stream = torch.cuda.Stream()  # compiles, builds and allocates outside of the capture
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for k in range(_LEAST_CALLS):
                call(k)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.measure = "device"
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                # Kept: results that were freed would share their memory, and with it the cache.
                self._kept = [call(k) for k in range(clones.count)]
            self._graph = graph
        except RuntimeError:
            if must_capture:
                raise
            self.measure = "device, eager"

    def start(self) -> Callable[[], float]:
        """A measurement for timing.interleave: microseconds of one call."""
        self._clones.refill()
        if self.measure == "wall":
            begin = time.perf_counter()
            self._run()
            microseconds = (time.perf_counter() - begin) * 1e6 / self._clones.count
            return lambda: microseconds
        if self._graph is None:
            torch.cuda._sleep(_CYCLES_AHEAD)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        self._run() if self._graph is None else self._graph.replay()
        after.record()
        return lambda: before.elapsed_time(after) * 1e3 / self._clones.count

    def _run(self) -> None:
        for k in range(self._clones.count):
            self._call(k)


def finish(device: torch.device) -> None:
    """Waits for everything that was started."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def extra_memory(call: Callable[[], Any]) -> int:
    """The most bytes that a call has allocated at any time, what it returns included."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before
