"""Which implementation of the operators runs where, and why not another.

A backend is a set of operators with one schema (fusedmix/ops.py) in a namespace of its own, so that a graph, a
profile or a test says which kernel ran. One is chosen for each device type: `backend=` decides, else the environment
variable FUSEDMIX_BACKEND, else the first of the device's list that works.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fusedmix.backends import native

_log = logging.getLogger("fusedmix")
NAMES = ("cuda", "triton", "cpp", "reference")
# On the CPU Triton runs in its interpreter, which is slower than anything. It is for tests, and never chosen unasked.
_PREFERENCE = {"cpu": ("cpp", "reference", "triton"), "cuda": ("cuda", "triton", "reference")}


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
    """The namespace of operators for tensors on a device type ("cpu", "cuda", ...), built and loaded if need be.

    Raises:
        ValueError: no backend has that name.
        BackendError: the backend asked for cannot run there.
    """
    return getattr(torch.ops, f"fusedmix_{choose(device_type, backend)}")


def choose(device_type: str, backend: str | None = None) -> str:
    """The name of the backend that serves a device type; chosen once, and again only if FUSEDMIX_BACKEND changes.

    An argument must be able to serve that very device type. FUSEDMIX_BACKEND speaks for a whole program, in which
    labels may be on the CPU and images on a GPU: where its backend has no part, the device's own list decides; if it
    works nowhere here, that is an error.
    """
    key = (device_type, backend, None if backend is not None else os.environ.get("FUSEDMIX_BACKEND"))
    name = _chosen.get(key)
    if name is None:
        name = _chosen[key] = _choose(*key)
    return name


_chosen: dict[tuple[str, str | None, str | None], str] = {}
# A trace takes the choice for a constant. Modules choose when they are made; what that could not foresee is built then,
# before the graph runs. (torch.compiler.assume_constant_result marks a function in this way, but imports Dynamo, and
# with it Triton.)
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def prepare(backend: str | None) -> None:
    """Chooses, and so builds, for the devices in use: a module calls it when it is made. Never raises: what cannot
    run is an error when it is to run."""
    for device_type in ("cpu", "cuda") if torch.cuda.is_initialized() else ("cpu",):
        with contextlib.suppress(BackendError):
            choose(device_type, where_it_serves(backend, device_type))


def _choose(device_type: str, backend: str | None, named: str | None) -> str:
    if backend is not None:
        check_name(backend)
        reason = _start(backend, device_type)
        if reason is not None:
            raise BackendError(f"The backend {backend!r} cannot run on {device_type!r} tensors: {reason}.")
        return backend
    if named:
        if named not in NAMES:
            raise BackendError(f"FUSEDMIX_BACKEND must be one of {', '.join(NAMES)}, but got {named!r}.")
        reason = _start(named, device_type)
        if reason is None:
            return named
        if all(_why_not(named, other) is not None for other in _PREFERENCE):
            raise BackendError(f"FUSEDMIX_BACKEND={named} cannot run on {device_type!r} tensors: {reason}.")
    passed_over = []
    for name in _preference(device_type):
        reason = _start(name, device_type)
        if reason is None:
            break
        passed_over.append(f"{name} ({reason})")
    if name == "reference" and device_type != "meta":
        # This is said once for each device type. It is no warning, because programs turn warnings into errors, and
        # nothing is wrong.
        why = ", ".join(passed_over) or f"there is none for {device_type!r} tensors"
        _log.warning(
            "fusedmix: %s batches are mixed by plain PyTorch operations (the backend reference), not by a faster "
            "backend: %s. The results are right. `fusedmix info` shows every backend.",
            device_type,
            why,
        )
    return name


def where_it_serves(backend: str | None, device_type: str) -> str | None:
    """A backend asked for, or None on a device type that it has no part in (labels or plans on the CPU of images on a
    GPU). Triton's interpreter is a part of the CPU's only where it is asked for."""
    if backend == "triton" and device_type == "cpu" and not triton_is_interpreted():
        return None
    return backend if backend in _preference(device_type) else None


where_it_serves._dynamo_marked_constant = True  # type: ignore[attr-defined]


def report() -> list[Report]:
    """Every backend on every device type: whether it works here, whether it is chosen, and why (not). Never raises."""
    named = os.environ.get("FUSEDMIX_BACKEND")
    lines = []
    for device_type in _PREFERENCE:
        absent = device_type == "cuda" and not torch.cuda.is_available()
        try:
            chosen = None if absent else choose(device_type)
        except BackendError:  # The line of the backend that FUSEDMIX_BACKEND asks for says why.
            chosen = None
        for name in _preference(device_type):
            reason = "torch finds no GPU" if absent else _why_not(name, device_type)
            works = reason is None
            if name == chosen:
                reason = "FUSEDMIX_BACKEND" if named == name else "first that works"
            elif works:
                reason = f"{chosen} comes first"
                if chosen is None:
                    what = "is asked for" if named in NAMES else f"is none of {', '.join(NAMES)}"
                    reason = f"FUSEDMIX_BACKEND={named} {what}"
            lines.append(Report(name, device_type, works, name == chosen, reason or ""))
    return lines


def _preference(device_type: str) -> tuple[str, ...]:
    return _PREFERENCE.get(device_type, ("reference",))


def _why_not(name: str, device_type: str) -> str | None:
    """Why a backend cannot serve a device type, as far as can be said without building it, or None."""
    if name == "reference":
        return None
    if name not in _preference(device_type):
        return f"it does not serve {device_type!r} tensors"
    if name == "triton":
        return why_not_triton(device_type)
    if name == "cuda" and not torch.cuda.is_available():
        return "torch finds no GPU"
    return native.why_not("cuda" if name == "cuda" else "cpp")


def triton_is_interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not_triton(device_type: str) -> str | None:
    """Why the operators in Triton cannot serve a device type, or None. Does not import Triton."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if device_type == "cpu":
        return (
            None
            if triton_is_interpreted()
            else "it serves CPU tensors only in Triton's interpreter, for tests: TRITON_INTERPRET=1"
        )
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if triton_is_interpreted():
        return None
    compiler = os.environ.get("CC")
    if shutil.which(compiler) is None if compiler else not any(map(shutil.which, ("gcc", "clang"))):
        return f"Triton builds its launcher with a C compiler, and there is no {compiler or 'gcc or clang'}"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Triton builds its launcher with the headers of Python, and they are not installed (python3-dev)"
    return None


def _start(name: str, device_type: str) -> str | None:
    """Builds and loads a backend. Why it cannot serve the device type, or None."""
    reason = _why_not(name, device_type)
    if reason is None and name in ("cpp", "cuda"):
        try:
            native.load("cuda" if name == "cuda" else "cpp")
        except native.BuildError as error:
            return str(error)
    return reason
