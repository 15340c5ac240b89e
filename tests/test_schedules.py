"""Schedules of α, and the epoch after which nothing is mixed."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fusedmix as fm
from conftest import Counting
from fusedmix import schedules
from trainers import Collate

X, Y = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 4])


def alphas(schedule, epochs):
    values = []
    for _ in range(epochs):
        values.append(schedule.get_last_alpha())
        schedule.step()
    return values


def test_linear():
    mix = fm.MixUp(alpha=0.8)
    got = alphas(schedules.LinearAlpha(mix, end=0.2, epochs=3), 6)
    torch.testing.assert_close(torch.tensor(got).flatten(), torch.tensor([0.8, 0.6, 0.4, 0.2, 0.2, 0.2]))
    schedule = schedules.LinearAlpha(mix, 2.0, 1.0, epochs=4)
    assert mix.alpha == 2.0
    schedule.step(3)
    assert (mix.alpha, schedule.last_epoch) == (1.25, 3)


def test_cosine_is_that_of_the_learning_rate():
    """Against torch.optim.lr_scheduler.CosineAnnealingLR, live."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.5)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7, eta_min=0.25)
    schedule = schedules.CosineAlpha(fm.CutMix(), 1.5, 0.25, epochs=7)
    for _ in range(8):
        assert schedule.last_epoch == rate.last_epoch
        assert math.isclose(schedule.get_last_alpha()[0], rate.get_last_lr()[0], rel_tol=1e-12)
        optimizer.step()
        rate.step()
        schedule.step()
    schedule.step(20)
    assert schedule.get_last_alpha() == [0.25]


def test_steps_are_those_of_the_learning_rate():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    rate = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
    schedule = schedules.StepAlpha(fm.HMix(alpha=2.0), step_size=3, gamma=0.5)
    for _ in range(10):
        assert schedule.get_last_alpha() == rate.get_last_lr()
        optimizer.step()
        rate.step()
        schedule.step()


def test_a_set_keeps_the_alpha_of_each_method():
    mix = fm.RandomMix([fm.MixUp(alpha=0.8), fm.SamplePairing(), fm.CutMix(alpha=1.0)])
    schedule = schedules.LinearAlpha(mix, end=0.0, epochs=4)
    schedule.step(2)
    assert schedule.get_last_alpha() == [0.4, 0.5]
    schedules.LinearAlpha(mix, 3.0, 1.0, epochs=4)
    assert (mix.methods[0].alpha, mix.methods[2].alpha) == (3.0, 3.0)


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("options", [{}, {"per": "sample"}, {"lam_range": (0.2, 0.8)}, {"p": 0.5}], ids=str)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_off_is_off(method, options, sampling, backend):
    if "lam_range" in options and isinstance(method(), fm.RandomMix):
        options = {}
    mix = method(num_classes=5, sampling=sampling, backend=backend, **options)
    schedule = schedules.OffAfter(mix, 2)
    one_hot = torch.nn.functional.one_hot(Y, 5).float()

    def mixed():
        batches = [mix(X, Y) for _ in range(10)]
        plan = mix.sample(6, (8, 8))
        return any(not torch.equal(x, X) for x, _ in batches), batches[-1], plan

    for epoch in range(4):
        assert mix.enabled == (epoch < 2)
        anything, (x, y), plan = mixed()
        assert anything == (epoch < 2)
        if epoch >= 2:
            assert torch.equal(x, X)
            assert torch.equal(y, one_hot)
            assert (plan.lam == 1).all()
            assert (plan.weight == 1).all()
        schedule.step()
    mix.enabled = True
    assert mixed()[0]
    with pytest.raises(TypeError, match="enabled must be a bool"):
        mix.enabled = 1


def test_a_method_of_a_set_may_be_off():
    mixup, pairing = fm.MixUp(p=0.5), fm.SamplePairing()
    mix = fm.RandomMix([mixup, pairing], per="sample")
    schedules.OffAfter(mixup, 0)
    assert mix.enabled
    lam = mix.sample(4000, (4, 4), seed=1).lam
    assert set(lam.tolist()) == {0.5, 1.0}
    assert abs(float((lam == 0.5).float().mean()) - 0.5) < 4 * 0.5 / math.sqrt(4000)


SCHEDULES = {
    "linear": lambda mix: schedules.LinearAlpha(mix, end=0.1, epochs=6),
    "cosine": lambda mix: schedules.CosineAlpha(mix, 2.0, 0.1, epochs=6),
    "step": lambda mix: schedules.StepAlpha(mix, step_size=2, gamma=0.5),
    "off": lambda mix: schedules.OffAfter(mix, 3),
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("make", [fm.CutMix, lambda **kw: fm.RandomMix([fm.MixUp(), fm.GMix(alpha=0.5)], **kw)])
def test_resuming_reproduces(kind, make):
    def train(mix, schedule, epochs):
        batches = []
        for _ in range(epochs):
            batches.append(mix(X, Y))
            schedule.step()
        return batches

    mix = make(num_classes=5)
    schedule = SCHEDULES[kind](mix)
    train(mix, schedule, 2)
    saved = pickle.dumps((schedule.state_dict(), torch.get_rng_state()))
    rest = train(mix, schedule, 3)
    mix = make(num_classes=5)
    schedule = SCHEDULES[kind](mix)
    state, random = pickle.loads(saved)
    schedule.load_state_dict(state)
    torch.set_rng_state(random)
    assert schedule.last_epoch == 2
    for a, b in zip(rest, train(mix, schedule, 3), strict=True):
        assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def test_resuming_by_last_epoch():
    """As torch.optim.lr_scheduler: last_epoch is the epoch that was finished."""
    assert schedules.LinearAlpha(fm.MixUp(), 1.0, 0.0, epochs=4, last_epoch=1).get_last_alpha() == [0.5]
    mix = fm.MixUp()
    schedules.OffAfter(mix, 3, last_epoch=2)
    assert not mix.enabled


def test_two_schedules_of_one_module():
    mix = fm.MixUp()
    both = [schedules.LinearAlpha(mix, 1.0, 0.5, epochs=4), schedules.OffAfter(mix, 2)]
    seen = []
    for _ in range(4):
        seen.append((mix.alpha, mix.enabled))
        for schedule in both:
            schedule.step()
    assert seen == [(1.0, True), (0.875, True), (0.75, False), (0.625, False)]


def test_an_attached_model_follows():
    model = torch.nn.Identity()
    mix = fm.RandomMix([fm.MixUp(), fm.SamplePairing()])
    handle = fm.attach(model, mix)
    schedule = schedules.OffAfter(mix, 1)
    assert not torch.equal(model(X), X)
    schedule.step()
    assert torch.equal(model(X), X)
    assert (handle.plan.weight == 1).all()


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize(
    "make", [fm.MixUp, fm.SamplePairing, lambda **kw: fm.RandomMix([fm.MixUp(p=0.9), fm.SamplePairing()], **kw)]
)
def test_compiled_steps_are_not_compiled_again(make, sampling):
    torch._dynamo.reset()
    mix = make(num_classes=5, sampling=sampling)
    following = [schedules.OffAfter(mix, 3)]
    if not isinstance(mix, fm.SamplePairing):
        following.append(schedules.LinearAlpha(mix, 1.0, 0.5, epochs=3))
    counting = Counting()
    compiled = torch.compile(mix, fullgraph=True, backend=counting)
    for epoch in range(5):
        torch.manual_seed(epoch)
        got = compiled(X, Y)
        torch.manual_seed(epoch)
        expected = mix(X, Y)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        if epoch >= 3:
            assert torch.equal(got[0], X)
        for schedule in following:
            schedule.step()
    assert counting.graphs == 1


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_persistent_workers_follow(context):
    """What timm's mixup_enabled does not reach."""
    data = TensorDataset(torch.rand(8, 1, 4, 4), torch.arange(8))
    mix = fm.RandomMix([fm.CutMix(), fm.SamplePairing()], num_classes=8)
    schedule = schedules.OffAfter(mix, 1)
    loader = DataLoader(
        data, 4, collate_fn=Collate(mix), num_workers=1, persistent_workers=True, multiprocessing_context=context
    )
    for epoch in range(2):
        plain = torch.stack([x for x, _ in data])
        assert torch.equal(torch.cat([x for x, _ in loader]), plain) == (epoch == 1)
        schedule.step()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: schedules.OffAfter(torch.nn.Identity(), 3), TypeError, "mix must be a mixing module"),
        (lambda: schedules.LinearAlpha(fm.SamplePairing(), epochs=3), TypeError, "mixing module with an alpha"),
        (lambda: schedules.LinearAlpha(fm.MixUp(), epochs=0), ValueError, "epochs must be >= 1"),
        (lambda: schedules.LinearAlpha(fm.MixUp(), -1.0, epochs=2), ValueError, "start must be"),
        (lambda: schedules.CosineAlpha(fm.MixUp(), end=-1.0, epochs=2), ValueError, "end must be"),
        (lambda: schedules.StepAlpha(fm.MixUp(), step_size=0), ValueError, "step_size must be >= 1"),
        (lambda: schedules.StepAlpha(fm.MixUp(), step_size=1, gamma="a"), TypeError, "gamma must be a number"),
        (lambda: schedules.OffAfter(fm.MixUp(), -1), ValueError, "epoch must be >= 0"),
        (lambda: schedules.OffAfter(fm.MixUp(), 3, last_epoch=-2), ValueError, "last_epoch must be >= -1"),
        (lambda: schedules.OffAfter(fm.MixUp(), 3).step(-1), ValueError, "epoch must be >= 0"),
        (
            lambda: schedules.OffAfter(fm.MixUp(), 3).load_state_dict({"last_epoch": 1}),
            ValueError,
            "state_dict must be",
        ),
        (
            lambda: SCHEDULES["step"](fm.RandomMix([fm.MixUp(), fm.GMix()])).load_state_dict(
                SCHEDULES["step"](fm.MixUp()).state_dict()
            ),
            ValueError,
            "of as many methods",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
