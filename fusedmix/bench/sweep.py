"""Measures the contenders of a case: on the same tensors, in one run, once a round in an order drawn anew.

Batches rotate over clones that outgrow the last cache. On a GPU time is that of CUDA graphs where a contender can be
captured (device.py), and of its eager calls where not; on a CPU it is the wall clock's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

import fusedmix as fm
from fusedmix.bench import device as on_device
from fusedmix.bench.cases import Case
from fusedmix.bench.contenders import Contender, contenders
from fusedmix.bench.copies import copies
from fusedmix.bench.device import Clones, Replays
from fusedmix.bench.timing import host_microseconds, interleave, quantile

_TINY_SIZE, _TINY_BATCH = 8, 4  # of the batch whose calls are timed on the host


@dataclass
class Row:
    """What one contender did with one case. Times are of a whole step: draws, images, targets."""

    method: str
    per: str
    size: int
    batch: int
    dtype: str
    layout: str
    classes: int
    backward: bool
    provider: str
    backend: str = ""
    inplace: bool = False
    targets: str = ""
    measure: str = ""  # device: in a CUDA graph; "device, eager"; wall
    median_us: float = 0.0
    p20_us: float = 0.0
    p80_us: float = 0.0
    rounds: int = 0
    floor_bytes: int = 0  # that have to be read and written, at the mean λ
    floor_ratio: float = 0.0  # to the floor's bytes at the bandwidth of the fastest copy of the batch
    copy_ratio: float = 0.0  # to the fastest copy of as many bytes as the floor's
    gb_per_s: float = 0.0  # the floor's bytes in the time taken
    host_us: float = 0.0  # of a call on a 4x3x8x8 batch, on the host
    launches: int = 0  # on a GPU
    extra_mib: float = 0.0  # the most that a step allocates at a time by torch, its results included
    failed: str = ""  # why there are no figures

    @classmethod
    def of(cls, case: Case, provider: str, **more: Any) -> Row:
        return cls(**{field.name: getattr(case, field.name) for field in fields(case)}, provider=provider, **more)


@lru_cache
def share(method: str, size: int) -> float:
    """The mean share of the batch that mixing has to touch in place: 1 - w under a binary mask."""
    if method == "CutMix":
        plan = fm.CutMix(per="sample", backend="reference").sample(4096, (size, size), seed=0)
        return 1 - float(plan.weight.mean())
    return 0.5 if method == "FMix" else 1.0


def floor_bytes(case: Case, inplace: bool) -> int:
    """Bytes that have to be read and written: the images' part, and a mask's bit for each pixel, and the targets."""
    batch = case.batch * 3 * case.size**2 * case.torch_dtype.itemsize
    masks = {"batch": 1, "pair": (case.batch + 1) // 2, "sample": case.batch}[case.per]
    bits = masks * case.size**2 // 8 if case.method == "FMix" else 0
    images = 2 * batch * (share(case.method, case.size) if inplace else 1.0) * (2 if case.backward else 1)
    return int(images) + bits + 4 * case.batch * case.classes


class Bench:
    """Measures cases one after the other.

    Args:
        device: where the batches are.
        backends, peers: who takes part.
        rounds: how often everything is measured.
        seconds: that one measurement on a CPU may take.
    """

    def __init__(
        self, device: torch.device, backends: Sequence[str], peers: Sequence[str], rounds: int, seconds: float
    ) -> None:
        self.device, self.backends, self.peers = device, backends, peers
        self.rounds, self.seconds = rounds, seconds
        self._host: dict[tuple[Any, ...], float] = {}

    def measure(self, case: Case) -> list[Row]:
        """The rows of a case, copies of the batch last."""
        torch.compiler.reset()  # the same function is compiled for every case: past eight torch.compile gives up
        clones = Clones(case.shape, case.torch_dtype, self.device, case.layout == "channels_last")
        y = torch.randint(case.classes, (case.batch,), device=self.device)
        rows: list[Row] = []
        starts: dict[int, Callable[[], Callable[[], float]]] = {}
        for contender in contenders(case, self.device, self.backends, self.peers):
            row = Row.of(case, contender.provider, backend=contender.backend, inplace=contender.inplace)
            row.targets = contender.targets
            rows.append(row)
            try:
                contender.check(clones.x[0], y)
                clones.refill()
                step = _step(case, contender.step, y)
                row.extra_mib = on_device.extra_memory(partial(step, clones.x[0]), self.device) / 2**20
                if self.device.type == "cuda":
                    row.launches = on_device.launches(partial(step, clones.x[0]))
                row.host_us = self._host_us(case, contender)
                replays = Replays(_on(step, clones.x), clones, self.device, False, row.inplace, self.seconds)
                row.measure = replays.measure
                starts[len(rows) - 1] = replays.start
            except Exception as error:  # one contender that fails stops no other; it gets no figures
                row.failed = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        copied = list(self._copies(case, clones, {row.floor_bytes or floor_bytes(case, row.inplace) for row in rows}))
        for row, replays in copied:
            rows.append(row)
            starts[len(rows) - 1] = replays.start
        finish = partial(on_device.finish, self.device)
        interleave(starts, 1, finish)
        for index, times in interleave(starts, self.rounds, finish).items():
            rows[index].median_us, rows[index].rounds = quantile(times, 0.5), len(times)
            rows[index].p20_us, rows[index].p80_us = quantile(times, 0.2), quantile(times, 0.8)
        _compare(case, rows)
        return rows

    def _copies(self, case: Case, clones: Clones, floors: set[int]) -> Iterator[tuple[Row, Replays]]:
        """Copies that read and write the batch, and as many bytes as each floor."""
        for wanted in sorted(floors | {2 * clones.bytes}):
            for name, replays in copies_of(wanted, clones, self.device, self.seconds):
                row = Row.of(case, f"copy ({name})", floor_bytes=wanted)
                row.measure = replays.measure
                yield row, replays

    def _host_us(self, case: Case, contender: Contender) -> float:
        """Microseconds of a call on the host, where the work is next to nothing. Of the same kind of case once."""
        kind = (case.method, case.per, case.dtype, case.backward)
        key = (*kind, contender.provider, contender.backend, contender.inplace)
        if contender.provider == "torch.compile":
            return 0.0  # would be compiled anew for the shape
        if key not in self._host:
            tiny = replace(case, size=_TINY_SIZE, batch=_TINY_BATCH, layout="contiguous", classes=10)
            x, y = (
                Clones(tiny.shape, tiny.torch_dtype, self.device).x[0],
                torch.zeros(tiny.batch, device=self.device).long(),
            )
            same = next(
                found
                for found in contenders(tiny, self.device, self.backends, self.peers)
                if key[4:] == (found.provider, found.backend, found.inplace)
            )
            step = partial(_step(tiny, same.step, y), x)
            finish = partial(on_device.finish, self.device)
            first = min(host_microseconds(step, 2, calls=1, finish=finish))
            loops = max(1, min(20, int(self.seconds * 1e5 / first)))
            self._host[key] = min(host_microseconds(step, loops, calls=10, finish=finish))
        return self._host[key]


def copies_of(wanted: int, clones: Clones, device: torch.device, seconds: float) -> Iterator[tuple[str, Replays]]:
    """Copies that read and write so many bytes together, of each clone."""
    count = max(16, wanted // 2 // clones.x[0].element_size() // 16 * 16)
    sources, targets = ([_flat(t, count) for t in of] for of in (clones.x, clones.out))
    for name, copy in copies(device).items():
        yield name, Replays(_copying(copy, targets, sources), clones, device, True, False, seconds)


def _step(case: Case, step: Callable[[Tensor, Tensor], Any], y: Tensor) -> Callable[[Tensor], Any]:
    """Of one argument; with the gradient of the images if the case wants it."""
    if not case.backward:
        return lambda x: step(x, y)

    def both_ways(x: Tensor) -> Any:
        x = x.detach().requires_grad_()
        images, targets = step(x, y)
        return images, targets, torch.autograd.grad(images, x, images.detach())

    return both_ways


def _on(step: Callable[[Tensor], Any], batches: list[Tensor]) -> Callable[[int], Any]:
    return lambda k: step(batches[k])


def _flat(x: Tensor, count: int) -> Tensor:
    """As many elements, more than the batch has if need be."""
    flat = x.permute(0, 2, 3, 1).reshape(-1) if x.is_contiguous(memory_format=torch.channels_last) else x.reshape(-1)
    return flat[:count] if count <= flat.numel() else torch.empty(count, dtype=x.dtype, device=x.device).fill_(0)


def _copying(
    copy: Callable[[Tensor, Tensor], Any], targets: list[Tensor], sources: list[Tensor]
) -> Callable[[int], Any]:
    return lambda k: copy(targets[k], sources[k])


def _compare(case: Case, rows: list[Row]) -> None:
    """Fills in what is relative to the copies of the same run."""
    batch = 2 * case.batch * 3 * case.size**2 * case.torch_dtype.itemsize
    copied: dict[int, float] = {}
    for row in rows:
        if row.provider.startswith("copy"):
            copied[row.floor_bytes] = min(row.median_us, copied.get(row.floor_bytes, row.median_us))
    for row in rows:
        if row.failed:
            continue
        row.floor_bytes = row.floor_bytes or floor_bytes(case, row.inplace)
        row.copy_ratio = row.median_us / copied[row.floor_bytes]
        row.floor_ratio = row.median_us / (copied[batch] * row.floor_bytes / batch)
        row.gb_per_s = row.floor_bytes / row.median_us / 1e3
