"""The label losses of sums of terms, and of ignored labels, against PyTorch's of each label: every backend that runs
here."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import fusedmix as fm
from callers import CUDA, NO_SHIM, REFERENCE, Recorded
from fusedmix.arguments import Terms
from fusedmix.term_losses import OfTerms
from test_losses import FLOATS, REDUCTIONS, assert_as, labels_for, leaves, logits_for
from test_losses import plan_for as two_labels
from test_ops import HERE
from test_terms import plan_with


@pytest.fixture(params=HERE, ids="-".join)
def backend(request):
    """(name, device)."""
    return request.param


def terms_of(plan):
    if plan.terms is not None:
        return plan.terms
    own = torch.arange(plan.batch_size)
    return Terms(torch.stack((own, plan.partner), 1), torch.stack((plan.weight, 1 - plan.weight), 1))


def by_labels(of, z, labels, plan, reduction, ignored=-100, per_class=1):
    """Σ_t w_t·of(z, y_t) in float64, a label that is ignored being left out; the mean is over the labels that are not,
    and over so many classes of each."""
    partner, weight = terms_of(plan)
    counts = labels != ignored if labels.ndim == 1 else torch.ones(len(labels), dtype=torch.bool)
    rows = torch.zeros((), dtype=torch.float64)
    for p, w in zip(partner.unbind(1), weight.unbind(1), strict=True):
        each = of(z, torch.where(counts, labels, 0)[p] if labels.ndim == 1 else labels[p])
        share = torch.where(counts[p], w, 0.0).reshape(-1, *[1] * (each.ndim - 1))
        rows = rows + torch.where(share == 0, 0.0, share * each)
    return rows if reduction == "none" else rows.sum() / (counts.sum() * per_class if reduction == "mean" else 1)


def cross_entropy(**options):
    return lambda z, y: F.cross_entropy(z, y, reduction="none", **options)


def binary(smoothing=0.0, sum_classes=False, **weights):
    def loss(z, y):
        y = F.one_hot(y, z.shape[1]).double() if y.ndim == 1 else y.double()
        y = y * (1 - smoothing) + smoothing / z.shape[1]
        each = F.binary_cross_entropy_with_logits(z, y, reduction="none", **weights)
        return each.sum(1) if sum_classes else each

    return loss


CASES = (  # batch, smoothing, weights of classes, reduction, terms
    (1, 0.0, False, "mean", 1),
    (6, 0.1, True, "none", 4),
    (5, 1.0, False, "sum", 8),
    (4, 0.0, True, "mean", 3),
)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("k", [1, 3, 257, 4099])
def test_cross_entropy(backend, dtype, k):
    name, device = backend
    if name == "triton" and device == "cpu" and (k != 257 or dtype != torch.float32):
        pytest.skip("interpreted, one size will do")
    for b, smoothing, weighted, reduction, terms in CASES:
        plan, labels = plan_with(b, terms, k), labels_for(b, k)
        weight = torch.rand(k) if weighted else None
        logits, exact = leaves(logits_for(b, k, dtype, device=device))
        loss = fm.mix_cross_entropy(
            logits, labels.to(device), plan, label_smoothing=smoothing, weight=weight, reduction=reduction, backend=name
        )
        each = cross_entropy(label_smoothing=smoothing, weight=None if weight is None else weight.double())
        assert_as(loss, logits, by_labels(each, exact, labels, plan, reduction), exact, terms=2)


@pytest.mark.parametrize("ignored", [-100, 2, 0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy_of_ignored_labels(backend, reduction, ignored):
    name, device = backend
    labels = torch.tensor([0, 1, ignored, 3, ignored, 5, 6, ignored])
    for smoothing, weight in itertools.product((0.0, 0.2), (None, torch.rand(7))):
        plan = plan_with(8, 3, seed=1)
        plan.terms.partner[:2] = 4  # Nothing but ignored labels; of those not even a NaN counts.
        z = logits_for(8, 7, device=device)
        z[0, 3] = torch.nan
        logits, exact = leaves(z)
        options = {"label_smoothing": smoothing, "ignore_index": ignored}
        loss = fm.mix_cross_entropy(
            logits, labels.to(device), plan, weight=weight, reduction=reduction, backend=name, **options
        )
        each = cross_entropy(label_smoothing=smoothing, weight=None if weight is None else weight.double())
        expected = by_labels(each, exact[1:], labels, _rows(plan, slice(1, None)), "none", ignored)
        expected = torch.cat([expected.new_zeros(1), expected])
        counted = (labels != ignored).sum()
        expected = expected if reduction == "none" else expected.sum() / (counted if reduction == "mean" else 1)
        assert_as(loss, logits, expected, exact)


def _rows(plan, rows):
    """Those of its terms."""
    return replace(plan, terms=Terms(*(t[rows] for t in plan.terms)))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("k", [1, 3, 257, 4099])
def test_binary(backend, dtype, k):
    name, device = backend
    if name == "triton" and device == "cpu" and (k != 257 or dtype != torch.float32):
        pytest.skip("interpreted, one size will do")
    for (b, smoothing, weighted, reduction, terms), sum_classes, soft in zip(
        CASES, (False, True, False, True), (False, False, True, True), strict=True
    ):
        plan = plan_with(b, terms, k)
        labels = (torch.rand(b, k) > 0.5).float() if soft else labels_for(b, k)
        weights = {"weight": torch.rand(k), "pos_weight": 3 * torch.rand(k)} if weighted else {}
        logits, exact = leaves(logits_for(b, k, dtype, device=device))
        loss = fm.mix_binary_cross_entropy(
            logits, labels.to(device), plan, label_smoothing=smoothing, sum_classes=sum_classes, reduction=reduction,
            backend=name, **weights,
        )  # fmt: skip
        each = binary(smoothing, sum_classes, **{key: w.double() for key, w in weights.items()})
        expected = by_labels(each, exact, labels, plan, reduction, per_class=1 if sum_classes else k)
        assert_as(loss, logits, expected, exact)


@pytest.mark.parametrize("ignored", [-100, 2, 0])
@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("per", ["batch", "sample", "terms"])
def test_binary_of_ignored_labels(backend, per, reduction, sum_classes, ignored):
    name, device = backend
    labels = torch.tensor([0, 1, ignored, 3, ignored, 5, 6, ignored])
    plan = plan_with(8, 3, seed=1) if per == "terms" else two_labels(8, per=per)
    for smoothing, weight in ((0.0, None), (0.2, torch.rand(7))):
        logits, exact = leaves(logits_for(8, 7, device=device))
        loss = fm.mix_binary_cross_entropy(
            logits, labels.to(device), plan, label_smoothing=smoothing, weight=weight, reduction=reduction,
            sum_classes=sum_classes, ignore_index=ignored, backend=name,
        )  # fmt: skip
        each = binary(smoothing, sum_classes, weight=None if weight is None else weight.double())
        expected = by_labels(each, exact, labels, plan, reduction, ignored, 1 if sum_classes else 7)
        assert_as(loss, logits, expected, exact)


def test_nothing_ignored_is_the_loss_without(backend):
    """A class to be ignored that no label has."""
    name, device = backend
    plan, labels = two_labels(6), labels_for(6, 9, device)
    for options in ({}, {"target_threshold": 0.4, "label_smoothing": 0.1}, {"sum_classes": True, "reduction": "none"}):
        results = []
        for ignored in (None, -100):
            z = logits_for(6, 9, device=device).requires_grad_()
            loss = fm.mix_binary_cross_entropy(z, labels, plan, ignore_index=ignored, backend=name, **options)
            results.append((loss, *torch.autograd.grad(loss.sum(), z)))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [0.01, 0.2, 0.5])
def test_binary_above_a_threshold(backend, threshold, smoothing, soft):
    """m·BCE of the classes of which the mean of the labels is above it."""
    name, device = backend
    plan, k = plan_with(8, 4, seed=2), 6
    labels = torch.rand(8, k) if soft else labels_for(8, k)
    mass = plan.terms.weight.sum(1, keepdim=True)
    mixed = fm.mix_labels(labels, plan, num_classes=k, label_smoothing=smoothing).double() / mass
    for sum_classes, reduction in itertools.product((False, True), REDUCTIONS):
        logits, exact = leaves(logits_for(8, k, device=device))
        loss = fm.mix_binary_cross_entropy(
            logits, labels.to(device), plan, label_smoothing=smoothing, target_threshold=threshold,
            sum_classes=sum_classes, reduction=reduction, backend=name,
        )  # fmt: skip
        hot = (mixed > threshold).double()
        expected = mass * F.binary_cross_entropy_with_logits(exact, hot, reduction="none")
        expected = expected.sum(1) if sum_classes else expected
        expected = expected if reduction == "none" else expected.mean() if reduction == "mean" else expected.sum()
        assert_as(loss, logits, expected, exact)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_infinite_logits(backend, smoothing):
    """Row by row as PyTorch has them of each label; of the binary loss the limit."""
    name, device = backend
    inf = torch.inf
    rows = [[0.0, -inf, 1.0, 2.0], [-inf, -inf, -inf, 1.0], [1.0, 2.0, -inf, -inf], [-inf] * 4, [9e4, 8.9e4, -9e4, 0.0]]
    z, labels = torch.tensor(rows, dtype=torch.float64), torch.tensor([1, 3, 3, 0, 2])
    plan = plan_with(5, 3, seed=3)
    several, weight = torch.tensor([[0, 1, 4]] * 5), plan.terms.weight
    without = torch.cat((torch.zeros_like(weight[:, :1]), weight[:, 1:]), 1)  # The first may be anything then.
    cases = ((torch.full((5, 3), 1), weight), (plan.terms.partner, weight), (several, weight), (several, without))
    for terms in itertools.starmap(Terms, cases):
        of = replace(plan, terms=terms)
        logits, exact = leaves(z.to(device, torch.float32))
        options = {"label_smoothing": smoothing, "reduction": "none", "backend": name}
        loss = fm.mix_cross_entropy(logits, labels.to(device), of, **options)
        expected = by_labels(cross_entropy(label_smoothing=smoothing), exact, labels, of, "none")
        torch.testing.assert_close(loss.cpu().double(), expected, equal_nan=True, rtol=1e-6, atol=1e-6)
        (got,), (want,) = (torch.autograd.grad(a.sum(), b) for a, b in ((loss, logits), (expected, exact)))
        torch.testing.assert_close(got.cpu().double(), want, equal_nan=True, rtol=1e-6, atol=1e-6)
        loss = fm.mix_binary_cross_entropy(logits, labels.to(device), of, sum_classes=True, **options)
        far = by_labels(binary(smoothing, True), z.clamp(-1e30, 1e30), labels, of, "none")
        expected = torch.where(far > 1e20, inf, far)
        torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-6, atol=1e-6)
        assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()
    up = torch.tensor([[inf, 0.0, -1.0, 0.5]] * 5, device=device)
    loss = fm.mix_binary_cross_entropy(up, labels.to(device), plan, sum_classes=True, reduction="none", backend=name)
    assert not loss.isnan().any()


def losses_of(name, device, plan, reductions):
    labels = torch.tensor([0, 2, 1, -100, 1], device=device)
    weights = {"weight": torch.tensor([0.5, 2.0, 0.0]), "pos_weight": torch.tensor([1.0, 0.25, 3.0])}
    soft = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).to(device)
    for reduction in reductions:
        options = {"reduction": reduction, "backend": name, "label_smoothing": 0.1, "weight": weights["weight"]}
        yield lambda z, o=options: fm.mix_cross_entropy(z, labels, plan, **o)
        options = {**options, "sum_classes": True, "pos_weight": weights["pos_weight"], "ignore_index": -100}
        yield lambda z, o=options: fm.mix_binary_cross_entropy(z, labels, plan, **o)
        yield lambda z, o=options: fm.mix_binary_cross_entropy(z, soft, plan, **o)


def test_derivatives(backend):
    name, device = backend
    logits = logits_for(5, 3, torch.float64, device=device, scale=1.0).requires_grad_()
    fast = name == "triton"
    for loss in losses_of(name, device, plan_with(5, 4), REDUCTIONS[:1] if fast else REDUCTIONS):
        assert torch.autograd.gradcheck(loss, logits, fast_mode=True, check_forward_ad=not fast)
        assert torch.autograd.gradgradcheck(loss, logits, fast_mode=True)


def test_of_learned_labels():
    plan, logits = plan_with(4, 3), torch.randn(4, 6, dtype=torch.float64)
    soft = torch.rand(4, 6, dtype=torch.float64, requires_grad=True)
    for options in ({}, {"sum_classes": True}, {"reduction": "sum"}):
        assert torch.autograd.gradcheck(lambda y, o=options: fm.mix_binary_cross_entropy(logits, y, plan, **o), soft)


class Sizes(Recorded):
    """What is asked for, with the number of elements that come out."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple) else (out,):
            self.seen.append((func.name(), x.numel() if isinstance(x, torch.Tensor) else 0))
        return out


@pytest.mark.parametrize("loss", [fm.mix_cross_entropy, fm.mix_binary_cross_entropy])
def test_one_pass_forwards_and_one_backwards(backend, loss):
    """Of the size of the logits there is nothing but their gradient: an operator writes it, and T numbers a row."""
    name, device = backend
    b, k = 4, 5000
    plan, labels, z = plan_with(b, 3), labels_for(b, k, device), logits_for(b, k, device=device).requires_grad_()
    with Sizes() as sizes:
        loss(z, labels, plan, label_smoothing=0.1, backend=name).backward()
    large = [op for op, elements in sizes.seen if elements >= b * k and op != "aten::detach"]
    operator = "cross_entropy" if loss is fm.mix_cross_entropy else "binary_cross_entropy"
    assert large == [f"fusedmix_{name}::{operator}_backward", "aten::scatter_.src"]
    assert sum(op == f"fusedmix_{name}::{operator}" for op, elements in sizes.seen if elements == b) == 1


def test_compiled():
    plan, labels = plan_with(6, 3), torch.tensor([0, 1, 2, 3, 2, 5])

    def loss(z):
        a = fm.mix_cross_entropy(z, labels, plan, label_smoothing=0.1, ignore_index=2)
        a = a + (z * fm.mix_labels(labels, plan, num_classes=7)).sum() + fm.mix_accuracy(z, labels, plan)
        return a + fm.mix_binary_cross_entropy(z, labels, plan, ignore_index=2, sum_classes=True)

    torch._dynamo.reset()
    z = torch.randn(6, 7, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(z)
    torch.testing.assert_close(compiled, loss(z))
    torch.testing.assert_close(torch.autograd.grad(compiled, z), torch.autograd.grad(loss(z), z))


@pytest.mark.skipif(NO_SHIM is not None, reason=str(NO_SHIM))
@pytest.mark.thorough
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("backend", [CUDA])
def test_kernels_of_two_labels_asked_for_one(backend, smoothing):
    """The CUDA kernels take the statistics that they are told."""
    from shim_backend import Shim

    plan, labels, k = plan_with(7, 3, seed=5), labels_for(7, 33), 33
    labels[3] = -100
    weight, grad = torch.rand(k), torch.linspace(-1, 2, 7)
    results = []
    for operators in (REFERENCE, Shim()):
        of = OfTerms(operators)
        row = (logits_for(7, k), labels, *plan.terms, int(plan.pairing), int(plan.per), weight)
        losses, statistics, scale = of.cross_entropy(*row, smoothing, -100, 0)
        slope = of.cross_entropy_backward(grad, *row, statistics, scale, smoothing, -100)
        row = (row[0], labels.clamp(0), *row[2:], 3 * weight, smoothing, None, 0)
        results.append((losses, slope, of.binary_cross_entropy(*row), of.binary_cross_entropy_backward(grad, *row)))
    torch.testing.assert_close(*results)
