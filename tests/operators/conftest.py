"""Backends as fixtures: their parameters put the backend into the id of a test, and say where it can run."""

from __future__ import annotations

import contextlib
import functools

import pytest

from callers import CPP, CUDA, INTERPRETED, TRITON
from fusedmix import backends
from operators.on_shim import SHARED, OnShim


@pytest.fixture(params=[CPP])
def cpp(monkeypatch):
    """The operators; the backend is also the one that is chosen on the CPU."""
    monkeypatch.delenv("FUSEDMIX_BACKEND", raising=False)
    return backends.operators("cpu", "cpp")


@functools.cache
def the_shim():
    from shim_backend import Shim

    return Shim()


@contextlib.contextmanager
def prepared(shim):
    """A chip of two multiprocessors, with the order of threads that every test begins with."""
    shim.multiprocessors, shim.shared_bytes = 2, SHARED
    shim.module.seed(0)
    shim.module.set_yield_probability(1 / 32)
    yield shim
    shim.shared_bytes = SHARED
    shim.forget()
    shim.module.set_yield_probability(1 / 32)


@pytest.fixture(params=[CUDA], scope="module")
def built(request):
    """The CUDA kernels as an earlier test left them, for hypothesis."""
    return the_shim()


@pytest.fixture
def shim(built):
    with prepared(built):
        yield built


@pytest.fixture(params=[CPP, CUDA])
def native(request):
    """The shim, or None where the backend is cpp."""
    if request.param in CPP.values:
        yield None
    else:
        with prepared(the_shim()) as shim:
            yield shim


@pytest.fixture(params=[INTERPRETED])
def interpreted(request):
    """What operators/on_triton.py has, where the kernels are interpreted."""
    from operators import on_triton

    return on_triton


@pytest.fixture(params=[TRITON])
def of_triton(request):
    """The same, on a GPU too."""
    from operators import on_triton

    return on_triton


@pytest.fixture(params=[CUDA, INTERPRETED])
def watched(request):
    """Kernels that run on the CPU, with a log of every byte that they touch."""
    if request.param in CUDA.values:
        with prepared(the_shim()) as shim:
            yield OnShim(shim)
    else:
        from operators.on_triton import Interpreted

        yield Interpreted()
