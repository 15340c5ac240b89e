"""fold=True: λ ← max(λ, 1-λ), whoever draws it and whichever way a batch takes."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import fusedmix as fm
from callers import CPP, INTERPRETED
from fusedmix.methods import Column, Kind
from wrong_calls import check, wrong, wrong_type

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


# Of other methods than MixUp all that follows from λ follows from the folded one.
METHODS = {
    "CutMix": fm.CutMix,
    "CutMix inside": lambda **options: fm.CutMix(placement="inside", **options),
    "HMix": fm.HMix,
    "GMix": fm.GMix,
    "SmoothMix": fm.SmoothMix,
    "GridMix": lambda **options: fm.GridMix(cells=(3, 2), **options),
    "FMix": fm.FMix,
    "FMix soft": lambda **options: fm.FMix(max_soft=0.2, variant="released", **options),
}


@each_way
@pytest.mark.parametrize("name", METHODS)
def test_masks(name, per, sampling):
    """The plan is that of a module whose range of λ is the folded number alone: it draws, and clamps, the same."""
    options = {"per": per, "sampling": sampling, "alpha": 0.7}
    size = (9, 8)
    for seed in range(4):
        lam = METHODS[name](**options).sample(B, size, seed=seed).lam
        plan = METHODS[name](fold=True, **options).sample(B, size, seed=seed)
        assert torch.equal(plan.lam, torch.max(lam, 1 - lam))
        for i, share in enumerate(plan.lam.tolist()):
            fixed = METHODS[name](lam_range=(share, share), **options).sample(B, size, seed=seed)
            assert torch.equal(plan.mask()[i], fixed.mask()[i])
            assert plan.weight[i] == fixed.weight[i]


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_sets(sampling):
    """Each method of a RandomMix folds or not; what is chosen and drawn is the same."""
    options = {"per": "sample", "sampling": sampling, "pairing": "random"}
    folding = fm.RandomMix([fm.MixUp(fold=True), fm.CutMix(fold=True), fm.HMix()], **options)
    plain = fm.RandomMix([fm.MixUp(), fm.CutMix(), fm.HMix()], **options)
    ours, theirs = (mix.sample(300, (9, 8), seed=1) for mix in (folding, plain))
    assert torch.equal(ours.partner, theirs.partner)
    assert torch.equal(ours.kind, theirs.kind)
    folds = (ours.kind == Kind.CONSTANT) | (ours.value[:, 0] == 1)  # Around the box of HMix is another number.
    lam = torch.where(folds, torch.max(theirs.lam, 1 - theirs.lam), theirs.lam)
    assert torch.equal(ours.lam, lam)
    assert (theirs.lam[folds] < 0.5).any()
    assert (ours.lam[~folds] < 0.5).any()
    folding.methods[0].fold = False
    assert folding.sample(300, (9, 8), seed=1).lam.min() < 0.5


MODULES = {
    "MixUp": fm.MixUp,
    "CutMix": fm.CutMix,
    "RandomMix": lambda fold, **options: fm.RandomMix([fm.MixUp(fold=fold), fm.GMix(fold=fold)], **options),
}


@each_way
@pytest.mark.parametrize("backend", ["reference", CPP, INTERPRETED])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_batches(name, backend, per, sampling, inplace):
    """A module mixes by the plan that it would have drawn, in the ways in which others do."""
    backend = backend.partition(" ")[0]
    options = {"per": per, "sampling": sampling, "num_classes": K, "inplace": inplace}
    mix, planner = (MODULES[name](fold=True, backend=of, **options) for of in (backend, "reference"))
    assert mix._usual == MODULES[name](fold=False, **options)._usual
    x, y = torch.rand(B, 3, 4, 5), torch.randint(0, K, (B,))
    for seed in range(4):
        torch.manual_seed(seed)
        plan = planner.sample(B, (4, 5))
        torch.manual_seed(seed)
        images, targets = mix(x.clone(), y)
        assert (plan.lam >= 0.5).all()
        w = plan.mask().reshape(B, 1, 4, 5).double()
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


@pytest.mark.parametrize("name", ["fold", "_fold"])
def test_pickled(name):
    mix = pickle.loads(pickle.dumps(fm.CutMix(fold=True)))
    assert mix.fold
    for fold in (True, False):  # as it was when this was an attribute, of EmbedMix alone and then of MixUp
        old = fm.EmbedMix(fold=not fold)
        old.__dict__.update({name: fold, "_spec": old._spec[:, : Column.FOLD]})
        assert pickle.loads(pickle.dumps(old)).fold is fold
    plain = fm.HMix()
    plain.__dict__["_spec"] = plain._spec[:, : Column.FOLD]
    again = pickle.loads(pickle.dumps(plain))
    assert torch.equal(again.sample(B, (5, 3), seed=1).masks, fm.HMix().sample(B, (5, 3), seed=1).masks)


@pytest.mark.parametrize("options", [{}, {"lam_law": ("normal", 0.5, 0.4)}], ids=str)
def test_compiled(options):
    torch._dynamo.reset()
    mix = fm.MixUp(fold=True, num_classes=K, per="sample", **options)
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
    "fold a string": wrong_type(lambda: fm.CutMix(fold="max"), "fold", "'max'", "bool"),
    "fold of SamplePairing": wrong_type(lambda: fm.SamplePairing(fold=True), "'fold'", "EmbedMix take fold"),
    "fold of a set": wrong_type(lambda: fm.RandomMix([fm.MixUp()], fold=True), "'fold'", "EmbedMix take fold"),
    "fold set to a number": wrong_type(lambda: setattr(fm.GMix(), "fold", 0.5), "fold", "0.5", "bool"),
    "fold set on SamplePairing": wrong(
        AttributeError, lambda: setattr(fm.SamplePairing(), "fold", True), "fold", "do nothing", "EmbedMix take fold"
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_folds(case):
    check(*case)
