"""MixUp(lam_law=): λ by other laws than Beta(α, α), also outside [0, 1]."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
from scipy import stats
from torch import nn

import fusedmix as fm
from callers import CPP, INTERPRETED

B, K = 6, 4
WAYS = [(per, sampling) for per in ("batch", "pair", "sample") for sampling in ("host", "device")]
each_way = pytest.mark.parametrize(("per", "sampling"), WAYS)
LAWS = {
    "uniform": (("uniform", -0.5, 1.5), stats.uniform(-0.5, 2.0)),
    "normal": (("normal", 0.4, 0.3), stats.norm(0.4, 0.3)),
    "Laplace": (torch.distributions.Laplace(0.5, 0.1).icdf, stats.laplace(0.5, 0.1)),
    "a square": (lambda u: u.square(), stats.beta(0.5, 1.0)),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_law(name):
    law, known = LAWS[name]
    lam = fm.MixUp(lam_law=law, per="sample").sample(20_000, (1,), seed=1).lam
    assert stats.kstest(lam.numpy(), known.cdf).pvalue > 0.01


def test_a_number_as_a_law():
    for law in (("uniform", 1.25, 1.25), ("normal", 1.25, 0.0)):
        assert (fm.MixUp(lam_law=law).sample(B, (3,)).lam == 1.25).all()


def test_the_named_law_is_that_of_torch():
    ours, theirs = (
        fm.MixUp(lam_law=law, per="sample").sample(500, (1,), seed=2).lam
        for law in (("normal", 0.5, 0.2), torch.distributions.Normal(0.5, 0.2).icdf)
    )
    torch.testing.assert_close(ours, theirs)


@each_way
@pytest.mark.parametrize("options", [{}, {"p": 0.5}], ids=str)
@pytest.mark.parametrize("fold", [False, True])
def test_plans(per, sampling, options, fold):
    """As many draws as there should be, by the seed; and what is left as it is keeps λ = 1."""
    mix = fm.MixUp(lam_law=("uniform", 2.0, 3.0), per=per, sampling=sampling, fold=fold, **options)
    plain = fm.MixUp(per=per, sampling=sampling, alpha=1.0, **options)
    kept, drawn = [], []
    for seed in range(20):
        plan, same = (mix.sample(B, (5, 3), seed=seed) for _ in range(2))
        assert torch.equal(plan.lam, same.lam)
        assert torch.equal(plan.weight, plan.lam.double())
        assert torch.equal(plan.mask(), plan.lam[:, None, None].expand(B, 5, 3))
        left = plan.lam == 1
        assert (left | ((plan.lam >= 2) & (plan.lam <= 3))).all()
        groups = {"batch": [0] * B, "pair": [0, 1, 2, 2, 1, 0], "sample": range(B)}[per]
        for i, j in itertools.combinations(range(B), 2):
            assert groups[i] != groups[j] or plan.lam[i] == plan.lam[j]
        assert len(set(plan.lam[~left].tolist())) == len(
            {g for g, is_left in zip(groups, left, strict=True) if not is_left}
        )
        if sampling == "device":  # Nothing else is drawn otherwise.
            assert torch.equal(plain.sample(B, (5, 3), seed=seed).lam == 1, left)
        kept += left.tolist()
        drawn += plan.lam[:1].tolist()
    assert any(kept) == bool(options)
    assert len(set(drawn)) > 5


def test_folded():
    free, folded = (fm.MixUp(lam_law=("uniform", -1.0, 1.0), fold=fold, per="sample") for fold in (False, True))
    a, b = (mix.sample(100, (2,), seed=3).lam for mix in (free, folded))
    assert torch.equal(b, torch.max(a, 1 - a))
    assert (a < 0.5).any()


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("backend", ["reference", CPP, INTERPRETED])
@pytest.mark.parametrize("inplace", [False, True])
def test_batches(backend, inplace, sampling):
    """A module mixes by the plan that it would have drawn, images and labels alike."""
    law = ("uniform", -1.0, 2.0)
    backend = backend.partition(" ")[0]
    mix = fm.MixUp(lam_law=law, num_classes=K, per="sample", sampling=sampling, backend=backend, inplace=inplace)
    x, y = torch.rand(B, 3, 4, 5), torch.randint(0, K, (B,))
    for seed in range(3):
        torch.manual_seed(seed)
        plan = mix.sample(B, (4, 5))
        torch.manual_seed(seed)
        images, targets = mix(x.clone(), y)
        w = plan.lam.reshape(B, 1, 1, 1).double()
        torch.testing.assert_close(images.double(), w * x + (1 - w) * x[plan.partner], atol=1e-6, rtol=0)
        torch.testing.assert_close(targets, fm.mix_labels(y, plan, num_classes=K))
        assert (plan.lam < 0).any() or (plan.lam > 1).any()


def test_a_given_number_goes_first():
    mix = fm.MixUp(lam_law=("uniform", 2.0, 3.0))
    assert mix.sample(B, (3,), lam=0.25).lam.tolist() == [0.25] * B
    assert fm.MixUp(lam_law=("uniform", 2.0, 3.0), training_only=True).eval().sample(B, (3,)).lam.tolist() == [1.0] * B


def test_set_later():
    x, y = torch.rand(B, 3, 4, 5), torch.randint(0, K, (B,))
    law = ("normal", 0.5, 1.0)
    mix, (with_law, plain) = fm.MixUp(num_classes=K), (fm.MixUp(lam_law=law, num_classes=K), fm.MixUp(num_classes=K))
    for value, twin in ((law, with_law), (None, plain), (law, with_law)):
        mix.lam_law = value
        assert mix.lam_law == value
        assert repr(mix) == repr(twin)
        for seed in range(4):
            torch.manual_seed(seed)
            found = mix(x, y)
            torch.manual_seed(seed)
            assert all(map(torch.equal, found, twin(x, y)))


def test_the_usual_step_is_as_before():
    assert fm.MixUp(num_classes=K)._usual
    assert not fm.MixUp(num_classes=K, lam_law=("uniform", 0, 1))._usual


def test_pickled():
    mix = pickle.loads(pickle.dumps(fm.MixUp(lam_law=("uniform", 2.0, 3.0))))
    assert mix.lam_law == ("uniform", 2.0, 3.0)
    assert (mix.sample(B, (3,)).lam >= 2).all()


def test_compiled():
    torch._dynamo.reset()
    mix = fm.MixUp(lam_law=("normal", 0.5, 1.0), num_classes=K, per="sample")
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    x, y = torch.rand(B, 3, 4, 5), torch.randint(0, K, (B,))
    torch.manual_seed(1)
    found = compiled(x, y)
    torch.manual_seed(1)
    for ours, theirs in zip(found, mix(x, y), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_embeddings():
    mix = fm.EmbedMix(lam_law=("uniform", -1.0, 0.0), per="sample")
    lam = mix.sample(50, (3,), seed=0).lam
    assert (lam >= 1).all()  # folded


def test_attached():
    model = nn.Identity()
    handle = fm.attach(model, fm.MixUp(lam_law=("uniform", 2.0, 3.0), per="sample", num_classes=K))
    x = torch.rand(B, 3, 4, 4)
    found = model(x)
    w = handle.plan.lam.reshape(B, 1, 1, 1)
    assert (w >= 2).all()
    torch.testing.assert_close(found, w * x + (1 - w) * x[handle.plan.partner])
