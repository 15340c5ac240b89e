"""mix_cross_entropy against F.cross_entropy on dense mixed targets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fusedmix as fm


def plan_for(b, seed=0):
    return fm.GMix(per="sample", pairing="random").sample(b, (16, 16), seed=seed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("b", "k"), [(1, 2), (7, 3), (16, 1000)])
def test_equals_the_dense_formula(dtype, smoothing, reduction, b, k):
    plan = plan_for(b)
    logits = (4 * torch.randn(b, k, dtype=torch.float64)).to(dtype).requires_grad_()
    labels = torch.randint(k, (b,))
    loss = fm.mix_cross_entropy(logits, labels, plan, label_smoothing=smoothing, reduction=reduction)
    exact = logits.detach().double().requires_grad_()
    y = F.one_hot(labels, k).double() * (1 - smoothing) + smoothing / k
    dense = plan.weight[:, None] * y + (1 - plan.weight)[:, None] * y[plan.partner]
    expected = F.cross_entropy(exact, dense, reduction=reduction)
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    assert loss.dtype == computed
    tolerance = 32 * torch.finfo(computed).eps
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    (got,) = torch.autograd.grad(loss.sum(), logits)
    (want,) = torch.autograd.grad(expected.sum(), exact)
    assert got.dtype == dtype
    tolerance = max(tolerance, torch.finfo(dtype).eps)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_integer_labels_of_any_width(dtype):
    plan, logits, labels = plan_for(6), torch.randn(6, 9), torch.randint(9, (6,))
    assert torch.equal(fm.mix_cross_entropy(logits, labels.to(dtype), plan), fm.mix_cross_entropy(logits, labels, plan))


def test_soft_labels():
    plan, logits, soft = plan_for(6), torch.randn(6, 9), torch.rand(6, 9).softmax(1)
    for smoothing in (0.0, 0.2):
        dense = fm.mix_labels(soft, plan, label_smoothing=smoothing)
        torch.testing.assert_close(
            fm.mix_cross_entropy(logits, soft, plan, label_smoothing=smoothing), F.cross_entropy(logits, dense)
        )


def test_gradcheck():
    plan, labels = plan_for(4), torch.tensor([0, 2, 1, 1])
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: fm.mix_cross_entropy(z, labels, plan, label_smoothing=0.1), logits)


def test_float32_under_autocast():
    plan, labels, weight = plan_for(4), torch.tensor([0, 2, 1, 1]), torch.randn(3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = torch.randn(4, 5) @ weight.t()
        assert logits.dtype == torch.bfloat16
        assert fm.mix_cross_entropy(logits, labels, plan).dtype == torch.float32


def test_sample_pairing_learns_its_own_label():
    plan = fm.SamplePairing(pairing="flip").sample(4, (8, 8))
    logits, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    torch.testing.assert_close(fm.mix_cross_entropy(logits, labels, plan), F.cross_entropy(logits, labels))
