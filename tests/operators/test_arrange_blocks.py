"""Where blocks move: every backend against the reference, which tests/test_puzzle.py holds against a loop."""

from __future__ import annotations

import itertools

import pytest
import torch

from callers import BACKENDS
from fusedmix.backends.arrangement import arrange_blocks

# Those that have kernels, and those that PyTorch's operations serve: the CUDA kernels' source has none of it.
SERVED = [backend for backend in BACKENDS if not backend.called.startswith("cuda (")]
EACH = pytest.mark.parametrize("backend", [pytest.param(b, marks=b.marks) for b in SERVED], ids=lambda b: b.called)

MAPS = {
    "uniform": lambda x: x,
    "of a sum of 1": lambda x: x**4 / (x**4).sum((1, 2), keepdim=True),
    "few numbers": lambda x: (x * 3).round() / 3,
    "zero": torch.zeros_like,
    "one": torch.ones_like,
    "one block": lambda x: (x == x.amax((1, 2), keepdim=True)).float(),
}


def given(height, width, maps, seed=0):
    """Grids of which nothing is seen, some places or all."""
    g = torch.Generator().manual_seed(seed)
    share = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])[:, None, None]
    seen = torch.rand(5, height, width, generator=g) < share
    return seen, MAPS[maps](torch.rand(5, height, width, generator=g))


@EACH
@pytest.mark.parametrize("maps", MAPS)
def test_every_backend_finds_the_same(backend, maps):
    """Moves that cost nothing to speak of, or more than a whole map; distances that round to the same cost."""
    sides = ((1, 1), (1, 16), (5, 3), (4, 4), (7, 13), (16, 16)) if backend.fast else ((1, 1), (1, 7), (5, 3))
    for (height, width), price in itertools.product(sides, (1e-9, 1e-6, 0.01, 0.8, 1e300)):
        seen, s = given(height, width, maps, seed=height)
        out = backend.arrange_blocks(seen.to(backend.device), s.to(backend.device), price)
        assert out.dtype == torch.int64
        assert torch.equal(out.cpu(), arrange_blocks(seen, s, price)), (height, width, price)


def test_costs_that_lie_between_two_units(cpp):
    """They are rounded to even: shares by halves of a unit, and distances by the half of one."""
    halves = (torch.arange(64).reshape(1, 8, 8) + 0.5) * 2**-22
    seen = torch.arange(64).reshape(1, 8, 8) % 3 == 0
    for units in (0.5, 1.5, 2.5):
        price = 49 * units * 2**-22
        assert torch.equal(cpp.arrange_blocks(seen, halves, price), arrange_blocks(seen, halves, price))


@pytest.mark.parametrize("strided", [False, True])
def test_no_grids_and_strides(cpp, strided):
    seen, maps = (t.repeat(60, 1, 1) for t in given(4, 6, "uniform"))
    step = 2 if strided else 1
    for n in (0, 1, 300):
        of = seen[:n:step].transpose(1, 2), maps[:n:step].transpose(1, 2)
        assert torch.equal(cpp.arrange_blocks(*of, 0.1), arrange_blocks(*of, 0.1))


def wrong(price=0.8, **changes):
    seen, maps = given(3, 4, "uniform")
    return *{"seen": seen, "maps": maps, **changes}.values(), price


ONES = torch.ones(5, 3, 4)
WRONG = {
    "seen in numbers": (wrong(seen=ONES), "seen must be bool of shape"),
    "no grid": (wrong(seen=ONES.bool()[0]), "seen must be bool of shape"),
    "17 blocks": (wrong(seen=torch.ones(5, 3, 17).bool()), "the blocks along a side must be in [1, 16], but got 17"),
    "no blocks": (wrong(seen=torch.ones(5, 0, 4).bool()), "the blocks along a side must be in [1, 16], but got 0"),
    "other grids": (wrong(maps=ONES[:, :2]), "maps must be float32 of shape (5, 3, 4)"),
    "maps of float64": (wrong(maps=ONES.double()), "maps must be float32"),
    "negative": (wrong(maps=ONES - 2), "maps must be in [0, 1] everywhere"),
    "more than all": (wrong(maps=ONES * 1.5), "maps must be in [0, 1] everywhere"),
    "not a number": (wrong(maps=ONES * float("nan")), "maps must be in [0, 1] everywhere"),
    "moves for nothing": (wrong(price=0.0), "distance_cost must be finite and > 0, but got 0"),
    "no price": (wrong(price=float("nan")), "distance_cost must be finite and > 0, but got nan"),
}


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.called in ("reference", "cpp")], ids=lambda b: b.called)
@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(backend, case):
    args, said = WRONG[case]
    with pytest.raises((ValueError, RuntimeError)) as caught:
        backend.operators.arrange_blocks(*args)
    assert said in str(caught.value)
