"""Time on the device: calls captured in a CUDA graph, replayed over copies of the batch that outgrow the cache.

On a CPU the same calls are timed by the wall clock. What a call allocates and launches.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_LEAST_CALLS = 4  # in a graph: what a replay costs before its first kernel is shared among them
_MOST_CLONES = 128
_CYCLES_AHEAD = 4_000_000  # that the device waits, some 2 ms, for the host to launch what is in no graph


def _cache(device: torch.device) -> int:
    """Bytes of the last cache before memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    largest = 0
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KM])", path.read_text().strip())
        largest = max(largest, int(found[1]) << (10 if found[2] == "K" else 20) if found else 0)
    return largest


class Clones:
    """Copies of one random batch, together more than three times the last cache: when a replay comes back to
    the first, nothing of it is cached any more."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, channels_last: bool = False
    ) -> None:
        size = math.prod(shape) * dtype.itemsize
        self.count = max(_LEAST_CALLS, min(_MOST_CLONES, 3 * _cache(device) // size + 1))
        made = torch.randn((self.count, *shape), device=device)
        self._pristine = made.to(dtype) if dtype.is_floating_point else (made * 64 + 128).clamp(0, 255).to(dtype)
        if channels_last:
            self._pristine = self._pristine.movedim(2, -1).contiguous().movedim(-1, 2)
        self._all = self._pristine.clone()
        self.x: list[Tensor] = list(self._all.unbind())
        self.out: list[Tensor] = list(torch.empty_like(self._all).unbind())
        self.bytes = size

    def refill(self) -> None:
        """The data as they were. In one launch, which is also what the host needs to run ahead of the device."""
        self._all.copy_(self._pristine)


class Replays:
    """A call for each clone, captured once.

    Args:
        call: of k: works on clone k.
        must_capture: else what cannot be captured is timed as it is.
        restore: whether the clones' data are restored before every measurement: not needed by what leaves them alone.
        seconds: that a measurement on a CPU may take: slow calls run on fewer clones.

    Attributes:
        measure: "device"; "device, eager" for what cannot be captured; "wall" without a GPU.
    """

    def __init__(
        self,
        call: Callable[[int], Any],
        clones: Clones,
        device: torch.device,
        must_capture: bool = True,
        restore: bool = True,
        seconds: float = 0.25,
    ) -> None:
        self._call, self._clones, self._restore = call, clones, restore
        self._graph: torch.cuda.CUDAGraph | None = None
        self._kept: list[Any] = []
        self.measure = "wall"
        self._calls = clones.count
        if device.type != "cuda":
            call(0)
            begin = time.perf_counter()
            call(1)
            self._calls = max(1, min(clones.count, int(seconds / (time.perf_counter() - begin + 1e-9))))
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
        if self._restore:
            self._clones.refill()
        if self.measure == "wall":
            begin = time.perf_counter()
            self._run()
            microseconds = (time.perf_counter() - begin) * 1e6 / self._calls
            return lambda: microseconds
        if self._graph is None:
            torch.cuda._sleep(_CYCLES_AHEAD)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        self._run() if self._graph is None else self._graph.replay()
        after.record()
        return lambda: before.elapsed_time(after) * 1e3 / self._clones.count

    def _run(self) -> None:
        for k in range(self._calls):
            self._call(k)


def finish(device: torch.device) -> None:
    """Waits for everything that was started."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def extra_memory(call: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that a call has asked torch for at any time, what it returns included."""
    call()
    if device.type == "cuda":
        # Requested, not allocated: the allocator hands out 2 MiB at a time above 1 MiB.
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        result = call()
        torch.cuda.synchronize()
        del result
        return torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = call()
        del result
    results = seen.profiler.kineto_results if seen.profiler is not None else None
    events = [e for e in results.events() if e.name() == "[memory]"] if results is not None else []
    held = accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(0, *held, 0)


def launches(call: Callable[[], Any]) -> int:
    """Kernels, copies and fills that a call puts on the GPU."""
    call()
    return len(kernels([call])[0])


def kernels(calls: Sequence[Callable[[], Any]]) -> list[list[str]]:
    """The names of what each call puts on the current stream of the GPU, in order, without arguments of templates and
    functions. The calls have compiled before what they need.

    Raises:
        RuntimeError: the profiler has not seen all of it.
    """
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        # Up to torch 2.11 of every profile, though there is but one cycle.
        warnings.filterwarnings("ignore", "Warning: Profiler clears events at the end of each cycle", UserWarning)
        with profile(activities=[ProfilerActivity.CUDA]) as seen:  # one for all: to start it takes long
            for call in calls:
                torch.cuda._sleep(1)
                call()
            torch.cuda.synchronize()
    events = [event for event in seen.events() if event.device_type == DeviceType.CUDA]
    return split([kernel_name(event.name) for event in sorted(events, key=lambda e: e.time_range.start)], len(calls))


def split(names: Sequence[str], count: int) -> list[list[str]]:
    """What stands behind each of `count` marks, the first name being the mark.

    Raises:
        RuntimeError: there is another number of marks.
    """
    if names.count(names[0] if names else "") != count:
        raise RuntimeError(f"the profiler has not seen each of {count} calls")
    found: list[list[str]] = []
    for name in names:
        if name == names[0]:
            found.append([])
        else:
            found[-1].append(name)
    return found


def kernel_name(signature: str) -> str:
    """`void fusedmix::cuda::mix_kernel<float, 4>(Args)` as `fusedmix::cuda::mix_kernel`."""
    name = signature.removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.split(r"[<(]", name)[0].strip()
