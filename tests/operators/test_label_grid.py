"""The labels of blocks that cost least: against all labellings there are, and against the flow of SciPy."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow

from callers import BACKENDS, each_backend
from fusedmix.backends.grid_cut import label_grid
from operators.on_shim import assert_written_once, orders

INT32 = torch.iinfo(torch.int32)


def costs(batch_size, height, width, most, seed=0):
    """unary, right and down: whole numbers of up to `most`. Of small ones many labellings are equally good."""
    g = torch.Generator().manual_seed(seed)

    def numbers(low, *shape):
        return torch.randint(low, most + 1, shape, generator=g).int()

    right, down = numbers(0, batch_size, height, width - 1), numbers(0, batch_size, height - 1, width)
    return numbers(-most, batch_size, height, width, 3), right // 2, down // 2


def energy(labels, unary, right, down):
    """(n,) of labels (n, h, w), by the costs of one grid."""
    labels, height, width = labels.long(), *unary.shape[:2]
    own = unary.long()[torch.arange(height)[:, None], torch.arange(width), labels].sum((1, 2))
    across = (right.long() * labels.diff(dim=2) ** 2).sum((1, 2))
    return own + across + (down.long() * labels.diff(dim=1) ** 2).sum((1, 2))


def least_energy(unary, right, down):
    """The least energy of one grid, by the flow of SciPy through a graph that is built otherwise than ours.

    With a_k = 1 where a block's label is at least k, (a_1 + a_2 - b_1 - b_2)² is the sum of |a_k - b_m| over all four
    pairs, and a_2 - a_1 + b_2 - b_1, because a_1·a_2 = a_2.
    """
    height, width = unary.shape[:2]
    number = torch.arange(2 * height * width).reshape(2, height, width).tolist()
    source, sink = 2 * height * width, 2 * height * width + 1
    price = unary.long().diff(dim=2).movedim(2, 0)
    capacity = torch.zeros(sink + 1, sink + 1, dtype=torch.int64)
    places = list(itertools.product(range(height), range(width)))
    for (y, x), (dy, dx, weights) in itertools.product(places, ((0, 1, right), (1, 0, down))):
        if y + dy == height or x + dx == width:
            continue
        w = int(weights[y, x])
        for k, m in itertools.product(range(2), repeat=2):
            one, other = number[k][y][x], number[m][y + dy][x + dx]
            capacity[one, other] += w
            capacity[other, one] += w
        for at in ((y, x), (y + dy, x + dx)):
            price[0][at] -= w
            price[1][at] += w
    for y, x in places:
        capacity[number[0][y][x], number[1][y][x]] += 1 << 30
    capacity[source, :source] = price.flatten().clamp_min(0)
    capacity[:source, sink] = (-price.flatten()).clamp_min(0)
    flow = maximum_flow(csr_matrix(capacity.numpy().astype("int32")), source, sink).flow_value
    return int(unary[..., 0].sum()) + int(price.clamp_max(0).sum()) + flow


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (4, 1), (2, 2), (2, 3), (3, 3)])
def test_of_all_labellings(height, width):
    """None costs less, and none that costs as little has a lesser label anywhere."""
    every = torch.tensor(list(itertools.product(range(3), repeat=height * width))).reshape(-1, height, width)
    equal = 0
    for most in (1, 2, 5, 1000):
        given = costs(12, height, width, most, seed=most)
        for labels, *one in zip(label_grid(*given), *given, strict=True):
            cost = energy(every, *one)
            best = every[cost == cost.min()]
            equal += len(best) > 1
            assert torch.equal(labels, best.amin(0).int())
    assert equal, "there was no choice among equal ones"


@pytest.mark.parametrize(("height", "width"), [(1, 7), (4, 4), (5, 8), (8, 8)])
def test_of_the_flow_of_scipy(height, width):
    """The energy is that of the minimum cut, not one unit above it."""
    for most in (2, 40, 10_000):
        given = costs(4, height, width, most, seed=most)
        for labels, *one in zip(label_grid(*given), *given, strict=True):
            assert int(energy(labels[None], *one)) == least_energy(*one)


@each_backend
def test_every_backend_finds_the_same(backend):
    """Grids of all proportions; costs that leave a choice, and the largest there are."""
    sides = ((1, 1), (1, 16), (3, 2), (7, 5), (16, 16)) if backend.fast else ((1, 1), (5, 1), (4, 3), (4, 4))
    for (height, width), most in itertools.product(sides, (1, 6, 300, INT32.max - 1)):
        given = costs(3, height, width, most, seed=height)
        out = backend.label_grid(*(t.to(backend.device) for t in given))
        assert out.dtype == torch.int32
        assert torch.equal(out.cpu(), label_grid(*given)), (height, width, most)


@pytest.mark.parametrize("strided", [False, True])
def test_no_grids_and_strides(cpp, strided):
    for n in (0, 1, 4):
        unary, right, down = costs(2 * n, 4, 6, 9)
        cut = slice(None, None, 2 if strided else 1)
        assert torch.equal(cpp.label_grid(unary[cut], right[cut], down[cut]), label_grid(unary, right, down)[cut])


def test_every_label_is_written_once(shim):
    given = costs(2, 3, 4, 50)
    out = shim.label_grid(*given)
    assert shim.kernels() == ["labelgrid"]
    assert_written_once(shim, "labels", out)


def test_any_order_of_threads(shim):
    given = costs(2, 3, 3, 20, seed=1)
    expected = label_grid(*given)
    for _ in orders(shim, 3):
        assert torch.equal(shim.label_grid(*given), expected)


def wrong(**changes):
    unary, right, down = costs(2, 3, 4, 9)
    return {"unary": unary, "right": right, "down": down, **changes}


WRONG = {
    "float": (wrong(unary=torch.zeros(2, 3, 4, 3)), "unary"),
    "two labels": (wrong(unary=torch.zeros(2, 3, 4, 2, dtype=torch.int32)), "unary"),
    "no grid": (wrong(unary=torch.zeros(2, 12, 3, dtype=torch.int32)), "unary"),
    "17 blocks": (dict(zip(("unary", "right", "down"), costs(1, 17, 2, 9), strict=True)), "[1, 16], but got 17"),
    "no block": (wrong(unary=torch.zeros(2, 0, 4, 3, dtype=torch.int32)), "[1, 16], but got 0"),
    "right as down": (wrong(right=costs(2, 3, 4, 9)[2]), "right"),
    "long": (wrong(down=costs(2, 3, 4, 9)[2].long()), "down"),
    "another batch": (wrong(right=costs(3, 3, 4, 9)[1]), "right"),
    "negative": (wrong(down=torch.full((2, 2, 4), -1, dtype=torch.int32)), "down must not be negative"),
}


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.called in ("reference", "cpp")], ids=lambda b: b.called)
@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(backend, case):
    given, said = WRONG[case]
    with pytest.raises((ValueError, RuntimeError)) as caught:
        backend.operators.label_grid(*given.values())
    assert said in str(caught.value)
