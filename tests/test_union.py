"""Union labels: every class of both."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fusedmix as fm

B, K = 6, 5
Y = torch.tensor([0, 1, 2, 3, 1, 0])
TAGS = torch.tensor(
    [[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1]]
)


def union(y, plan):
    """Sample by sample, as sets."""
    rows = []
    for i, (j, w) in enumerate(zip(plan.partner.tolist(), plan.weight.tolist(), strict=True)):
        heard = ([i] if w > 0 else []) + ([j] if w < 1 else [])
        rows.append([max(float(y[s, k]) for s in heard) for k in range(y.shape[1])])
    return torch.tensor(rows)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.bool, torch.float32, torch.float64, torch.bfloat16], ids=str
)
def test_tags(dtype):
    plan = fm.MixPlan.from_parts(lam=torch.tensor([0.3, 1.0, 0.0, 0.999, 0.5, 0.1]))
    found = fm.union_labels(TAGS.to(dtype), plan)
    assert found.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert torch.equal(found.float(), union(TAGS, plan))


def test_classes():
    plan = fm.CutMix(per="sample").sample(B, (8, 8), seed=0)
    found = fm.union_labels(Y, plan, num_classes=K)
    assert torch.equal(found, union(F.one_hot(Y, K), plan))
    assert torch.equal(found, fm.union_labels(F.one_hot(Y, K), plan))


def test_smoothing_comes_before():
    plan = fm.MixUp().sample(B, (8,), lam=0.5)
    found = fm.union_labels(TAGS, plan, label_smoothing=0.1)
    torch.testing.assert_close(found, union(TAGS * 0.9 + 0.1 / K, plan).float())


def test_several_partners_and_none():
    plan = fm.MultiMix(k=3).sample(B, (8,))
    partner = plan.terms.partner
    assert torch.equal(fm.union_labels(TAGS, plan), TAGS[partner].amax(1).float())
    assert torch.equal(fm.union_labels(TAGS, fm.SamplePairing().sample(B, (8,))), TAGS.float())


def test_partners_from_another_batch():
    other = torch.randint(2, (4, K))
    plan = fm.MixUp(pairing="random").sample(B, (8,), lam=0.5, other_size=4)
    assert torch.equal(fm.union_labels(TAGS, plan, other=other), torch.maximum(TAGS, other[plan.partner]).float())


@pytest.mark.parametrize("make", [fm.MixUp, fm.CutMix, fm.FMix, fm.MultiMix, fm.RICAP], ids=lambda m: m.__name__)
@pytest.mark.parametrize("labels", [Y, TAGS], ids=["classes", "tags"])
def test_modules(make, labels):
    mix, x = make(targets="union", num_classes=K), torch.rand(B, 3, 8, 8)
    torch.manual_seed(0)
    out, targets = mix(x, labels)
    torch.manual_seed(0)
    plan = mix.sample(B, (8, 8))
    assert torch.equal(out, fm.mix(x, plan))
    assert torch.equal(targets, fm.union_labels(labels, plan, num_classes=K))
    assert "targets='union'" in repr(mix)


def test_losses():
    """The binary loss whose threshold is 0 has these targets, of labels that are 0 or 1."""
    logits, plan = torch.randn(B, K), fm.MixUp(per="sample").sample(B, (8,), seed=0)
    united = F.binary_cross_entropy_with_logits(logits, fm.union_labels(TAGS, plan))
    torch.testing.assert_close(fm.mix_binary_cross_entropy(logits, TAGS, plan, target_threshold=0.0), united)


def test_attached():
    net = nn.Linear(8, K)
    handle = fm.attach(net, fm.MixUp(num_classes=K))
    out = net(torch.randn(B, 8))
    loss = handle.wrap(nn.BCEWithLogitsLoss(), targets="union")(out, TAGS)
    expected = F.binary_cross_entropy_with_logits(out, fm.union_labels(TAGS, handle.plan))
    torch.testing.assert_close(loss, expected)
    classes = handle.wrap(F.binary_cross_entropy_with_logits, targets="union")(out, Y)
    expected = F.binary_cross_entropy_with_logits(out, fm.union_labels(Y, handle.plan, num_classes=K))
    torch.testing.assert_close(classes, expected)
