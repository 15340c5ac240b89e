"""How plans are drawn on a GPU: what the kernels of sample_kernel.py are given."""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from fusedmix.arguments import PlanTensors, empty_parts
from fusedmix.backends.triton.enums import Lams
from fusedmix.backends.triton.launch import Kernel, of_seed
from fusedmix.backends.triton.numbers import bits
from fusedmix.backends.triton.sample_kernel import circle_kernel, sample_kernel
from fusedmix.draws import CPU, Request
from fusedmix.masks.family import padded
from fusedmix.methods import Column, Drawn, Pairing
from fusedmix.spec import families

_SAMPLES = 16  # A program draws so many,
_BLOCKS = {"S": _SAMPLES, "T": 64}  # and compares their keys with 64 at a time.
_OPTIONS = int(Drawn.SIDES | Drawn.ASPECT | Drawn.RATIO)

_sample = Kernel(sample_kernel)
_circle = Kernel(circle_kernel)


class Spec(NamedTuple):
    """What the host has to know of a spec."""

    rows: bytes
    methods: int  # A spec has a row for each.
    families: int
    swaps: bool
    options: int  # What some row draws that most do not.


def spec_of(spec: Tensor) -> Spec:
    """Found once: a spec is the same one at every step, unless a schedule changes α."""
    spec = spec.contiguous()
    return _spec_of(ctypes.string_at(spec.data_ptr(), spec.nbytes))


@functools.lru_cache(maxsize=256)
def _spec_of(held: bytes) -> Spec:
    rows, options = _rows_on(CPU, held), 0
    for drawn in rows[:, Column.DRAWS].tolist():
        options |= int(drawn) & _OPTIONS
    return Spec(held, len(rows), int(families(rows)), bool((rows[:, Column.REFORMULATE] != 0).any()), options)


@functools.lru_cache(maxsize=256)
def _rows_on(device: torch.device, held: bytes) -> Tensor:
    """The rows of a spec on a device."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "fusedmix: the parameters of a method are not on the GPU yet, and cannot be brought there while a CUDA "
            "graph is captured. Run the step once before it is captured."
        )
    return torch.frombuffer(bytearray(held), dtype=torch.float64).reshape(-1, len(Column)).to(device)


def sample(request: Request, seed: Tensor, device: torch.device) -> PlanTensors:
    """The plan of a request from a seed, on `device`."""
    spec, batch, size, pairing, per, p, lam, labels = request
    plan = empty_parts(batch, device)
    if batch == 0:
        return plan
    partner, lams, weights, records = plan
    programs, held = -(-batch // _SAMPLES), spec_of(spec)
    depth, height, width = padded(size)
    named = {
        **of_seed(seed, partner), "classes": partner if labels is None else labels.to(device).contiguous(),
        "order": partner, "spot": partner, "members": partner, "batch": batch, **_BLOCKS,
    }  # fmt: skip
    if pairing == Pairing.CROSS_CLASS:
        named.update((name, torch.empty_like(partner)) for name in ("order", "spot", "members"))
        _circle.launch(programs, device, named)
    named = {
        **named, "partner": partner, "lams": lams, "weights": weights, "records": records,
        "spec": _rows_on(device, held.rows), "depth": depth, "height": height, "width": width, "p": bits(p),
        "given": lams if lam is None else lam.to(device, torch.float32).contiguous(),
        "METHODS": held.methods, "CHOICE": held.methods > 1 or p < 1.0, "FAMILIES": held.families, "SWAPS": held.swaps,
        "DRAWS": held.options if lam is None else held.options & ~int(Drawn.SIDES),
        "LAM": Lams.DRAWN if lam is None else Lams.EACH if lam.ndim else Lams.ONE,
        "PAIRING": int(pairing), "PER": int(per), "NDIM": len(size),
    }  # fmt: skip
    _sample.launch(programs, device, named)
    return plan
