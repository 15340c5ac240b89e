"""Wall-clock and host time, and the row that a benchmark writes of them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class Timing:
    """One row: what was called, on what, and how long it took."""

    # device: time on the GPU; wall: of the call; host: of the call on a tiny batch, without the work; first process: of
    # the first calls, what they compile included; later process: the same where it has been compiled
    measure: str
    provider: str  # fusedmix, torchvision, torch.compile, torch, triton, numpy
    call: str  # mix_, mix, mix_ + mix_labels, step (images and targets in one operator), module, copy, clone, mask
    method: str = ""
    backend: str = ""
    pairing: str = ""
    per: str = ""
    inplace: bool = False
    dtype: str = ""
    shape: str = ""
    share: float = 1.0  # of the batch that is read and written
    bytes: int = 0  # read and written
    median_us: float = 0.0
    p20_us: float = 0.0
    p80_us: float = 0.0
    least_us: float = 0.0
    repeats: int = 0
    copy_ratio: float = 0.0  # to a copy in the same run: of the batch on a CPU, of as many bytes on a GPU; 0: none
    layout: str = "contiguous"
    kernels: str = ""  # that the call launched on a GPU

    def record(self, microseconds: Sequence[float]) -> None:
        """Fills in the summary of its times."""
        self.median_us = statistics.median(microseconds)
        self.p20_us, self.p80_us = (quantile(microseconds, q) for q in (0.2, 0.8))
        self.least_us, self.repeats = min(microseconds), len(microseconds)


def quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def interleave(
    measures: Mapping[Any, Callable[[], Callable[[], float]]], rounds: int, finish: Callable[[], None] | None = None
) -> dict[Any, list[float]]:
    """Measures everything once a round, in an order drawn anew, so that what disturbs the machine disturbs all alike.

    Args:
        measures: by key: starts a measurement and returns what reads its microseconds.
        finish: called at the end of a round, before the times are read (waits for a device).
    """
    order = random.Random(0)
    times: dict[Any, list[float]] = {key: [] for key in measures}
    for _ in range(rounds):
        keys = list(measures)
        order.shuffle(keys)
        started = [(key, measures[key]()) for key in keys]
        if finish is not None:
            finish()
        for key, read in started:
            times[key].append(read())
    return times


def wall(call: Callable[[], Any], prepare: Callable[[], Any] | None = None) -> Callable[[], Callable[[], float]]:
    """A measurement for `interleave`: the wall-clock time of a call, its result freed outside of it."""

    def measure() -> Callable[[], float]:
        if prepare is not None:
            prepare()
        start = time.perf_counter()
        result = call()
        microseconds = (time.perf_counter() - start) * 1e6
        del result
        return lambda: microseconds

    return measure


def host_microseconds(
    call: Callable[[], Any], loops: int, calls: int = 50, finish: Callable[[], None] | None = None
) -> list[float]:
    """Of a call, from many short loops."""
    times = []
    for _ in range(loops):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) * 1e6 / calls)
        if finish is not None:
            finish()
    return times
