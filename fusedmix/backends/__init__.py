"""Which implementation of the operators runs where, and why not another.

A backend is a set of operators with one schema (fusedmix/ops.py) in a namespace of its own, so that a graph, a profile
or a test says which kernel ran. One is chosen per device type at a module's construction or at the first call:
`backend=` decides, else the environment variable FUSEDMIX_BACKEND, else the first of the device's list that works.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch

NAMES = ("cuda", "triton", "cpp", "reference")
_PREFERENCE = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpp", "reference")}
_NOT_HERE = "not part of this release"


class BackendError(RuntimeError):
    """A backend was asked for that cannot run here; the message says why."""


class Report(NamedTuple):
    """One line of `fusedmix info`."""

    name: str
    device: str
    works: bool
    chosen: bool
    reason: str


def check_name(backend: str | None, argument: str = "backend") -> None:
    """Raises ValueError unless `backend` is None or the name of a backend."""
    if backend is not None and backend not in NAMES:
        raise ValueError(f"{argument} must be one of {', '.join(NAMES)} or None, but got {backend!r}.")


def operators(device_type: str, backend: str | None = None) -> Any:
    """The namespace of operators for tensors on a device type ("cpu", "cuda", ...).

    Raises:
        ValueError: no backend has that name.
        BackendError: the backend asked for cannot run there.
    """
    return getattr(torch.ops, f"fusedmix_{choose(device_type, backend)}")


def choose(device_type: str, backend: str | None = None) -> str:
    """The name of the backend that serves a device type."""
    if backend is None:
        backend = os.environ.get("FUSEDMIX_BACKEND") or None
        check_name(backend, "the environment variable FUSEDMIX_BACKEND")
    else:
        check_name(backend)
    if backend is None:
        return next(name for name in _preference(device_type) if _why_not(name, device_type) is None)
    reason = _why_not(backend, device_type)
    if reason is not None:
        raise BackendError(f"The backend {backend!r} cannot run on {device_type!r} tensors: {reason}.")
    return backend


def report() -> list[Report]:
    """Every backend on every device type that is here: whether it works, whether it is chosen, and why (not)."""
    lines = []
    for device_type in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        chosen = choose(device_type)
        for name in _preference(device_type):
            reason = _why_not(name, device_type)
            works = reason is None
            if name == chosen:
                reason = "FUSEDMIX_BACKEND" if os.environ.get("FUSEDMIX_BACKEND") else "first that works"
            lines.append(Report(name, device_type, works, name == chosen, reason or "works, comes later"))
    return lines


def _preference(device_type: str) -> tuple[str, ...]:
    return _PREFERENCE.get(device_type, ("reference",))


def _why_not(name: str, device_type: str) -> str | None:
    """Why a backend cannot serve a device type, or None."""
    return None if name == "reference" else _NOT_HERE
