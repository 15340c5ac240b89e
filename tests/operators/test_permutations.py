"""Whoever the partners are, and in whatever order threads run: permutations of every kind, and what is none."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedmix as fm
from batches import DTYPES, LAYOUTS, contiguous, from_cycles, masks_by_hand, plan_for, values
from callers import CUDA, INTERPRETED, cases
from conftest import METHODS
from fusedmix import partners
from fusedmix.methods import Pairing
from operators.on_shim import SHARED, assert_traffic, orders, other_shapes, weights_of
from oracle import alike, assert_adjoint, assert_mixed

CPU = torch.device("cpu")

PERMUTATIONS = {
    "identity": from_cycles(*([i] for i in range(12))),
    "pairs": from_cycles(*([i, i + 6] for i in range(6))),
    "one cycle": from_cycles(range(12)),
    "backwards": from_cycles(range(11, -1, -1)),
    "two cycles": from_cycles([0, 4, 8, 1, 2, 3], [5, 6, 7, 9, 10, 11]),
    "many cycles": from_cycles([1, 2, 4, 5], [7, 8], [10], [11, 0, 3], [6, 9]),
    "cycles and one alone": from_cycles([11, 1, 10, 2, 9, 3], [7, 5, 6], [8, 0], [4]),
    "cycles within others": from_cycles([0, 3, 6, 9], [1, 2], [4, 5], [7, 8], [10, 11]),
    "three alone": from_cycles([1, 5, 9], [2, 10], [3, 7, 11, 6], [0], [4], [8]),
}


def in_every_way(watched, before, w, masks, **how):
    """In place: whatever the kernels' cut of the batch, each element is touched as often as it should be."""
    x = before.clone()
    watched.mix(x, masks, in_place=True, **how)
    watched.assert_one_pass(x, x, w, masks)
    assert_mixed(x, before, w, masks[0])
    for way in watched.ways(before, masks):
        again = before.clone()
        watched.mix(again, masks, in_place=True, way=way, **how)
        watched.assert_one_pass(again, again, w, masks)
        assert alike(again, x)


@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_permutations(watched, permutation):
    partner = PERMUTATIONS[permutation]
    masks = masks_by_hand(partner, kinds=watched.kinds)
    before = values((12, 2, 3, 8), torch.float32)
    w = watched.weights(before, masks)
    for how in watched.travels:
        for way in (None, *watched.ways(before, masks, in_place=False)):
            out = watched.mix(before, masks, way=way, **how)
            watched.assert_one_pass(before, out, w, masks)
            assert_mixed(out, before, w, partner)
        grad = watched.mix(before, masks, adjoint=True, **how)
        watched.assert_one_pass(before, grad, w, masks, adjoint=True)
        assert_adjoint(grad, before, w, partner)
        in_every_way(watched, before, w, masks, **how)


@pytest.mark.parametrize(
    ("watched", "pairing", "n"),
    [
        *cases(CUDA, ("roll", "flip"), (1, 2, 3, 4, 5, 13, 127, 128, 129, 255, 256, 257)),
        *cases(INTERPRETED, ("roll",), (2, 3, 13, 16)),
    ],
    indirect=["watched"],
)
def test_formula_pairings(watched, pairing, n):
    """As many samples as a column of CUDA's has threads, and one more or less; the last serves the first."""
    partner = partners.formula(Pairing[pairing.upper()], n, CPU)
    masks = masks_by_hand(partner, pairing=pairing, kinds=watched.kinds)
    for dtype in (torch.float32, torch.uint8)[: 1 + watched.fast]:
        before = values((n, 1, 3, 8), dtype)
        in_every_way(watched, before, watched.weights(before, masks), masks)


def random_permutation(random, n, cycles):
    """With about so many cycles."""
    order = random.sample(range(n), n)
    cuts = sorted({0, n, *(random.randrange(n) for _ in range(cycles - 1))})
    return from_cycles(*(order[a:b] for a, b in itertools.pairwise(cuts)))


@settings(max_examples=150, deadline=None)
@given(
    random=st.randoms(use_true_random=False),
    n=st.one_of(st.integers(1, 20), st.integers(100, 300)),
    cycles=st.integers(1, 12),
    on_chip=st.sampled_from([SHARED, 8192, 1]),
    other=st.integers(0, 100),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    per=st.sampled_from(["batch", "sample"]),
    order=st.tuples(st.integers(0, 2**63), st.sampled_from([0.0, 0.01, 0.3])),
)
def test_any_permutation(built, random, n, cycles, on_chip, other, layout, dtype, per, order):
    """Whatever the permutation, the shape, the layout and the order in which threads run."""
    built.shared_bytes = on_chip
    built.module.seed(order[0])
    built.module.set_yield_probability(order[1])
    masks = masks_by_hand(random_permutation(random, n, cycles), per)
    before = values((n, 2, 3, 8), dtype, seed=n)
    w = weights_of(built, before, masks)
    out = built.mix(layout(before), *masks)
    assert_mixed(out, before, w, masks[0])
    shape = None
    for _ in range(2):
        x = layout(before)
        built.mix_(x, *masks, shape=shape)
        assert alike(x, out)
        if layout is contiguous:
            assert_traffic(built, x, w, masks)
        others = other_shapes(built, x, masks[4])
        shape = others[other % len(others)]
    built.module.set_yield_probability(1 / 32)


@pytest.mark.parametrize("pairing", ["roll", "flip", "random", "cross_class"])
def test_any_order_of_threads(shim, pairing):
    """Results do not depend on it, and no order shows a race: sampling, images and targets."""
    labels = torch.arange(40) % 5
    mix = fm.RandomMix([fm.MixUp(), fm.CutMix(), fm.GMix()], per="sample", pairing=pairing, num_classes=5)
    request = mix._request(40, (5, 8), None, labels)
    before = values((40, 2, 5, 8), torch.float32)
    results = []
    for _ in orders(shim, 12):
        x = before.clone()
        results.append((x, *shim.mix_batch_(x, labels, request, torch.tensor(7), 5, 0.1)))
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert alike(a, b)


NO_PERMUTATIONS = {
    "one for all": torch.zeros(12).long(),
    "some twice": torch.tensor([1, 2, 3, 1, 4, 4, 7, 6, 11, 11, 11, 0]),
    "beyond the batch": torch.tensor([12, -1, 2**62, -(2**63), 2**32, 11, 10, 9, 8, 3, 3, 3]),
}


@pytest.mark.parametrize("partners_given", NO_PERMUTATIONS)
def test_partners_that_are_no_permutation(watched, partners_given):
    """On the device nobody can refuse them. Nothing beyond the batch is touched, nothing races, and numbers that are
    nobody's stand for the sample itself; in place CUDA's kernels do the same. Of the adjoint there is no right result:
    whose partner a sample is, one of several says last."""
    given = NO_PERMUTATIONS[partners_given]
    inside = torch.where((given >= 0) & (given < 12), given, torch.arange(12))
    before = values((12, 2, 3, 8), torch.float32)
    for name in ("MixUp", "CutMix", *(["GMix-released"] if watched.fast else [])):
        masks = given, *plan_for(METHODS[name], before.shape, 2, "sample", "random", seed=3)[1:]
        w = watched.weights(before, (inside, *masks[1:]))
        for _ in orders(watched.shim, 4) if watched.fast else range(1):
            assert_mixed(watched.mix(before, masks), before, w, inside)
            watched.assert_clean()
            if watched.fast:
                watched.mix(before.clone(), masks, in_place=True)
                for way in (None, *watched.ways(before, masks)):
                    assert_mixed(watched.mix(before.clone(), masks, in_place=True, way=way), before, w, inside)
        if watched.fast:
            with pytest.raises(
                watched.shim.module.ShimError, match=r"^race within a block: .* of 'the inverse of the partners'"
            ):
                watched.mix(before, masks, adjoint=True)
