"""The backends that run here, as the tests of operators call them."""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fusedmix as fm
from conftest import NO_CPP, NO_CUDA, NO_TRITON, TRITON_DEVICE, TRITON_MARKS
from fusedmix import backends, operands, ops
from fusedmix.backends import reference

try:
    import shim_build

    NO_SHIM = shim_build.missing()
except ImportError as error:  # fcntl: not on Windows
    NO_SHIM = str(error)


class Recorded(TorchDispatchMode):
    """The names of all that torch is asked to do while it is entered."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


class Ran(Recorded):
    """While it is entered, what torch is asked to do is the operators that are expected and nothing else."""

    def __init__(self, *expected):
        super().__init__()
        self.expected = list(expected)

    def __exit__(self, kind, *rest):
        super().__exit__(kind, *rest)
        if kind is None:
            assert self.seen == self.expected


class _Rows:
    """The functions of the reference, called as operators are: with rows of arguments, but not checked."""

    def __getattr__(self, name):
        gather = operands.gathering(ops._SCHEMAS[name])
        return lambda *args: getattr(reference, name)(*gather(args))


REFERENCE = _Rows()


def masks_of(plan):
    """What `mix` takes after x."""
    ndim = 0 if plan.constant else len(plan.size)
    return plan.partner, plan.masks, int(plan.families), ndim, int(plan.pairing), int(plan.per), plan.pixels


class Operators:
    """A backend, by its operators in torch."""

    def __init__(self, name, device="cpu", one_rounding=True, fast=True, sparse=False, called=None, marks=()):
        self.name = name
        self.called = called or name  # in the table
        self.device = torch.device(device)
        self.one_rounding = one_rounding  # or a float64 product is rounded before it is added
        self.fast = fast
        self.marks = marks
        self.sparse = sparse  # every line of the table by one case: in the interpreter a call is a tenth of a second

    @property
    def operators(self):
        return backends.operators(self.device.type, self.name)  # built by the first test, not when tests are collected

    def sample(self, request, seed):
        spec, *rest = request  # it stays on the CPU
        rest = [a.to(self.device) if isinstance(a, torch.Tensor) else a for a in rest]
        return self._ran("sample", spec, *rest, torch.tensor(seed), None, None, self.device)

    def mask(self, plan):
        return self._ran("mask", plan.masks, int(plan.families), plan.size, int(plan.per), plan.pixels)

    def mix(self, x, plan):
        with Ran(f"fusedmix_{self.name}::mix"):
            return fm.mix(x, plan, backend=self.name)

    def mix_(self, x, plan):
        with Ran(f"fusedmix_{self.name}::mix_"):
            assert fm.mix_(x, plan, backend=self.name) is x

    def mix_adjoint(self, grad, plan):
        return self._ran("mix_adjoint", grad, *masks_of(plan))

    def border_costs(self, x, partner, scale, cells):
        return self._ran("border_costs", x, partner, scale, cells)

    def label_grid(self, unary, right, down):
        return self._ran("label_grid", unary, right, down)

    def arrange_blocks(self, seen, maps, distance_cost):
        return self._ran("arrange_blocks", seen, maps, distance_cost)

    def _ran(self, operator, *args):
        function = getattr(self.operators, operator)
        with Ran(f"fusedmix_{self.name}::{operator}"):
            return function(*args)


class Shimmed(Operators):
    """The source of the CUDA kernels, run on the CPU by the shim."""

    def __init__(self):
        super().__init__("cuda", fast=False, called="cuda (on the CPU)", marks=[pytest.mark.thorough])

    @functools.cached_property
    def operators(self):
        from shim_backend import Shim

        return Shim()

    def sample(self, request, seed):
        return self._ran("sample", *request, torch.tensor(seed))

    def mix(self, x, plan):
        return self._ran("mix", x, *masks_of(plan))

    def mix_(self, x, plan):
        self._ran("mix_", x, *masks_of(plan))

    def border_costs(self, x, partner, scale, cells):
        if len(x) == 0 or max(cells) == 1:  # There is no border, and nothing to launch.
            return self.operators.border_costs(x, partner, scale, cells)
        return super().border_costs(x, partner, scale, cells)

    def _ran(self, operator, *args):
        result = getattr(self.operators, operator)(*args)
        launches = self.operators.module.launches()
        assert launches
        assert not any(launch["error"] for launch in launches)
        return result


def backends_here():
    yield Operators("reference", one_rounding=False, fast=False)  # PyTorch has no fma, which only float64 needs
    if NO_CPP is None:
        yield Operators("cpp")
    if NO_CUDA is None:
        yield Operators("cuda", "cuda")
    if NO_SHIM is None:
        yield Shimmed()
    if NO_TRITON is None and TRITON_DEVICE == "cuda":
        yield Operators("triton", "cuda", sparse=True)  # hundreds of kernels to compile
    elif NO_TRITON is None:  # NumPy has no fma either
        called = "triton (interpreted)"
        yield Operators("triton", one_rounding=False, fast=False, sparse=True, called=called, marks=TRITON_MARKS)


BACKENDS = list(backends_here())
each_backend = pytest.mark.parametrize(
    "backend",
    [pytest.param(backend, marks=backend.marks) for backend in BACKENDS],
    ids=lambda backend: backend.called,
)


def python(code, timeout=120, **environment):
    """Runs code in a process of its own, from the folder of the tests; what it printed, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(__file__).parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def param(name, missing, *marks):
    return pytest.param(name, marks=[*marks, pytest.mark.skipif(missing is not None, reason=str(missing))])


def shown(value):
    """The id of a parameter, where pytest would number it."""
    return str(value).removeprefix("torch.") if isinstance(value, (torch.dtype, tuple, dict)) else None


def cases(backend, *axes):
    """The product of axes for one of the backends below, as parameters of a test. A tuple is several parameters."""
    product = ([v for part in of for v in (part if type(part) is tuple else [part])] for of in itertools.product(*axes))
    return [pytest.param(*backend.values, *case, marks=backend.marks) for case in product]


# What the interpreter of Triton 3.6 does with a newer NumPy.
OLD = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
CPP = param("cpp", NO_CPP)
CUDA = param("cuda (on the CPU)", NO_SHIM, pytest.mark.thorough)
NOT_INTERPRETED = NO_TRITON if TRITON_DEVICE == "cpu" else "with a GPU here the kernels are compiled, not interpreted"
INTERPRETED = param("triton (interpreted)", NOT_INTERPRETED, pytest.mark.thorough, OLD)
TRITON = param("triton", NO_TRITON, pytest.mark.thorough) if TRITON_DEVICE == "cuda" else INTERPRETED
