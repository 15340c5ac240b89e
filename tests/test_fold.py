"""MixUp(fold=True): λ ← max(λ, 1-λ), whoever draws it and whichever way a batch takes."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import fusedmix as fm
from callers import CPP, INTERPRETED
from wrong_calls import check, wrong, wrong_type, wrong_value

B, K = 6, 4
WAYS = [(per, sampling) for per in ("batch", "sample") for sampling in ("host", "device")] + [("pair", "host")]
each_way = pytest.mark.parametrize(("per", "sampling"), WAYS)


def twins(**options):
    """A module that folds, and one that does not."""
    return fm.MixUp(fold=True, **options), fm.MixUp(**options)


@each_way
@pytest.mark.parametrize("options", [{}, {"p": 0.5}, {"lam_range": (0.2, 0.4)}, {"pairing": "random"}], ids=str)
def test_plans(per, sampling, options):
    """All else is drawn as without; and λ is what MixMatch makes of it."""
    options = {**options, **({"pairing": "flip"} if per == "pair" else {})}
    folding, plain = twins(per=per, sampling=sampling, alpha=0.7, **options)
    seen = set()
    for seed in range(12):
        ours, theirs = (mix.sample(B, (5, 3), seed=seed) for mix in (folding, plain))
        lam = torch.max(theirs.lam, 1 - theirs.lam)
        assert torch.equal(ours.lam, lam)
        assert torch.equal(ours.weight, lam.double())
        assert torch.equal(ours.mask(), lam[:, None, None].expand(B, 5, 3))
        assert torch.equal(ours.partner, theirs.partner)
        assert (ours.pairing, ours.per, ours.constant) == (theirs.pairing, theirs.per, True)
        seen.update((theirs.lam < 0.5).tolist())
    assert seen >= ({True} if "lam_range" in options else {True, False})
    states = []
    for mix in (folding, plain):
        generator = torch.Generator().manual_seed(3)
        mix.sample(B, (5, 3), generator=generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


@each_way
@pytest.mark.parametrize("backend", ["reference", CPP, INTERPRETED])
@pytest.mark.parametrize("inplace", [False, True])
def test_batches(backend, per, sampling, inplace):
    """A module mixes by the plan that it would have drawn."""
    mix = fm.MixUp(
        fold=True, num_classes=K, per=per, sampling=sampling, backend=backend.partition(" ")[0], inplace=inplace
    )
    x, y = torch.rand(B, 3, 4, 5), torch.randint(0, K, (B,))
    for seed in range(4):
        torch.manual_seed(seed)
        plan = mix.sample(B, (4, 5))
        torch.manual_seed(seed)
        images, targets = mix(x.clone(), y)
        assert (plan.lam >= 0.5).all()
        w = plan.lam.reshape(B, 1, 1, 1).double()
        torch.testing.assert_close(images.double(), w * x + (1 - w) * x[plan.partner], atol=1e-6, rtol=0)
        torch.testing.assert_close(targets, fm.mix_labels(y, plan, num_classes=K))


def test_a_given_number_is_not_folded():
    mix = fm.MixUp(fold=True)
    assert mix.sample(B, (3,), lam=0.2).lam.tolist() == pytest.approx([0.2] * B)
    assert mix.sample(B, (3,), lam=torch.full((B,), -1.0)).lam.tolist() == [-1.0] * B


def test_set_later():
    torch.manual_seed(0)
    x, y = torch.rand(B, 3, 4, 5), torch.randint(0, K, (B,))
    mix, (folding, plain) = fm.MixUp(num_classes=K), twins(num_classes=K)
    for value, twin in ((True, folding), (False, plain), (True, folding)):
        mix.fold = value
        assert mix.fold is value
        assert repr(mix) == repr(twin)
        for seed in range(4):
            torch.manual_seed(seed)
            found = mix(x, y)
            torch.manual_seed(seed)
            assert all(map(torch.equal, found, twin(x, y)))


def test_pickled():
    mix = pickle.loads(pickle.dumps(fm.MixUp(fold=True)))
    assert mix.fold
    for fold in (True, False):  # as it was when EmbedMix alone had it, as a plain attribute
        old = fm.EmbedMix(fold=fold)
        old.__dict__["fold"] = old.__dict__.pop("_fold")
        assert pickle.loads(pickle.dumps(old)).fold is fold


def test_compiled():
    torch._dynamo.reset()
    mix = fm.MixUp(fold=True, num_classes=K, per="sample")
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    x, y = torch.rand(B, 3, 4, 5), torch.randint(0, K, (B,))
    torch.manual_seed(1)
    found = compiled(x, y)
    torch.manual_seed(1)
    assert all(map(torch.equal, found, mix(x, y)))


def test_attached():
    model = nn.Identity()
    handle = fm.attach(model, fm.MixUp(fold=True, per="sample", num_classes=K))
    model(torch.rand(64, 3, 4, 4))
    assert (handle.plan.lam >= 0.5).all()


WRONG = {
    "fold int": wrong_type(lambda: fm.MixUp(fold=1), "fold", "1", "bool"),
    "fold of CutMix": wrong_type(lambda: fm.CutMix(fold=True), "'fold'", "MixUp and EmbedMix take fold"),
    "fold in a set": wrong_value(
        lambda: fm.RandomMix([fm.CutMix(), fm.MixUp(fold=True)]), "methods[1]", "fold=False", "RandomMix"
    ),
    "fold set in a set": wrong(
        AttributeError,
        lambda: setattr(fm.RandomMix([fm.MixUp()]).methods[0], "fold", True),
        "fold",
        "False",
        "RandomMix",
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_folds(case):
    check(*case)
