"""SpecMix: held against every choice of bands that the paper allows, by enumeration."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch

import fusedmix as fm
from callers import CPP

B, K, SIZE = 5, 4, (5, 6)


def masks_of(size, width, counts):
    """Every mask and its probability: counts and places are uniform, and a band has ⌊width·side⌋ of the side."""

    def along(side, least, most):
        length, found = int(width * side), {}
        for count in range(least, most + 1):
            for places in itertools.product(range(side - length + 1), repeat=count):
                covered = np.zeros(side, dtype=bool)
                for first in places:
                    covered[first : first + length] = True
                key = covered.tobytes()
                share = 1 / (most - least + 1) / (side - length + 1) ** count
                found[key] = (covered, found.get(key, (None, 0))[1] + share)
        return found.values()

    found = {}
    for (rows, p), (columns, q) in itertools.product(
        *(along(side, *of) for side, of in zip(size, counts, strict=True))
    ):
        mask = ~(rows[:, None] | columns[None, :])
        found[mask.tobytes()] = found.get(mask.tobytes(), 0) + p * q
    return found


@pytest.mark.parametrize(
    ("width", "counts"),
    [(0.4, ((0, 2), (0, 2))), (0.5, ((0, 0), (1, 1))), (0.34, ((1, 1), (0, 0))), (0.2, ((1, 3), (0, 1)))],
    ids=str,
)
def test_masks_are_those_of_the_paper(width, counts):
    expected, n = masks_of(SIZE, width, counts), 6000
    mix = fm.SpecMix(width=width, frequency_bands=counts[0], time_bands=counts[1], per="sample")
    plan = mix.sample(n, SIZE, seed=3)
    masks = plan.mask().numpy()
    assert set(np.unique(masks)) <= {0.0, 1.0}
    found = {}
    for mask in masks:
        key = mask.astype(bool).tobytes()
        found[key] = found.get(key, 0) + 1
    assert found.keys() <= expected.keys()
    for key, p in expected.items():
        assert abs(found.get(key, 0) - n * p) < 5 * max(n * p * (1 - p), 0.0) ** 0.5 + 1
    np.testing.assert_allclose(plan.weight, masks.mean((1, 2), dtype=np.float64), rtol=0, atol=1e-12)
    assert torch.equal(plan.lam, plan.weight.float())


def test_a_width_that_is_drawn():
    """Of one band along time: ⌊u·T⌋ frames, u uniform."""
    plan = fm.SpecMix(width=(0.25, 0.75), frequency_bands=0, time_bands=(1, 1), per="sample").sample(4000, (3, 100))
    lengths = (100 - plan.mask()[:, 0].sum(1)).numpy()
    assert (lengths.min(), lengths.max()) == (25, 74)
    assert abs(lengths.mean() - 49.5) < 5 * (50 / 12**0.5) / 4000**0.5


@pytest.mark.parametrize("backend", ["reference", CPP])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("per", "sampling"), [*itertools.product(("batch", "pair", "sample"), ("host", "device"))])
def test_batches(per, sampling, inplace, backend):
    """Equal to the selection by the plan's mask, in both layouts, and the same for a seed on every backend."""
    x, y = torch.randn(B, 2, 9, 33), torch.arange(B) % K
    mix = fm.SpecMix(num_classes=K, per=per, sampling=sampling, inplace=inplace, backend=backend)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.clone().contiguous(memory_format=layout)
        torch.manual_seed(1)
        out, targets = mix(given, y)
        torch.manual_seed(1)
        plan = mix.sample(B, (9, 33))
        own = plan.mask().bool().unsqueeze(1)
        assert torch.equal(out, torch.where(own, x, x[plan.partner]))
        assert (out is given) == inplace
        assert torch.equal(targets, fm.mix_labels(y, plan, num_classes=K))
    if per == "pair":
        assert torch.equal(plan.mask(), plan.mask().flip(0))


def test_what_else_a_plan_does():
    """Label maps, partners from another batch, no mixing, a batch of none."""
    x, other, y = torch.randn(B, 1, *SIZE), torch.randn(3, 1, *SIZE), torch.arange(B) % K
    mix = fm.SpecMix(num_classes=K, per="sample")
    plan = mix.sample(B, SIZE, other_size=3)
    own = plan.mask().bool().unsqueeze(1)
    assert torch.equal(fm.mix(x, plan, other=other), torch.where(own, x, other[plan.partner]))
    maps = torch.randint(9, (B, *SIZE))
    plan = mix.sample(B, SIZE)
    assert torch.equal(fm.mix_masks(maps, plan), torch.where(plan.mask().bool(), maps, maps[plan.partner]))
    still = fm.SpecMix(num_classes=K, p=0.0)
    assert torch.equal(still(x, y)[0], x)
    assert fm.SpecMix(frequency_bands=0, time_bands=0).sample(B, SIZE).weight.eq(1).all()
    assert mix(x[:0], y[:0])[0].shape == (0, 1, *SIZE)
    three = fm.SpecMix(num_classes=K, axes=(1, 2))(x[:, 0], y)[0]
    assert three.shape == (B, *SIZE)


def test_attributes():
    mix = fm.SpecMix(width=(0.1, 0.2), frequency_bands=3, time_bands=(1, 2))
    assert (mix.width, mix.frequency_bands, mix.time_bands) == ((0.1, 0.2), (0, 3), (1, 2))
    assert repr(pickle.loads(pickle.dumps(mix))) == repr(mix)
    mix.width, mix.frequency_bands, mix.time_bands = 1.0, 0, (1, 1)
    assert mix.width == 1.0
    assert mix.sample(B, SIZE).weight.eq(0).all()
