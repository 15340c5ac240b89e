"""attach: the labels are mixed with what the model computes with, by the criterion that a handle has wrapped."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fusedmix as fm
from attaching import B, K, Net, Y, images

CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5])
CRITERIA = {
    "cross entropy": nn.CrossEntropyLoss(),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.2),
    "weighted": nn.CrossEntropyLoss(weight=CLASS_WEIGHTS),
    "ignoring": nn.CrossEntropyLoss(ignore_index=4),
    "nll": nn.NLLLoss(weight=CLASS_WEIGHTS, ignore_index=0),
    "margin": nn.MultiMarginLoss(),
    "function": F.cross_entropy,
    "mse": nn.MSELoss(),
    "l1": nn.L1Loss(),
    "huber": nn.HuberLoss(),
    "bce": nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHTS),
    "mse function": F.mse_loss,
}


def outputs_and_targets(name):
    generator = torch.Generator().manual_seed(3)
    out = torch.randn(B, K, generator=generator, dtype=torch.float64)
    if name in ("mse", "l1", "huber", "bce", "mse function"):
        return out, torch.rand(B, K, generator=generator, dtype=torch.float64)
    return out, Y


def double(criterion):
    return copy.deepcopy(criterion).double() if isinstance(criterion, nn.Module) else criterion


@pytest.mark.parametrize("name", CRITERIA)
def test_the_loss_of_two_terms(name):
    """Against the formula as every training script has it."""
    criterion = double(CRITERIA[name])
    out, y = outputs_and_targets(name)
    out.requires_grad_()
    model = nn.Identity()
    handle = fm.attach(model, fm.MixUp(pairing="random"))
    wrapped = handle.wrap(criterion, targets="sparse")
    model(images())
    lam, index = float(handle.plan.lam[0]), handle.plan.partner
    loss = wrapped(out, y)
    expected = lam * criterion(out, y) + (1 - lam) * criterion(out, y[index])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(t, out)[0] for t in (loss, expected)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CRITERIA)
def test_two_terms_with_a_weight_for_each_sample(name):
    """λ in eighths: the mean of the criterion over a batch in which (sample, own label) stands 8λ times and (sample,
    partner's label) 8-8λ times, which is what the weights mean, whatever a criterion divides by."""
    criterion = double(CRITERIA[name])
    out, y = outputs_and_targets(name)
    model = nn.Identity()
    mix = fm.MixUp(pairing="random", per="sample")
    wrapped = fm.attach(model, mix).wrap(criterion, targets="sparse")
    eighths = torch.tensor([8, 1, 5, 0, 3, 4])
    plan = mix.sample(B, (1,), lam=eighths / 8.0)
    rows = torch.cat((torch.arange(B).repeat_interleave(eighths), torch.arange(B).repeat_interleave(8 - eighths)))
    labels = torch.cat((y.repeat_interleave(eighths, 0), y[plan.partner].repeat_interleave(8 - eighths, 0)))
    torch.testing.assert_close(wrapped(out, y, plan=plan), criterion(out[rows], labels), rtol=1e-12, atol=1e-12)
    if isinstance(criterion, nn.Module):
        assert criterion.reduction == "mean"


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("kind", ["module", "function"])
def test_reductions(reduction, per, kind):
    out, y = outputs_and_targets("mse")
    model, mix = nn.Identity(), fm.MixUp(per=per)
    handle = fm.attach(model, mix)
    model(images())
    lam, index = handle.plan.lam.double()[:, None], handle.plan.partner
    each = lam * (out - y) ** 2 + (1 - lam) * (out - y[index]) ** 2
    expected = each if reduction == "none" else each.sum()
    if kind == "module":
        loss = handle.wrap(nn.MSELoss(reduction=reduction), targets="sparse")(out, y)
    else:
        loss = handle.wrap(F.mse_loss, targets="sparse")(out, y, reduction=reduction)
    torch.testing.assert_close(loss, expected)


class Waits(nn.CrossEntropyLoss):
    """A criterion in which threads meet, and which counts its calls."""

    def __init__(self, barrier):
        super().__init__()
        self.barrier, self.calls, self.seen = barrier, 0, []
        self.register_buffer("last", torch.zeros(()))

    def forward(self, out, y):
        self.barrier.wait()
        self.calls += 1
        self.last = out.detach().sum()
        loss = super().forward(out, y)
        self.barrier.wait()
        self.seen.append(self.reduction)
        return loss


def test_threads_that_share_a_criterion():
    """Nobody sees the reduction that another thread needs, and what the criterion keeps is kept."""
    criterion = Waits(threading.Barrier(2))
    out = torch.rand(B, K)
    handles = [fm.attach(nn.Identity(), fm.MixUp(per=per, alpha=5.0)) for per in ("sample", "batch")]
    wrapped = [handle.wrap(criterion, targets="sparse") for handle in handles]
    plans = [handle.mix.sample(B, (1,), seed=3) for handle in handles]
    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            got = list(pool.map(lambda w, plan: w(out, Y, plan=plan), wrapped, plans))
        assert criterion.reduction == "mean"
        for loss, plan in zip(got, plans, strict=True):
            torch.testing.assert_close(loss, fm.mix_cross_entropy(out, Y, plan))
    assert sorted(criterion.seen) == ["mean"] * 6 + ["none"] * 6
    assert criterion.calls > 0
    assert torch.equal(criterion.last, out.sum())


def test_batchmean():
    out, y = outputs_and_targets("bce")
    out, y = out.log_softmax(1), y.softmax(1)
    model, mix = nn.Identity(), fm.MixUp(per="sample")
    wrapped = fm.attach(model, mix).wrap(nn.KLDivLoss(reduction="batchmean"), targets="sparse")
    plan = mix.sample(B, (1,), lam=torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0]))
    chosen = torch.where(plan.lam[:, None] == 1.0, y, y[plan.partner])
    torch.testing.assert_close(wrapped(out, y, plan=plan), F.kl_div(out, chosen, reduction="batchmean"))


def test_dense_and_two_terms_agree_where_the_loss_is_linear_in_the_label(method):
    net = Net()
    handle = fm.attach(net, method(per="sample"))
    dense, sparse = (handle.wrap(nn.CrossEntropyLoss(), targets=t) for t in ("dense", "sparse"))
    out = net(images())
    torch.testing.assert_close(dense(out, Y), sparse(out, Y))
    torch.testing.assert_close(dense(out, Y), fm.mix_cross_entropy(out, Y, handle.plan))


@pytest.mark.parametrize("shape", [(B,), (B, 1), (B, 2, 3)])
def test_regression_targets(shape):
    y = torch.randn(shape)
    out = torch.randn(shape)
    model = nn.Identity()
    handle = fm.attach(model, fm.MixUp(per="sample"))
    model(images())
    w = handle.plan.weight.float().reshape(-1, *[1] * (len(shape) - 1))
    mixed = w * y + (1 - w) * y[handle.plan.partner]
    for criterion in (nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), F.smooth_l1_loss):
        torch.testing.assert_close(handle.wrap(criterion)(out, y), criterion(out, mixed))


def test_what_cannot_be_weighed_says_so():
    model, out = nn.Identity(), torch.randn(B, K)
    handle = fm.attach(model, fm.MixUp(per="sample"))
    model(images())
    with pytest.raises(ValueError, match="criterion must have a `reduction`"):
        handle.wrap(lambda out, y: F.cross_entropy(out, y), targets="sparse")(out, Y)

    class Stubborn(nn.Module):
        reduction = "mean"

        def forward(self, out, y):
            return F.cross_entropy(out, y)

    stubborn = Stubborn()
    with pytest.raises(ValueError, match=r"criterion must give \(batch_size, ...\) losses"):
        handle.wrap(stubborn, targets="sparse")(out, Y)
    assert stubborn.reduction == "mean"
    with pytest.raises(ValueError, match="batch size of target"):
        handle.wrap(F.cross_entropy)(out, Y[:3])
    with pytest.raises(ValueError, match="batch size of input"):
        handle.wrap(F.cross_entropy, targets="sparse")(out[:3], Y)
    with pytest.raises(TypeError, match="target must be a tensor"):
        handle.wrap(F.cross_entropy)(out, Y.tolist())
    with pytest.raises(TypeError, match="criterion must return a tensor"):
        handle.wrap(lambda out, y, reduction="mean": {"loss": out}, targets="sparse")(out, Y)
    with pytest.raises(ValueError, match=r"num_classes must be passed"):
        handle.wrap(lambda out, y: out)({"logits": out}, Y)


def test_a_wrapped_module_is_a_module():
    model = nn.Identity()
    criterion = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)
    handle = fm.attach(model, fm.MixUp())
    wrapped = handle.wrap(criterion)
    assert isinstance(wrapped, nn.Module)
    assert set(wrapped.state_dict()) == {"criterion.weight"}
    assert not list(wrapped.parameters())
    wrapped.to(torch.float64)
    assert criterion.weight.dtype == torch.float64
    assert not isinstance(handle.wrap(F.cross_entropy), nn.Module)


def test_several_losses_of_one_forward_pass():
    """Deep supervision: the plan serves every loss until the next forward pass."""
    net = Net()
    handle = fm.attach(net, fm.MixUp())
    criterion = handle.wrap(nn.CrossEntropyLoss())
    out = net(images())
    assert torch.equal(criterion(out, Y), criterion(out, Y))


@pytest.mark.parametrize("kind", ["module", "function"])
@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss, nn.BCEWithLogitsLoss])
@pytest.mark.parametrize("target", [torch.arange(B) % 4, torch.rand(B, 5)], ids=["classes", "soft"])
def test_labels_of_another_width_than_the_outputs(kind, criterion, target):
    net = nn.Identity()
    with fm.attach(net, fm.CutMix(num_classes=5 if target.ndim == 1 else None)) as handle:
        net(images())
        loss = handle.wrap(criterion() if kind == "module" else lambda z, t: criterion()(z, t))
        with pytest.raises(ValueError, match=r"outputs have 7 classes, but the mixed labels 5: num_classes"):
            loss(torch.zeros(B, 7), target)
        assert loss(torch.zeros(B, 5), target).isfinite()


def test_what_a_criterion_does_with_another_width_is_its_own_business():
    """Features of any width and weights of its own, as margin losses have them."""
    weight, net = torch.rand(9, 5), nn.Identity()
    with fm.attach(net, fm.CutMix(num_classes=5)) as handle:
        net(images())
        loss = handle.wrap(lambda features, target: F.cross_entropy(features @ weight, target))
        assert loss(torch.rand(B, 9), torch.arange(B) % 5).isfinite()
        with pytest.raises(ZeroDivisionError):
            handle.wrap(lambda z, t: 1 / 0)(torch.zeros(B, 5), torch.arange(B) % 5)
