"""MultiMix: the laws of its weights, its partners, and the batches that come of them."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import fusedmix as fm
from batches import DTYPES, name_of, values
from fusedmix.methods import Pairing
from test_ops import HERE

N = 20_000


def weights(n=N, seed=0, **options):
    return fm.MultiMix(per="sample", **options).sample(n, (1,), seed=seed).terms.weight


@pytest.mark.parametrize("alpha", [0.05, 0.4, 1.0, 6.0])
@pytest.mark.parametrize("k", [2, 3, 5, 8])
def test_the_law_of_dirichlet(k, alpha):
    """Moments within 4 standard errors of the closed form; each weight, and each of two relative to the other, as a
    Beta distribution."""
    w = weights(k=k, alpha=alpha, seed=k)
    torch.testing.assert_close(w.sum(1), torch.ones(N, dtype=torch.float64), rtol=0, atol=1e-12)
    law = torch.distributions.Dirichlet(torch.full((k,), alpha, dtype=torch.float64))
    total = k * alpha
    of = [(w[:, i], law.mean[i]) for i in range(k)]
    of += [((w[:, i] - 1 / k) ** 2, law.variance[i]) for i in range(k)]
    of += [(w[:, i] * w[:, i - 1], alpha * alpha / (total * (total + 1))) for i in range(k)]
    third = (total + 1) * (total + 2) / (alpha + 1) / (alpha + 2)
    of += [(w[:, i] ** 3, alpha / (total * third)) for i in (0, k - 1)]
    for drawn, expected in of:
        assert abs(float(drawn.mean() - expected)) <= 4 * float(drawn.std()) / math.sqrt(N)
    if alpha < 0.1:  # Shares of 1 have no distance from it in float64.
        return
    assert stats.kstest(w[:, 0].numpy(), stats.beta(alpha, (k - 1) * alpha).cdf).pvalue > 1e-4
    for i, j in itertools.islice(itertools.combinations(range(k), 2), 0, None, 5):
        assert stats.kstest((w[:, i] / (w[:, i] + w[:, j])).numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-4


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_two_samples_are_mixup(alpha):
    ours = fm.MultiMix(k=2, alpha=alpha, per="sample").sample(N, (1,), seed=1)
    theirs = fm.MixUp(alpha=alpha, per="sample").sample(N, (1,), seed=2)
    assert stats.ks_2samp(ours.lam.numpy(), theirs.lam.numpy()).pvalue > 1e-4
    assert torch.equal(ours.partner, theirs.partner)
    x, y = torch.rand(6, 3, 8, 8), torch.arange(6)
    lam = torch.linspace(0, 1, 6)
    plans = [make(per="sample").sample(6, (8, 8), lam=lam) for make in (lambda **o: fm.MultiMix(k=2, **o), fm.MixUp)]
    torch.testing.assert_close(*(fm.mix(x, plan) for plan in plans))
    torch.testing.assert_close(*(fm.mix_labels(y, plan, num_classes=6) for plan in plans))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.8, 400.0])
@pytest.mark.parametrize("k", [2, 3, 6])
def test_the_law_of_zeta(k, gamma):
    """i^-γ over their sum: the largest for the sample itself, the others in every order equally often."""
    w = weights(k=k, weights="zeta", gamma=gamma)
    p = torch.arange(1, k + 1, dtype=torch.float64) ** -gamma
    torch.testing.assert_close(w.sort(1, descending=True).values, (p / p.sum()).expand(N, k), rtol=1e-12, atol=1e-12)
    assert (w[:, :1] >= w - 1e-12).all()
    if k > 2 and 0 < gamma < 100:
        orders = Counter(map(tuple, w[:, 1:].argsort(1).tolist()))
        assert len(orders) == math.factorial(k - 1)
        assert stats.chisquare(list(orders.values())).pvalue > 1e-4
    if gamma > 1.73:
        assert (w[:, 0] > 0.5).all()


def test_weights_that_underflow():
    w = weights(k=7, alpha=1e-4)
    assert w.isfinite().all()
    assert (w >= 0).all()
    assert stats.chisquare(w.argmax(1).bincount(minlength=7).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize(("per", "different"), [("batch", 1), ("pair", 4), ("sample", 7)])
@pytest.mark.parametrize("law", ["dirichlet", "zeta"])
def test_draws(per, different, sampling, law):
    mix = fm.MultiMix(k=8, per=per, sampling=sampling, weights=law)
    plan, again, another = (mix.sample(7, (8, 8), seed=seed) for seed in (3, 3, 4))
    w = plan.terms.weight
    assert torch.equal(w, again.terms.weight)
    assert torch.equal(plan.terms.partner, again.terms.partner)
    assert not torch.equal(w, another.terms.weight)
    assert len(w.unique(dim=0)) == different
    if per == "pair":
        assert torch.equal(w, w.flip(0))
    torch.manual_seed(5)
    first = mix.sample(7, (8, 8))
    torch.manual_seed(5)
    assert torch.equal(first.terms.weight, mix.sample(7, (8, 8)).terms.weight)
    # What a plan says of the first two is true.
    assert torch.equal(plan.lam, w[:, 0].float())
    assert torch.equal(plan.weight, w[:, 0])
    assert torch.equal(plan.value[:, 0], plan.lam)
    assert torch.equal(plan.terms.partner[:, 0], torch.arange(7))
    assert torch.equal(plan.terms.partner[:, 1], plan.partner)
    assert plan.blended


@pytest.mark.parametrize("pairing", [pairing.name.lower() for pairing in Pairing])
def test_partners(pairing):
    labels = torch.arange(30) % 3
    plan = fm.MultiMix(k=4, pairing=pairing, per="sample").sample(30, (1,), seed=1, labels=labels)
    index = torch.arange(30)
    for of in plan.terms.partner.unbind(1):
        assert torch.equal(of.sort().values, index)
    if pairing == "roll":
        assert torch.equal(plan.terms.partner, (index[:, None] - torch.arange(4)) % 30)
    elif pairing != "same_class":
        assert len({tuple(of.tolist()) for of in plan.terms.partner.unbind(1)}) == 4
    else:
        assert (labels[plan.terms.partner] == labels[:, None]).all()


def test_given_lam_and_what_is_left_alone():
    lam = torch.tensor([0.0, 0.25, 1.0, 1.5])
    for law in ("dirichlet", "zeta"):
        mix = fm.MultiMix(k=3, weights=law, per="sample")
        w = mix.sample(4, (1,), lam=lam, seed=0).terms.weight
        assert torch.equal(w[:, 0], lam.double())
        torch.testing.assert_close(w.sum(1), torch.ones(4, dtype=torch.float64))
        w = fm.MultiMix(weights=law, per="sample", lam_range=(0.4, 0.6)).sample(N, (1,), seed=0).terms.weight
        assert w[:, 0].min() == (0.4 if law == "dirichlet" else 0.6)
        assert w[:, 0].max() == 0.6
        torch.testing.assert_close(w.sum(1), torch.ones(N, dtype=torch.float64))
        half = fm.MultiMix(weights=law, per="sample", p=0.5).sample(N, (1,), seed=0)
        alone = half.terms.weight[:, 0] == 1
        assert abs(alone.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(N)
        assert not half.terms.weight[alone][:, 1:].any()
        for off in (fm.MultiMix(weights=law, training_only=True).eval(), fm.MultiMix(weights=law)):
            if off.training:
                off.enabled = False
            assert torch.equal(off.sample(5, (1,)).terms.weight, torch.tensor([[1.0, 0, 0]] * 5, dtype=torch.float64))
        off.enabled, off.alpha = True, 0.0
        assert (off.sample(5, (1,)).lam == 1).all()


SHAPES = {"numbers": (6, 5), "signals": (6, 3, 11), "images": (6, 3, 8, 9), "volumes": (6, 2, 3, 4, 5)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("where", HERE, ids="-".join)
def test_batches(where, dtype, shape):
    name, device = where
    x = values(SHAPES[shape], dtype)
    plan = fm.MultiMix(k=4, per="sample", pairing="random").sample(6, (7,), seed=1)
    mixed = fm.mix(x.to(device), plan, backend=name).cpu()
    expected = torch.einsum("bt,bt...->b...", plan.terms.weight.float().double(), x.double()[plan.terms.partner])
    assert mixed.dtype == dtype
    if dtype == torch.uint8:
        assert (mixed.double() - expected).abs().max() <= 0.5 + 1e-4
        return
    unit = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps if dtype != torch.float64 else 0)
    scale = x.double().abs().max()
    torch.testing.assert_close(mixed.double(), expected, rtol=unit, atol=4 * float(scale) * (
        torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    ) + torch.finfo(dtype).tiny)  # fmt: skip


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 11), (6, 3, 8, 9), (6, 2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_a_module(shape, per):
    """Images, labels, sparse labels and both losses by one plan."""
    x, y = torch.rand(shape), torch.arange(6)
    axes = {2: {"axes": (-1,)}, 5: {"axes": (-3, -2, -1)}}.get(len(shape), {})
    mix = fm.MultiMix(k=3, num_classes=6, per=per, **axes)
    torch.manual_seed(1)
    mixed, targets = mix(x, y)
    torch.manual_seed(1)
    plan = mix.sample(6, shape[2:] or shape[1:])
    assert torch.equal(mixed, fm.mix(x, plan))
    assert torch.equal(targets, fm.mix_labels(y, plan, num_classes=6))
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    mix.targets = "sparse"
    torch.manual_seed(1)
    again, sparse = mix(x, y)
    assert torch.equal(again, mixed)
    assert isinstance(sparse, fm.SparseTerms)
    assert torch.equal(sparse.labels, y[plan.terms.partner])
    logits = torch.randn(6, 6)
    each = torch.stack([F.cross_entropy(logits, of, reduction="none") for of in sparse.labels.unbind(1)], 1)
    loss = (sparse.weight * each).sum(1).mean()
    torch.testing.assert_close(fm.mix_cross_entropy(logits, y, plan).double(), loss)
    torch.testing.assert_close(F.cross_entropy(logits, targets).double(), loss)
    torch.testing.assert_close(
        fm.mix_binary_cross_entropy(logits, y, plan), F.binary_cross_entropy_with_logits(logits, targets)
    )


def test_label_maps_as_classes():
    x, maps = torch.rand(4, 3, 8, 8), torch.randint(5, (4, 8, 8))
    plan = fm.MultiMix(per="sample").sample(4, (8, 8), seed=2)
    mixed = fm.mix_masks(maps, plan, num_classes=5)
    expected = fm.mix(F.one_hot(maps, 5).movedim(-1, 1).float(), plan)
    assert torch.equal(mixed, expected)
    with pytest.raises(ValueError, match="are label maps, which a method that blends"):
        fm.mix_masks(maps, plan)
    assert fm.mix(x, plan).shape == x.shape


def test_derivatives():
    x = torch.rand(4, 2, 3, dtype=torch.float64, requires_grad=True)
    plan = fm.MultiMix(per="sample").sample(4, (3,), seed=2)
    assert torch.autograd.gradcheck(lambda x: fm.mix(x, plan), x, check_forward_ad=True)
    mixed, _ = fm.MultiMix(num_classes=4)(x, torch.arange(4))
    mixed.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))  # Everybody is given away as often as it is mixed.


@pytest.mark.parametrize("batch_size", [0, 1, 2])
def test_small_batches(batch_size):
    x, y = torch.rand(batch_size, 3, 4, 4), torch.zeros(batch_size, dtype=torch.int64)
    for pairing, per in (("roll", "batch"), ("random", "sample"), ("flip", "pair")):
        mixed, targets = fm.MultiMix(k=8, num_classes=3, pairing=pairing, per=per)(x, y)
        assert mixed.shape == x.shape
        assert targets.shape == (batch_size, 3)


def test_attributes():
    mix = fm.MultiMix(k=4, alpha=0.5)
    assert repr(mix) == "MultiMix(k=4, alpha=0.5)"
    mix.alpha = 2.0
    assert (mix.k, mix.alpha, mix.weights, mix.gamma) == (4, 2.0, "dirichlet", 2.8)
    zeta = fm.MultiMix(weights="zeta")
    zeta.gamma = 1.0
    assert "weights='zeta', gamma=1.0" in repr(zeta)
    assert zeta.sample(1, (1,)).terms.weight.amax() == pytest.approx(6 / 11)


def test_compiled():
    mix = fm.MultiMix(num_classes=4, per="sample")
    torch._dynamo.reset()
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    torch.manual_seed(3)
    expected = mix(x, y)
    torch.manual_seed(3)
    torch.testing.assert_close(compiled(x, y), expected)
