"""Shared by all tests: small deterministic batches, and one place that lists what is swept."""

from __future__ import annotations

import importlib
import os
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import agreement_table
import fusedmix as fm
import triton_interpreter
from case_counts import pytest_runtest_logreport, pytest_sessionfinish, pytest_terminal_summary  # noqa: F401
from families import RECORDS
from fusedmix import backends
from fusedmix.backends import native

pytest.register_assert_rewrite("callers", "oracle")
# What a test starts, in whatever folder, imports the package that is tested, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(Path(fm.__file__).parents[1]), os.environ.get("PYTHONPATH")))
)

# Without a GPU Triton's kernels run in its interpreter, which must be said before anything imports them.
TRITON_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if TRITON_DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

# CI asks the same questions every time; a developer's run asks new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

METHODS = {name: make for record in RECORDS.values() if not record.stored for name, make in record.methods.items()}
METHODS["RandomMix"] = lambda **kw: fm.RandomMix([fm.MixUp(), fm.CutMix(), fm.HMix(), fm.GMix()], **kw)
GRIDS = {1: (4,), 2: (2, 3), 3: (2, 3, 2)}  # GridMix's, which fit images of some dims: by how many these are
# Those whose masks are no formula, but stored: what their kernels do is asked in test_fmix.py.
STORED = {name: make for record in RECORDS.values() if record.stored for name, make in record.methods.items()}
STORED["RandomMix-FMix"] = lambda **kw: fm.RandomMix([fm.MixUp(), fm.CutMix(), fm.FMix()], **kw)

INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


# Why a compiled backend cannot run here, or None. Nothing is built for that: one that should build and does not must
# fail the tests, not skip them.
NO_CPP = native.why_not("cpp")
NO_CUDA = native.why_not("cuda") if torch.cuda.is_available() else "torch finds no GPU"
NO_TRITON = backends.why_not_triton(TRITON_DEVICE)
# For triton among the backends of a test: in the interpreter a launch takes a tenth of a second or more.
TRITON_MARKS = [pytest.mark.thorough] if TRITON_DEVICE == "cpu" else []


# Asserts of the helpers say what differs, as those of tests do.
pytest.register_assert_rewrite("alike", "mask_formulas", "native_box", "samples", "wrong_calls")

if NO_TRITON is None and TRITON_DEVICE == "cpu":
    triton_interpreter.speed_up()


def pytest_addoption(parser):
    parser.addoption(
        "--write-agreement",
        nargs="?",
        const=str(agreement_table.TABLE),
        metavar="FILE",
        help="write the table of what tests/test_agreement.py finds to FILE; without FILE to the committed one, which "
        "this run is then not compared with",
    )
    parser.addoption("--on-gpu", action="store_true", help="leave out all cases in which no GPU takes part")


def pytest_configure(config):
    path = config.getoption("--write-agreement")
    if path and not hasattr(config, "workerinput"):  # a worker's reports come to the process that started it
        config.pluginmanager.register(agreement_table.Writer(Path(path)))


def pytest_collection_modifyitems(config, items):
    covered = set()  # A tracer makes Triton's interpreter twice as slow: it sees the first case of each test.
    for item in filter(emulated, items):
        test = item.nodeid.partition("[")[0]
        if test in covered:
            item.add_marker("no_cover")
        covered.add(test)
    if not config.getoption("--on-gpu"):
        return
    for_gpu = [item for item in items if on_gpu(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(for_gpu)])
    items[:] = for_gpu


def emulated(item):
    """Whether kernels for a GPU run on the CPU in a test: by the shim, or in Triton's interpreter."""
    case = item.name.partition("[")[2]
    interpreted = "interpreted" in case or (TRITON_DEVICE == "cpu" and re.search(r"\btriton\b", case) is not None)
    return interpreted or "on the CPU" in case or not {"shim", "interpreted"}.isdisjoint(item.fixturenames)


def on_gpu(item):
    """Whether a GPU takes part in a test: not in those of the shim, nor of Triton's interpreter.

    One does where a test says so, asks for Triton's device, or is a case of a backend of a GPU.
    """
    case = item.name.partition("[")[2]
    if "on the CPU" in case or "interpreted" in case:
        return False
    needs_one = any(
        "GPU" in mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif") if not any(mark.args)
    )
    asks = "TRITON_DEVICE" in item.function.__code__.co_names
    return needs_one or asks or re.search(r"\b(cuda|triton)\b", case) is not None


def required(name):
    """The library that a test is about. Where it is absent the test is skipped, but fails in CI."""
    return importlib.import_module(name) if os.environ.get("CI") else pytest.importorskip(name)


@contextmanager
def refused(error, match):
    """As pytest.raises; and nothing was drawn before the error."""
    state = torch.get_rng_state()
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert torch.equal(torch.get_rng_state(), state), "something was drawn"


class Counting:
    """A backend of torch.compile that runs graphs as they are, and counts them."""

    graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph


def images_of(shape, dtype, seed=0):
    """Random images with a spread of magnitudes and both signs, or over all of 0..255."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, generator=generator)
    return (3 * torch.randn(shape, dtype=torch.float64, generator=generator)).to(dtype)


def option_id(options):
    """A test id that is the same in every process: objects by their type, not their address."""
    return "-".join(
        f"{key}={value if isinstance(value, str | float | tuple) else type(value).__name__}"
        for key, value in options.items()
    )


@pytest.fixture(params=METHODS | STORED, ids=str)
def method(request):
    """A constructor of every method and variant."""
    return (METHODS | STORED)[request.param]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """On a busy machine the threads of many small operations wait for each other: five times as long, measured."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
