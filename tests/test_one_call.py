"""`fusedmix.functional.mixup` and its like: what the module of each method makes of the batch by the same λ."""

from __future__ import annotations

import inspect

import pytest
import torch

import fusedmix as fm
from wrong_calls import X, Y, check, wrong_type, wrong_value

F = fm.functional
CALLS = {
    F.mixup: (fm.MixUp, {}),
    F.cutmix: (fm.CutMix, {"placement": "inside", "aspect": (0.5, 2.0)}),
    F.hmix: (fm.HMix, {"ratio": 0.5, "variant": "paper"}),
    F.gmix: (fm.GMix, {"variant": "paper"}),
    F.fmix: (fm.FMix, {"decay_power": 2.0, "max_soft": 0.3}),
    F.smoothmix: (fm.SmoothMix, {"shape": "square", "edge": 0.2}),
    F.gridmix: (fm.GridMix, {"cells": (2, 3)}),
    F.resizemix: (fm.ResizeMix, {"resize": "bilinear"}),
}
LAM = {"one": 0.3, "one each": torch.tensor([0.0, 0.25, 0.5, 1.0, 0.9])}


def batch(dtype=torch.float32, shape=(5, 3, 9, 7)):
    x = torch.rand(shape, dtype=torch.float64)
    return (255 * x).to(dtype) if dtype == torch.uint8 else x.to(dtype), torch.arange(5)


@pytest.mark.parametrize("lam", LAM.values(), ids=list(LAM))
@pytest.mark.parametrize("given", [False, True], ids=["defaults", "keywords"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_it_is_the_plan_of_the_module(call, given, lam):
    """By one seed it is the plan of `sample(lam=)`; without one, the same numbers of torch's generator."""
    cls, own = CALLS[call]
    own = own if given or cls is fm.GridMix else {}
    shared = {"per": "sample", "label_smoothing": 0.1, "pairing": "random", "backend": "reference"} if given else {}
    x, y = batch()
    module = cls(num_classes=6, **own, **shared)
    for seed in (7, None):
        torch.manual_seed(1)
        plan = module.sample(5, (9, 7), lam=lam, seed=seed)
        torch.manual_seed(1)
        mixed, targets = call(x, y, lam=lam, num_classes=6, seed=seed, **own, **shared)
        assert torch.equal(mixed, fm.mix(x, plan, backend=module.backend))
        smoothed = {"label_smoothing": module.label_smoothing, "backend": module.backend}
        assert torch.equal(targets, fm.mix_labels(y, plan, num_classes=6, **smoothed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_mixup_by_hand(dtype):
    x, y = batch(dtype)
    partner, lam = torch.tensor([3, 3, 0, 1, 2]), torch.tensor([0.0, 0.25, 0.5, 1.0, 0.75])
    mixed, targets = F.mixup(x, y, lam=lam, partner=partner, num_classes=5)
    weight = lam.double().view(5, 1, 1, 1)
    exact = weight * x.double() + (1 - weight) * x[partner].double()
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed, exact.round().to(dtype) if dtype == torch.uint8 else exact.to(dtype))
    one_hot = torch.eye(5)
    torch.testing.assert_close(targets, lam[:, None] * one_hot + (1 - lam[:, None]) * one_hot[partner])


@pytest.mark.parametrize(
    ("shape", "keywords"),
    [
        ((5, 2, 40), {}),
        ((5, 2, 3, 8, 6), {"axes": (-3, -2, -1)}),
        ((5, 8, 6, 3), {"axes": (1, 2)}),
        ((1, 3, 8, 6), {}),
        ((0, 3, 8, 6), {}),
    ],
    ids=["signals", "volumes", "channels last of all", "one sample", "no sample"],
)
def test_shapes(shape, keywords):
    x, y = torch.rand(shape), torch.arange(shape[0])
    module = fm.CutMix(num_classes=5, **keywords)
    sizes = {"axes": x.shape[1:3] if keywords.get("axes") == (1, 2) else x.shape[2:]}
    plan = module.sample(shape[0], sizes["axes"], lam=0.4, seed=2)
    mixed, targets = F.cutmix(x, y, lam=0.4, num_classes=5, seed=2, **keywords)
    last = x.movedim(-1, 1) if keywords.get("axes") == (1, 2) else x
    expected = fm.mix(last, plan)
    assert torch.equal(mixed, expected.movedim(1, -1) if last is not x else expected)
    assert torch.equal(targets, fm.mix_labels(y, plan, num_classes=5))


def test_in_place_and_channels_last():
    x, y = batch()
    x = x.to(memory_format=torch.channels_last)
    expected, _ = F.cutmix(x, y, lam=0.5, num_classes=5, seed=1)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    mixed, _ = F.cutmix(x, y, lam=0.5, num_classes=5, seed=1, inplace=True)
    assert mixed is x
    assert torch.equal(x, expected)


def test_gradients_and_soft_labels():
    x = batch()[0].requires_grad_()
    soft = torch.rand(5, 4).softmax(1)
    mixed, targets = F.mixup(x, soft, lam=0.25)
    mixed.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))
    torch.testing.assert_close(targets, 0.25 * soft + 0.75 * soft.roll(1, 0))


def test_signatures_say_all():
    """help() shows every keyword with the module's default, and describes it."""
    for call, (cls, _) in CALLS.items():
        module = inspect.signature(cls).parameters
        for name, parameter in inspect.signature(call).parameters.items():
            assert f"\n    {name}: " in inspect.getdoc(call).partition("Args:")[2]
            if name in module and name != "cells":
                assert parameter.default == module[name].default


WRONG = {
    "lam missing": wrong_type(lambda: F.cutmix(X, Y, num_classes=4), "lam"),
    "lam None": wrong_type(lambda: F.cutmix(X, Y, lam=None, num_classes=4), "lam", "None", "fusedmix.CutMix()"),
    "lam too large": wrong_value(lambda: F.cutmix(X, Y, lam=1.5, num_classes=4), "lam", "1.5", "[0, 1]"),
    "keyword misspelt": wrong_type(lambda: F.gmix(X, Y, lam=0.5, num_clases=4), "num_clases", "num_classes"),
    "labels out of range": wrong_value(
        lambda: F.mixup(X, Y, lam=0.5, num_classes=3, inplace=True), "labels", "got 3", "[0, 3)"
    ),
    "images a list": wrong_type(lambda: F.mixup([1.0], Y, lam=0.5, num_classes=4), "images", "list"),
    "six dims": wrong_value(lambda: F.cutmix(X[:, None, None], Y, lam=0.5, num_classes=4), "6 dimensions", "axes"),
    "pairing adjacent": wrong_value(
        lambda: F.cutmix(X, Y, lam=0.5, num_classes=4, pairing="adjacent"), "pairing", "adjacent", "fusedmix.CutMix"
    ),
    "partner too large": wrong_value(
        lambda: F.fmix(X, Y, lam=0.5, num_classes=4, partner=torch.full((4,), 7)), "partner", "7", "[0, 4)"
    ),
    "seed and generator": wrong_value(
        lambda: F.hmix(X, Y, lam=0.5, num_classes=4, seed=1, generator=torch.Generator()), "seed", "generator"
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    check(*WRONG[case])
