"""Schedules of the probability of mixing, of HMix's ratio and of RandomMix's weights."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

import fusedmix as fm
from fusedmix import schedules

X, Y = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 4])


def shares_mixed(mix, n=4000, seed=1):
    """What share of samples is mixed."""
    return float((mix.sample(n, (4, 4), seed=seed).lam < 1).float().mean())


@pytest.mark.parametrize(
    "make", [fm.MixUp, lambda **kw: fm.RandomMix([fm.MixUp(), fm.CutMix(placement="inside")], **kw)]
)
def test_linear_p(make):
    """As many samples are mixed as it says; 0 and OffAfter leave all, and OffAfter goes with it in any order."""
    mix = make(per="sample")
    schedule = schedules.LinearP(mix, 0.0, 0.8, epochs=4)
    for p in (0.0, 0.2, 0.4, 0.6, 0.8, 0.8):
        share = shares_mixed(mix)
        assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / 4000)
        assert mix.enabled
        schedule.step()
    for first, second in ((0, 1), (1, 0)):
        both = [schedules.OffAfter(mix, 2), schedules.LinearP(mix, 0.4, 0.8, epochs=2)]
        for epoch in range(4):
            assert mix.enabled == (epoch < 2)
            p = (0.4, 0.6, 0.0, 0.0)[epoch]
            assert abs(shares_mixed(mix) - p) <= 4 * math.sqrt(p * (1 - p) / 4000)
            both[first].step()
            both[second].step()
        mix.enabled = True


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_linear_p_of_batches(backend):
    """Drawn on the host too, and by the way that a usual step takes."""
    mix = fm.MixUp(num_classes=5, backend=backend)
    schedule = schedules.LinearP(mix, 0.0, 0.5, epochs=1)
    assert all(torch.equal(mix(X, Y)[0], X) for _ in range(20))
    schedule.step()
    mixed = sum(not torch.equal(mix(X, Y)[0], X) for _ in range(400))
    assert abs(mixed / 400 - 0.5) <= 4 * 0.5 / math.sqrt(400)


def test_linear_ratio():
    own = fm.HMix(ratio=0.5)
    mix = fm.RandomMix([own, fm.CutMix(), fm.HMix(ratio=0.2), fm.HMix(ratio_alpha=1.0)])
    schedule = schedules.LinearRatio(mix, end=1.0, epochs=4)
    schedule.step(2)
    assert [m.ratio for m in (mix.methods[0], mix.methods[2])] == [0.75, 0.6]
    schedule.step(9)
    assert own.ratio == 1
    single = fm.HMix(per="sample")
    schedules.LinearRatio(single, 0.0, end=1.0, epochs=3)
    plan = single.sample(8, (16, 16), seed=2)
    assert torch.equal(plan.mask(), plan.lam[:, None, None].expand(8, 16, 16))  # HMix of ratio 0 is MixUp


def test_linear_weights():
    mix = fm.RandomMix([fm.MixUp(), fm.CutMix()], weights=[3.0, 1.0], per="sample")
    schedule = schedules.LinearWeights(mix, end=[0, 2], epochs=3)
    for weights in ((0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.0, 1.0), (0.0, 1.0)):
        assert mix.weights == pytest.approx(weights)
        share = float((mix.sample(4000, (4, 4), seed=3).kind == 0).float().mean())
        assert abs(share - weights[0]) <= 4 * math.sqrt(weights[0] * weights[1] / 4000)
        schedule.step()
    assert mix._shares.is_shared()
    schedules.LinearWeights(mix, [1, 1], end=[1, 3], epochs=2).step()
    assert mix.weights == pytest.approx((0.375, 0.625))


LINES = {
    "p": lambda: schedules.LinearP(fm.MixUp(), 0.2, 0.8, epochs=4),
    "ratio": lambda: schedules.LinearRatio(fm.HMix(), 0.2, end=0.8, epochs=4),
    "weights": lambda: schedules.LinearWeights(fm.RandomMix([fm.MixUp(), fm.CutMix()]), end=[1, 0], epochs=4),
}


@pytest.mark.parametrize("kind", LINES)
def test_lines_are_resumed(kind):
    before, after = LINES[kind](), LINES[kind]()
    before.step(3)
    after.load_state_dict(pickle.loads(pickle.dumps(before.state_dict())))
    assert after.last_epoch == 3
    assert repr(after) == repr(before)
    spec = before.mix._current_spec()
    assert torch.equal(after.mix._current_spec().nan_to_num(-1), spec.nan_to_num(-1))
    assert not torch.equal(LINES[kind]().mix._current_spec().nan_to_num(-1), spec.nan_to_num(-1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: schedules.LinearP(fm.MixUp(), 0.5, 1.5, epochs=2),
            ValueError,
            r"end must be in \[0, 1\], but got 1.5",
        ),
        (lambda: schedules.LinearP(fm.MixUp(), "1", epochs=2), TypeError, "start must be a number, but got '1'"),
        (lambda: schedules.LinearP(fm.MixUp(), epochs=0), ValueError, "epochs must be >= 1, but got 0"),
        (lambda: schedules.LinearRatio(fm.CutMix(), end=1.0, epochs=2), TypeError, "mix must be an HMix"),
        (lambda: schedules.LinearRatio(fm.HMix(ratio_alpha=1.0), end=1.0, epochs=2), TypeError, "not drawn"),
        (lambda: schedules.LinearRatio(fm.HMix(), end=-1.0, epochs=2), ValueError, "end must be in .* but got -1.0"),
        (lambda: schedules.LinearWeights(fm.MixUp(), end=[1.0], epochs=2), TypeError, "mix must be a RandomMix"),
        (
            lambda: schedules.LinearWeights(fm.RandomMix([fm.MixUp()]), end=[1, 1], epochs=2),
            ValueError,
            "end must have one number for each of the 1 methods, but got 2",
        ),
        (
            lambda: schedules.LinearWeights(fm.RandomMix([fm.MixUp()]), [-1.0], end=[1], epochs=2),
            ValueError,
            r"start\[0\] must be .* but got -1.0",
        ),
    ],
)
def test_wrong_lines(make, error, message):
    with pytest.raises(error, match=message):
        make()
