"""The calls whose time is guarded: what the `cpp` backend does, on small and middle batches, by the public functions.

benchmarks/test_regression.py times them with pytest-benchmark. benchmarks/compare.py runs a copy of this file as a
process for each of two commits:

    python regression.py [PATTERN]    # the cases as a line of JSON; then, for "NAME CALLS" on stdin, seconds of a call

It imports nothing of `benchmarks`: which fusedmix is timed must depend on PYTHONPATH alone. One thread, because what
other threads do between two calls is not the question.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import fusedmix as fm
from fusedmix.backends import native

Call = Callable[[], Any]
SIDES = {"small": 32, "middle": 112}
_BATCH = 32
_CLASSES = {"small": 10, "middle": 1000}
_METHODS = ("MixUp", "CutMix", "HMix", "GMix", "FMix")


def _batch(side: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand((_BATCH, 3, side, side), generator=generator) * 255).to(dtype)


def _plan(method: str, side: int, **options: Any) -> fm.MixPlan:
    return getattr(fm, method)(backend="cpp", **options).sample(_BATCH, (side, side), seed=1)


def _mix_in_place(
    method: str, side: int, *, dtype: torch.dtype = torch.float32, channels_last: bool = False, **options: Any
) -> Call:
    x = _batch(side, dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return partial(fm.mix_, x, _plan(method, side, **options), backend="cpp")


def _mix(method: str, side: int) -> Call:
    return partial(fm.mix, _batch(side), _plan(method, side), backend="cpp")


def _backward(method: str, side: int) -> Call:
    x = _batch(side).requires_grad_()
    mixed = fm.mix(x, _plan(method, side), backend="cpp")
    return partial(torch.autograd.grad, mixed, x, torch.ones_like(mixed), retain_graph=True)


def _sample(method: str, side: int) -> Call:
    mix = getattr(fm, method)(per="sample", backend="cpp")
    return partial(mix.sample, _BATCH, (side, side), seed=1)


def _module(method: str, side: int, **options: Any) -> Call:
    mix = getattr(fm, method)(num_classes=10, backend="cpp", **options)
    return partial(mix, _batch(side), torch.arange(_BATCH) % 10)


def _mix_labels(classes: int) -> Call:
    labels = torch.arange(_BATCH) % classes
    return partial(fm.mix_labels, labels, _plan("MixUp", 8), num_classes=classes, backend="cpp")


def _loss(name: str, classes: int, backward: bool) -> Call:
    logits = torch.randn((_BATCH, classes), generator=torch.Generator().manual_seed(0), requires_grad=backward)
    labels, plan = torch.arange(_BATCH) % classes, _plan("MixUp", 8)
    forward = partial(getattr(fm, name), logits, labels, plan, backend="cpp")
    return partial(torch.autograd.grad, forward(), logits, retain_graph=True) if backward else forward


def _all() -> dict[str, Callable[[], Call]]:
    found: dict[str, Callable[[], Call]] = {}
    for size, side in SIDES.items():
        for method in _METHODS:
            found[f"mix_-{method}-{size}"] = partial(_mix_in_place, method, side, per="sample")
            found[f"sample-{method}-{size}"] = partial(_sample, method, side)
        for method in ("MixUp", "CutMix"):
            found[f"mix_-{method}-flip-{size}"] = partial(_mix_in_place, method, side, pairing="flip")
            found[f"mix-{method}-{size}"] = partial(_mix, method, side)
            found[f"backward-{method}-{size}"] = partial(_backward, method, side)
            found[f"module-{method}-{size}"] = partial(_module, method, side, inplace=True)
        classes = _CLASSES[size]
        found[f"mix_labels-{size}"] = partial(_mix_labels, classes)
        for name in ("mix_cross_entropy", "mix_binary_cross_entropy"):
            found[f"{name}-{size}"] = partial(_loss, name, classes, False)
            found[f"{name}-backward-{size}"] = partial(_loss, name, classes, True)
    middle = SIDES["middle"]
    found["mix_-MixUp-bfloat16-middle"] = partial(_mix_in_place, "MixUp", middle, dtype=torch.bfloat16)
    found["mix_-MixUp-uint8-middle"] = partial(_mix_in_place, "MixUp", middle, dtype=torch.uint8)
    found["mix_-MixUp-channels_last-middle"] = partial(_mix_in_place, "MixUp", middle, channels_last=True)
    found["mix_-CutMix-channels_last-middle"] = partial(_mix_in_place, "CutMix", middle, channels_last=True)
    return found


CASES = _all()  # by name: what makes the call


def _serve() -> None:
    """Times what is asked for on stdin until that ends."""
    torch.set_num_threads(1)
    calls: dict[str, Call] = {}
    reasons: dict[str, str] = {}
    pattern = sys.argv[1] if len(sys.argv) > 1 else ""
    for name, make in CASES.items():
        if not re.search(pattern, name):
            continue
        try:
            call = make()
            call()
            calls[name] = call
        except Exception as error:  # another commit may lack it
            reasons[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    library = native._loaded.get("cpp")
    origin = {"package": fm.__file__, "library": str(library), "cases": list(calls), "failed": reasons}
    print(json.dumps(origin), flush=True)
    for line in sys.stdin:
        name, count = line.split()
        call, loops = calls[name], range(int(count))
        start = time.perf_counter()
        for _ in loops:
            call()
        print((time.perf_counter() - start) / len(loops), flush=True)


if __name__ == "__main__":
    _serve()
