"""Labels that are sums of more terms than two, of weights that need not sum to 1: against the sums themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fusedmix as fm
from conftest import INTEGERS
from fusedmix.arguments import Terms

B, K, T = 12, 7, 4
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def plan_with(b=B, terms=T, seed=0):
    """Partners that repeat, in a row too; weights of any sum, 0 among them."""
    g = torch.Generator().manual_seed(seed)
    partner, weight = torch.randint(max(b, 1), (b, terms), generator=g), torch.rand(b, terms, generator=g).double()
    weight[::4, -1] = 0
    if terms > 2:
        partner[1::3, 1] = partner[1::3, 0]
    return replace(fm.MixUp(per="sample").sample(b, (4, 4), seed=seed), terms=Terms(partner, weight))


def summed(y, plan):
    """Σ_t w_t·y[partner_t] in float64."""
    return torch.einsum("bt,bt...->b...", plan.terms.weight, y.double()[plan.terms.partner])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_classes(dtype, smoothing):
    plan, labels = plan_with(), torch.randint(K, (B,))
    mixed = fm.mix_labels(labels.to(dtype), plan, num_classes=K, label_smoothing=smoothing)
    assert mixed.dtype == torch.float32
    expected = summed(F.one_hot(labels, K) * (1 - smoothing) + smoothing / K, plan)
    torch.testing.assert_close(mixed.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mixed.sum(1).double(), plan.terms.weight.sum(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.bool, torch.uint8], ids=str)
def test_soft_labels_and_numbers(dtype, smoothing):
    plan = plan_with()
    y = torch.rand(B, K).to(dtype) if dtype.is_floating_point else (torch.rand(B, K) > 0.5).to(dtype)
    mixed = fm.mix_labels(y, plan, label_smoothing=smoothing)
    assert mixed.dtype == (dtype if dtype.is_floating_point else torch.float32)
    expected = summed(y.double() * (1 - smoothing) + smoothing / K, plan)
    torch.testing.assert_close(mixed, expected.to(mixed.dtype))
    if dtype.is_floating_point:
        for shape in ((B,), (B, 2, 3)):
            y = torch.randn(shape).to(dtype)
            mixed = fm.mix_targets(y, plan)
            assert mixed.dtype == dtype
            torch.testing.assert_close(mixed, summed(y, plan).to(dtype))


def test_terms_of_no_weight_are_left_out():
    plan = plan_with()
    plan = replace(
        plan, terms=Terms(plan.terms.partner, torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).repeat(B, 1))
    )
    plan.terms.partner[:, 0], plan.terms.partner[:, 1:] = torch.arange(B) // 2, B - 1
    y = torch.randn(B, 3)
    y[-1] = torch.nan
    assert torch.equal(fm.mix_targets(y, plan), y[torch.arange(B) // 2])
    assert torch.equal(fm.mix_labels(y, plan), y[torch.arange(B) // 2])


def test_derivatives():
    plan = plan_with()
    y = torch.rand(B, 3, dtype=torch.float64, requires_grad=True)
    for mixed in (fm.mix_labels, fm.mix_targets):
        assert torch.autograd.gradcheck(lambda y, f=mixed: f(y, plan), y, check_forward_ad=True)
    weight, labels = plan.terms.weight.clone().requires_grad_(), torch.randint(K, (B,))
    learned = replace(plan, terms=Terms(plan.terms.partner, weight))
    (got,) = torch.autograd.grad(fm.mix_labels(labels, learned, num_classes=K)[:, 2].sum(), weight)
    assert torch.equal(got, (labels == 2).double()[plan.terms.partner])


@pytest.mark.parametrize("topk", [1, 3])
@pytest.mark.parametrize("ignored", [-100, 2])
def test_accuracy(topk, ignored):
    plan, logits, labels = plan_with(), torch.randn(B, K), torch.randint(K, (B,))
    labels[::3] = ignored
    best = logits.topk(topk).indices
    hit = total = 0.0
    for i in range(B):
        for j, w in zip(plan.terms.partner[i].tolist(), plan.terms.weight[i].tolist(), strict=True):
            if labels[j] != ignored:
                total += w
                hit += w * (labels[j] in best[i])
    found = fm.mix_accuracy(logits, labels, plan, topk=topk, ignore_index=ignored)
    assert found.item() == pytest.approx(hit / total, rel=1e-5)
    soft = torch.rand(B, K)
    expected = summed(soft, plan).gather(1, best).sum() / summed(soft, plan).sum()
    assert fm.mix_accuracy(logits, soft, plan, topk=topk).item() == pytest.approx(expected.item(), rel=1e-5)


CRITERIA = {
    "cross entropy": (nn.CrossEntropyLoss, False),
    "binary cross entropy": (nn.BCEWithLogitsLoss, True),
    "mean squared error": (nn.MSELoss, True),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", CRITERIA)
def test_criteria(name, reduction):
    """By hard labels, sample by sample; and by dense ones where the criterion is linear in them."""
    make, soft = CRITERIA[name]
    plan, out = plan_with(), torch.randn(B, K, dtype=torch.float64)
    y = torch.rand(B, K, dtype=torch.float64) if soft else torch.randint(K, (B,))
    handle = fm.attach(nn.Identity(), fm.MixUp(num_classes=K))
    each = [make(reduction="none")(out, y[p]) for p in plan.terms.partner.unbind(1)]
    rows = sum(w.reshape(-1, *[1] * (a.ndim - 1)) * a for w, a in zip(plan.terms.weight.unbind(1), each, strict=True))
    expected = rows if reduction == "none" else rows.mean() if reduction == "mean" else rows.sum()
    got = handle.wrap(make(reduction=reduction), targets="sparse")(out, y, plan=plan)
    torch.testing.assert_close(got, expected)
    if not soft:
        dense = handle.wrap(make(reduction=reduction), targets="dense")(out, y, plan=plan)
        torch.testing.assert_close(dense, expected, rtol=1e-6, atol=1e-6)


def test_criteria_that_ignore_a_class():
    """A sample counts as one, whatever its weights sum to, as far as its labels count."""
    plan, out, y = plan_with(), torch.randn(B, K, dtype=torch.float64), torch.randint(K, (B,))
    y[::3] = 5
    partner, weight = plan.terms
    rows = sum(
        weight[:, t] * F.cross_entropy(out, y[partner[:, t]], reduction="none", ignore_index=5) for t in range(T)
    )
    count = ((weight / weight.sum(1, keepdim=True)) * (y != 5)[partner]).sum()
    criterion = nn.CrossEntropyLoss(ignore_index=5)
    got = fm.attach(nn.Identity(), fm.MixUp()).wrap(criterion, targets="sparse")(out, y, plan=plan)
    torch.testing.assert_close(got, rows.sum() / count)


def test_empty_batches():
    plan, labels = plan_with(0), torch.zeros(0, dtype=torch.int64)
    assert fm.mix_labels(labels, plan, num_classes=K).shape == (0, K)
    assert fm.mix_targets(torch.rand(0, 3), plan).shape == (0, 3)
    assert fm.mix_accuracy(torch.rand(0, K), labels, plan).isnan()
