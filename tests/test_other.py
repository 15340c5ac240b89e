"""Partners from another batch: plans, modules and labels, and the two recipes that need them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision import tv_tensors

import fusedmix as fm
from callers import CPP
from fusedmix.methods import Pairing

B, N, K, SIZE = 4, 7, 5, (6, 5)
SIZES = [1, 3, B, N, 11]  # of the other batch


def batch(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, *SIZE, generator=g), torch.randint(K, (n,), generator=g)


def paired(x, other, plan):
    """M ⊙ x + (1-M) ⊙ other[partner], by the masks as numbers."""
    m = plan.mask().double().reshape(B, *[1] * (x.ndim - 3), *SIZE)
    return m * x + (1 - m) * other[plan.partner]


def targets_of(y, other, plan):
    y, other = (F.one_hot(t, K).double() if t.ndim == 1 else t.double() for t in (y, other))
    w = plan.weight.unsqueeze(1)
    return w * y + (1 - w) * other[plan.partner]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
def test_partners_by_pairing(pairing, sampling, n):
    """All else is drawn as without; and of as many others the partners are those of the batch itself."""
    mix = fm.CutMix(per="sample", pairing=pairing, sampling=sampling)
    plan, own = (mix.sample(B, SIZE, seed=3, **options) for options in ({"other_size": n}, {}))
    assert torch.equal(plan.masks, own.masks)
    assert torch.equal(plan.lam, own.lam)
    assert (plan.other_size, plan.repeats) == (n, False)
    formula = {"roll": lambda i: (i - 1) % n, "flip": lambda i: (n - 1 - i) % n}.get(pairing)
    if formula is not None:
        assert plan.partner.tolist() == [formula(i) for i in range(B)]
    if n == B:
        assert torch.equal(plan.partner, own.partner)
    found = plan.partner.tolist()
    assert len(set(found)) == min(n, B), "a sample came twice before another came once"
    assert found[n:] == found[: B - n] if n < B else set(found) <= set(range(n))


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_every_other_sample_is_as_likely(sampling):
    mix, draws = fm.MixUp(pairing="random", sampling=sampling), 3000
    counts = torch.zeros(B, N)
    torch.manual_seed(0)
    for _ in range(draws):
        counts[range(B), mix.sample(B, SIZE, other_size=N).partner] += 1
    deviation = (draws * (1 / N) * (1 - 1 / N)) ** 0.5
    assert ((counts - draws / N).abs() < 4.5 * deviation).all()


def test_partners_that_are_given():
    partner = torch.tensor([6, 6, 0, 3])
    drawn = fm.CutMix(per="sample", pairing="same_class").sample(B, SIZE, seed=1, partner=partner, other_size=N)
    made = fm.MixPlan.from_parts(lam=torch.full((B,), 0.25), partner=partner, other_size=N)
    for plan in (drawn, made):
        assert torch.equal(plan.partner, partner)
        assert (plan.other_size, plan.repeats, plan.pairing) == (N, False, Pairing.RANDOM)
    rolled = fm.MixPlan.from_parts(lam=torch.full((B,), 0.25), other_size=3)
    assert rolled.partner.tolist() == [2, 0, 1, 2]
    (x, _), (other, _) = batch(B), batch(3, seed=1)
    torch.testing.assert_close(fm.mix(x, rolled, other=other), 0.25 * x + 0.75 * other[[2, 0, 1, 2]])


METHODS = {
    "MixUp": fm.MixUp,
    "CutMix": fm.CutMix,
    "HMix": fm.HMix,
    "FMix": fm.FMix,
    "RandomMix": lambda **options: fm.RandomMix([fm.MixUp(), fm.CutMix()], **options),
}


@pytest.mark.parametrize("n", [3, B, N])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
@pytest.mark.parametrize("name", METHODS)
def test_batches(name, per, inplace, n):
    """A module mixes by the plan that it would have drawn."""
    mix = METHODS[name](num_classes=K, per=per, inplace=inplace, label_smoothing=0.1, backend="reference")
    (x, y), (x2, y2) = batch(B), batch(n, seed=1)
    torch.manual_seed(5)
    plan = mix.sample(B, SIZE, other_size=n)
    torch.manual_seed(5)
    given, kept = x.clone(), x2.clone()
    images, targets = mix(given, y, other=(x2, y2))
    assert (images is given) == inplace
    assert torch.equal(x2, kept)
    torch.testing.assert_close(images.double(), paired(x, x2, plan), atol=1e-6, rtol=0)
    expected = 0.9 * targets_of(y, y2, plan) + 0.1 / K
    torch.testing.assert_close(targets.double(), expected, atol=1e-6, rtol=0)


def test_any_structure():
    (x, y), (x2, y2) = batch(B), batch(N, seed=1)
    maps, maps2 = (torch.randint(3, (n, *SIZE)) for n in (B, N))
    mix = fm.CutMix(num_classes=K, per="sample")

    def sample(x, maps, y):
        return {"rest": "kept", "views": [tv_tensors.Image(x), tv_tensors.Mask(maps)], "labels": y}

    torch.manual_seed(2)
    plan = mix.sample(B, SIZE, other_size=N)
    torch.manual_seed(2)
    mixed = mix(sample(x, maps, y), other=sample(x2, maps2, y2))
    image, mask = mixed["views"]
    assert isinstance(image, tv_tensors.Image)
    assert mixed["rest"] == "kept"
    torch.testing.assert_close(image.double(), paired(x, x2, plan), check_dtype=False)
    assert torch.equal(mask, torch.where(plan.mask() == 1, maps, maps2[plan.partner]))
    torch.testing.assert_close(mixed["labels"].double(), targets_of(y, y2, plan), atol=1e-6, rtol=0)

    alone = fm.MixUp(labels_getter=None)
    torch.manual_seed(2)
    plan = alone.sample(B, SIZE, other_size=N)
    torch.manual_seed(2)
    torch.testing.assert_close(alone(x, other=x2).double(), paired(x, x2, plan), atol=1e-6, rtol=0)


def test_sparse_targets_and_a_module_that_is_off():
    (x, y), (x2, y2) = batch(B), batch(N, seed=1)
    _, targets = fm.MixUp(targets="sparse", pairing="flip")(x, y, other=(x2, y2))
    assert torch.equal(targets.labels, y)
    assert torch.equal(targets.partner_labels, y2.flip(0)[:B])
    off = fm.MixUp(num_classes=K, training_only=True).eval()
    assert all(a is b for a, b in zip(off(x, y, other=(x2, y2)), (x, y), strict=True))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int64])
def test_labels(dtype):
    plan = fm.CutMix(per="sample").sample(B, SIZE, seed=0, other_size=N)
    (_, y), (_, y2) = batch(B), batch(N, seed=1)
    mixed = fm.mix_labels(y.to(dtype), plan, other=y2.int(), num_classes=K)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed.double(), targets_of(y, y2, plan), atol=1e-6, rtol=0)
    soft, guessed = torch.rand(B, K, dtype=torch.float64).softmax(1), torch.rand(N, K).softmax(1)
    torch.testing.assert_close(fm.mix_labels(soft, plan, other=guessed), targets_of(soft, guessed, plan))
    one_hot = F.one_hot(y, K)
    torch.testing.assert_close(
        fm.mix_labels(one_hot, plan, other=guessed).double(), targets_of(y, guessed, plan), atol=1e-6, rtol=0
    )


def test_derivatives_by_the_labels_of_both():
    plan = fm.MixUp(per="sample").sample(B, SIZE, seed=0, other_size=N)
    y, guessed = (torch.rand(n, K, dtype=torch.float64, requires_grad=True) for n in (B, N))
    assert torch.autograd.gradcheck(lambda a, b: fm.mix_labels(a, plan, other=b), (y, guessed))
    assert torch.autograd.gradcheck(lambda a, b: fm.mix_targets(a, plan, other=b), (y, guessed))


def test_numbers_and_masks():
    plan = fm.HMix(per="sample").sample(B, SIZE, seed=0, other_size=N)
    y, y2 = torch.rand(B, 2), torch.rand(N, 2)
    w = plan.weight.float().unsqueeze(1)
    torch.testing.assert_close(fm.mix_targets(y, plan, other=y2), w * y + (1 - w) * y2[plan.partner])
    maps, maps2 = (torch.randint(3, (n, *SIZE)) for n in (B, N))
    soft = fm.mix_masks(maps, plan, other=maps2, num_classes=3)
    expected = paired(*(F.one_hot(m, 3).permute(0, 3, 1, 2).double() for m in (maps, maps2)), plan)
    torch.testing.assert_close(soft.double(), expected, atol=1e-6, rtol=0)
    dense, dense2 = torch.rand(B, 2, *SIZE), torch.rand(N, 2, *SIZE)
    torch.testing.assert_close(
        fm.mix_masks(dense, plan, other=dense2).double(), paired(dense, dense2, plan), atol=1e-6, rtol=0
    )


def test_accuracy():
    """The same as that of a batch which has the other one's samples below."""
    plan = fm.MixUp(per="sample").sample(B, SIZE, seed=0, other_size=N)
    (_, y), (_, y2) = batch(B), batch(N, seed=1)
    logits, w = torch.randn(B, K), plan.weight.float()
    best = logits.argmax(1)
    expected = (w * (best == y) + (1 - w) * (best == y2[plan.partner])).mean()
    torch.testing.assert_close(fm.mix_accuracy(logits, y, plan, other=y2), expected)
    soft, soft2 = F.one_hot(y, K).float(), F.one_hot(y2, K).float()
    torch.testing.assert_close(fm.mix_accuracy(logits, soft, plan, other=soft2), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", [fm.mix_cross_entropy, fm.mix_binary_cross_entropy])
def test_losses_are_of_the_dtype_of_their_logits(loss, reduction):
    plan = fm.MixUp(per="sample").sample(B, SIZE, seed=0, other_size=N)
    (_, y), (_, y2) = batch(B), batch(N, seed=1)
    for dtype, expected in ((torch.float32, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2):
        assert loss(torch.randn(B, K).to(dtype), y, plan, other=y2, reduction=reduction).dtype == expected


def derived(loss, logits):
    """A loss and its gradient."""
    z = logits.clone().requires_grad_()
    value = loss(z)
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


@pytest.mark.parametrize("backend", ["reference", CPP])
@pytest.mark.parametrize("kind", ["classes", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("n", [3, N])
def test_losses(kind, reduction, smoothing, n, backend):
    """Those of dense targets, by PyTorch."""
    plan = fm.CutMix(per="sample").sample(B, SIZE, seed=0, other_size=n)
    y, y2 = (batch(m, seed)[1] for m, seed in ((B, 0), (n, 1)))
    if kind == "soft":
        y, y2 = F.one_hot(y, K).double(), torch.rand(n, K, dtype=torch.float64).softmax(1)
    dense = targets_of(y, y2, plan)
    logits, weight = torch.randn(B, K, dtype=torch.float64), torch.rand(K, dtype=torch.float64)
    options = {"weight": weight, "reduction": reduction}

    def entropy(z):
        return fm.mix_cross_entropy(z, y, plan, other=y2, label_smoothing=smoothing, backend=backend, **options)

    def binary(z):
        return fm.mix_binary_cross_entropy(z, y, plan, other=y2, label_smoothing=smoothing, backend=backend, **options)

    found = derived(entropy, logits)
    torch.testing.assert_close(
        found, derived(lambda z: F.cross_entropy(z, dense, label_smoothing=smoothing, **options), logits)
    )
    smooth = (1 - smoothing) * dense + smoothing / K
    found = derived(binary, logits)
    torch.testing.assert_close(
        found, derived(lambda z: F.binary_cross_entropy_with_logits(z, smooth, **options), logits)
    )
    assert torch.autograd.gradgradcheck(entropy, logits.requires_grad_())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_labels_that_are_ignored(reduction):
    """The loss is the sum of the hard ones by their weights, and "mean" divides by the weights that count."""
    plan = fm.MixUp(per="sample").sample(B, SIZE, seed=0, other_size=N)
    y, y2 = torch.tensor([0, -100, 2, -100]), torch.tensor([-100, 1, 2, 3, -100, 0, -100])
    logits, w = torch.randn(B, K, dtype=torch.float64), plan.weight
    of = torch.stack((y, y2[plan.partner]), 1)
    share = torch.where(of == -100, 0.0, torch.stack((w, 1 - w), 1))
    rows = sum(share[:, t] * F.cross_entropy(logits, of[:, t], reduction="none") for t in range(2))
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / share.sum()}[reduction]
    found = fm.mix_cross_entropy(logits, y, plan, other=y2, reduction=reduction)
    torch.testing.assert_close(found, expected)
    each = F.binary_cross_entropy_with_logits
    rows = sum(
        share[:, t] * each(logits, F.one_hot(of[:, t].clamp_min(0), K).double(), reduction="none").sum(1)
        for t in range(2)
    )
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / share.sum()}[reduction]
    found = fm.mix_binary_cross_entropy(
        logits, y, plan, other=y2, reduction=reduction, ignore_index=-100, sum_classes=True
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("targets", ["dense", "sparse"])
def test_criteria(targets):
    plan = fm.MixUp(per="sample").sample(B, SIZE, seed=0, other_size=N)
    (_, y), (_, y2) = batch(B), batch(N, seed=1)
    handle = fm.attach(torch.nn.Identity(), fm.MixUp(per="sample", num_classes=K))
    logits = torch.randn(B, K, dtype=torch.float64)
    expected = F.cross_entropy(logits, targets_of(y, y2, plan))
    for criterion in (torch.nn.CrossEntropyLoss(), F.cross_entropy):
        found = handle.wrap(criterion, targets=targets)(logits, y, plan=plan, other=y2)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_compiled():
    torch._dynamo.reset()
    mix = fm.CutMix(num_classes=K, per="sample", pairing="random")
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    (x, y), (x2, y2) = batch(B), batch(N, seed=1)
    torch.manual_seed(1)
    found = compiled(x, y, other=(x2, y2))
    torch.manual_seed(1)
    assert all(map(torch.equal, found, mix(x, y, other=(x2, y2))))
