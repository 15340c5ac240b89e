"""Which implementation of the operators runs where, and why not another.

A backend is a set of operators with one schema (fusedmix/ops.py) in a namespace of its own, so that a graph, a
profile or a test says which kernel ran. One is chosen for each device type: `backend=` decides, else the environment
variable FUSEDMIX_BACKEND, else the first of the device's list that works.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch

NAMES = ("cuda", "triton", "cpp", "reference")
_PREFERENCE = {"cpu": ("cpp", "triton", "reference"), "cuda": ("cuda", "triton", "reference")}


class BackendError(RuntimeError):
    """A backend was asked for that cannot run here; the message says why."""


class Report(NamedTuple):
    """One line of `fusedmix info`."""

    name: str
    device: str
    works: bool
    chosen: bool
    reason: str


def check_name(backend: str | None) -> None:
    """Raises ValueError unless `backend` is None or the name of a backend."""
    if backend is not None and backend not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)} or None, but got {backend!r}.")


def operators(device_type: str, backend: str | None = None) -> Any:
    """The namespace of operators for tensors on a device type ("cpu", "cuda", ...).

    Raises:
        ValueError: no backend has that name.
        BackendError: the backend asked for cannot run there.
    """
    return getattr(torch.ops, f"fusedmix_{choose(device_type, backend)}")


def choose(device_type: str, backend: str | None = None) -> str:
    """The name of the backend that serves a device type.

    An argument must be able to serve that very device type. FUSEDMIX_BACKEND speaks for a whole program, in which
    labels may be on the CPU and images on a GPU: where its backend has no part, the device's own list decides; if it
    works nowhere here, that is an error.
    """
    if backend is not None:
        check_name(backend)
        reason = _why_not(backend, device_type)
        if reason is not None:
            raise BackendError(f"The backend {backend!r} cannot run on {device_type!r} tensors: {reason}.")
        return backend
    named = os.environ.get("FUSEDMIX_BACKEND")
    if named:
        if named not in NAMES:
            raise BackendError(f"FUSEDMIX_BACKEND must be one of {', '.join(NAMES)}, but got {named!r}.")
        reason = _why_not(named, device_type)
        if reason is None:
            return named
        if all(_why_not(named, other) is not None for other in _PREFERENCE):
            raise BackendError(f"FUSEDMIX_BACKEND={named} cannot run on {device_type!r} tensors: {reason}.")
    return next(name for name in _preference(device_type) if _why_not(name, device_type) is None)


def report() -> list[Report]:
    """Every backend on every device type: whether it works here, whether it is chosen, and why (not). Never raises."""
    named = os.environ.get("FUSEDMIX_BACKEND")
    lines = []
    for device_type in _PREFERENCE:
        absent = device_type == "cuda" and not torch.cuda.is_available()
        try:
            chosen = None if absent else choose(device_type)
        except BackendError:  # FUSEDMIX_BACKEND asks for what its own line explains
            chosen = None
        for name in _preference(device_type):
            reason = "torch finds no GPU" if absent else _why_not(name, device_type)
            works = reason is None
            if name == chosen:
                reason = "FUSEDMIX_BACKEND" if named == name else "first that works"
            elif works:
                reason = f"FUSEDMIX_BACKEND={named} is asked for" if chosen is None else f"{chosen} comes first"
            lines.append(Report(name, device_type, works, name == chosen, reason or ""))
    return lines


def _preference(device_type: str) -> tuple[str, ...]:
    return _PREFERENCE.get(device_type, ("reference",))


def _why_not(name: str, device_type: str) -> str | None:
    """Why a backend cannot serve a device type, or None."""
    if name == "reference":
        return None
    if name not in _preference(device_type):
        return f"it does not serve {device_type!r} tensors"
    return "it is not part of this release"
