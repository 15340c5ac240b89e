"""attach: what a model computes with is mixed while it trains, and the labels with it."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections import UserDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision import tv_tensors

import fusedmix as fm
from conftest import option_id

B, K = 6, 5
Y = torch.tensor([0, 1, 2, 3, 4, 4])
NAMES = ["first", "second", "vector"]


class Net(nn.Module):
    """Two hidden states with a spatial size, one without. `mixing`, if given, is how a user would mix by hand: the name
    of the place ("" for the input) and the plan."""

    def __init__(self, seed=0, dtype=None):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 4, 3, stride=2)
        self.vector = nn.LazyLinear(8)
        self.head = nn.Linear(8, K)
        self.seen = []
        self(torch.zeros(1, 3, 12, 10))
        self.to(dtype)

    def forward(self, x, mixing=(None, None)):
        place, plan = mixing

        def by_hand(name, h):
            if name != place:
                return h
            mask = plan.mask() if h.ndim == 4 else plan.lam.reshape(-1, 1)
            mask = mask.to(h.dtype).reshape(len(h), 1, *mask.shape[1:]) if h.ndim == 4 else mask.to(h.dtype)
            return mask * h + (1 - mask) * h[plan.partner]

        self.seen.append(x)
        x = by_hand("", x)
        x = by_hand("first", self.first(x)).tanh()
        x = by_hand("second", self.second(x)).tanh()
        x = by_hand("vector", self.vector(x.flatten(1))).tanh()
        return self.head(x)


def images(dtype=torch.float32):
    return torch.rand(B, 3, 12, 10, generator=torch.Generator().manual_seed(1)).to(dtype)


def state_of(generator):
    return torch.get_rng_state() if generator is None else generator.get_state()


# --- the input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"per": "sample"}, {"per": "pair"}, {"p": 0.5, "label_smoothing": 0.1}])
def test_the_input_is_mixed_as_the_module_mixes_a_batch(method, options):
    net, x = Net(), images()
    mix = method(num_classes=K, **options)
    criterion = nn.CrossEntropyLoss()
    handle = fm.attach(net, mix)
    wrapped = handle.wrap(criterion)
    for seed in range(4):
        torch.manual_seed(seed)
        loss = wrapped(net(x), Y)
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        mixed, targets = mix(x, Y)
        assert torch.equal(torch.get_rng_state(), after)
        assert torch.equal(net.seen[-1], mixed)
        handle.remove()
        assert torch.equal(loss, criterion(net(mixed), targets))
        handle = fm.attach(net, mix)
        wrapped = handle.wrap(criterion)
    assert torch.equal(x, images()), "the input was overwritten"


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_the_input_is_mixed_as_torchvision_mixes(name):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    net, x, seen = Net(), images(), []
    wrapped = fm.attach(net, getattr(fm, name)(num_classes=K)).wrap(lambda _, target: seen.append(target))
    for seed in range(5):
        torch.manual_seed(seed)
        wrapped(net(x), Y)
        torch.manual_seed(seed)
        mixed, targets = getattr(v2, name)(num_classes=K)(x, Y)
        torch.testing.assert_close(net.seen[-1], mixed, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(seen[-1], targets, rtol=0, atol=0)


@pytest.mark.parametrize("inplace", [False, True])
def test_inplace_modules_do_not_overwrite_the_input(inplace):
    net, x = Net(), images()
    fm.attach(net, fm.MixUp(inplace=inplace))
    net(x)
    assert torch.equal(x, images())
    assert not torch.equal(net.seen[-1], x)


@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
def test_labels_tell_what_is_in_the_images(method, per):
    """Sample i is 1 in channel i and 0 elsewhere: the mean of a mixed image's channel is its share of a sample."""
    mix = method(per=per)
    x = torch.eye(B).reshape(B, B, 1, 1).expand(B, B, 9, 7).contiguous()
    model, targets = nn.Identity(), []
    wrapped = fm.attach(model, mix).wrap(lambda _, target: targets.append(target))
    for seed in range(5):
        torch.manual_seed(seed)
        mixed = model(x)
        wrapped(torch.zeros(B, B), torch.arange(B))
        shares = mixed.mean((2, 3))
        if isinstance(mix, fm.SamplePairing):  # by definition the label is that of the first image
            assert torch.equal(targets[-1], torch.eye(B))
            torch.testing.assert_close(shares, (torch.eye(B) + torch.eye(B)[fm.attached(model)[0].plan.partner]) / 2)
        else:
            torch.testing.assert_close(targets[-1], shares, rtol=2e-6, atol=2e-6)
    assert isinstance(mix, fm.SamplePairing) or len({tuple(t.flatten().tolist()) for t in targets}) > 2


class Two(nn.Module):
    def forward(self, ids, a, b=None, *, c=None):
        return ids, a, b, c


def test_several_inputs_are_mixed_by_one_plan():
    model, ids = Two(), torch.arange(B)
    a, b, c = torch.rand(B, 1, 8, 8), torch.rand(B, 2, 8, 8), torch.rand(B, 3, 8, 8)
    with fm.attach(model, fm.CutMix(), inputs=[1, "c"]) as handle:
        out = model(ids, a, b, c=c)
        assert out[0] is ids
        assert out[2] is b
        assert torch.equal(out[1], fm.mix(a, handle.plan))
        assert torch.equal(out[3], fm.mix(c, handle.plan))
    with fm.attach(model, fm.CutMix()) as handle:  # the first floating-point tensor
        out = model(ids, a, b)
        assert torch.equal(out[1], fm.mix(a, handle.plan))
        assert out[2] is b
        out = model(ids=ids, c=c, a=None)
        assert torch.equal(out[3], fm.mix(c, handle.plan))
        nested = model(ids, {"ids": ids, "pixels": [a]})[1]
        assert torch.equal(nested["pixels"][0], fm.mix(a, handle.plan))
    with fm.attach(model, fm.MixUp(), inputs=["a", "b"]) as handle:  # constant masks fit every size
        out = model(ids, a=a, b=torch.rand(B, 4))
        assert handle.plan.batch_size == B
    for inputs, message in (([4], "inputs names 4"), (["pixels"], "inputs names 'pixels'"), ([0], "dtypes")):
        with fm.attach(model, fm.MixUp(), inputs=inputs), pytest.raises(ValueError, match=message):
            model(ids, a)
    with fm.attach(model, fm.MixUp()), pytest.raises(ValueError, match="the model's input must hold"):
        model(ids, None)
    with fm.attach(model, fm.CutMix(), inputs=[1, 2]), pytest.raises(ValueError, match="spatial size"):
        model(ids, a, torch.rand(B, 1, 4, 4))


def test_uint8_and_tv_tensors():
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    model = nn.Identity()
    x = torch.randint(256, (B, 3, 8, 8), dtype=torch.uint8)
    with fm.attach(model, fm.MixUp(), inputs=[0]) as handle:
        assert torch.equal(model(x), fm.mix(x, handle.plan))
    with fm.attach(model, fm.CutMix()) as handle:
        out = model(tv_tensors.Image(images()))
        assert isinstance(out, tv_tensors.Image)
        assert torch.equal(out.as_subclass(torch.Tensor), fm.mix(images(), handle.plan))


@pytest.mark.parametrize("batch_size", [0, 1])
@pytest.mark.parametrize("layers", [None, ["first"], ["vector"]])
def test_small_batches(batch_size, layers):
    net = Net()
    handle = fm.attach(net, fm.MixUp(), layers=layers)
    out = net(images()[:batch_size])
    assert handle.plan.batch_size == batch_size
    loss = handle.wrap(nn.CrossEntropyLoss(reduction="sum"), targets="sparse")(out, Y[:batch_size])
    assert loss.isfinite()


# --- hidden layers --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("place", ["", *NAMES])
def test_gradients_are_those_of_a_model_that_mixes_by_hand(method, place, per, dtype):
    mix = method(per=per, pairing="random")
    if place == "vector" and not mix._constant:
        pytest.skip("only constant masks mix vectors")
    net, plain = Net(dtype=dtype), Net(dtype=dtype)
    x, x_ = images(dtype).requires_grad_(), images(dtype).requires_grad_()
    handle = fm.attach(net, mix, layers=[place])
    torch.manual_seed(7)
    out = net(x)
    loss = handle.wrap(nn.CrossEntropyLoss())(out, Y)
    loss.backward()
    plan = handle.plan
    by_hand = plain(x_, (place, plan))
    y = F.one_hot(Y, K).double()
    soft = plan.weight[:, None] * y + (1 - plan.weight)[:, None] * y[plan.partner]
    expected = -(soft * by_hand.double().log_softmax(1)).sum(1).mean()
    expected.backward()
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(out, by_hand, **tolerance)
    torch.testing.assert_close(loss.double(), expected, **tolerance)
    torch.testing.assert_close(x.grad, x_.grad, **tolerance)
    for got, want in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, **tolerance)


def mixed_places(net, n, **options):
    """Where n forward passes were mixed, by comparing each layer's output before and after the hook of `attach`."""
    places, before = [], {}

    def note(name):
        return lambda module, args, out: before.__setitem__(name, out)

    def compare(name):
        return lambda module, args, out: places.append(name) if not torch.equal(out, before[name]) else None

    x = torch.rand(4, 2)
    for name in "abc":
        getattr(net, name).register_forward_hook(note(name))
    handle = fm.attach(net, fm.MixUp(alpha=100.0, **options), layers=["", "a", "b", "c"])
    for name in "abc":
        getattr(net, name).register_forward_hook(compare(name))
    net.a.register_forward_pre_hook(lambda module, args: None if torch.equal(args[0], x) else places.append(""))
    for _ in range(n):
        count = len(places)
        net(x)
        # what is mixed stays mixed further on: the first place that differs is where it happened
        assert len(places) == count + 1
        assert handle.plan is not None
    return places


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Identity(), nn.Tanh(), nn.Identity()

    def forward(self, x):
        return self.c(self.b(self.a(x)))


@pytest.mark.parametrize("options", [{}, {"sampling": "device"}, {"generator": torch.Generator().manual_seed(1)}])
def test_the_layer_is_drawn_uniformly(options):
    n = 1600
    places = mixed_places(Chain(), n, **options)
    counts = [places.count(name) for name in ("", "a", "b", "c")]
    assert sum(counts) == n
    assert stats.chisquare(counts).pvalue > 1e-3
    pairs = [places[i : i + 2] for i in range(0, n, 2)]  # and one draw says nothing about the next
    table = [[pairs.count([s, t]) for t in ("", "a", "b", "c")] for s in ("", "a", "b", "c")]
    assert stats.chisquare([count for row in table for count in row]).pvalue > 1e-3


def test_layers_by_name_and_by_module():
    net = Net()
    for layers in (["first"], [net.first]):
        with fm.attach(net, fm.CutMix(), layers=layers) as handle:
            net(images())
            assert handle.plan.size == (10, 8)
    for layers in ([""], ["input"], [net], None):
        with fm.attach(net, fm.CutMix(), layers=layers) as handle:
            net(images())
            assert handle.plan.size == (12, 10)


class Shared(nn.Module):
    """A layer that is called three times, and gives a structure."""

    def __init__(self):
        super().__init__()
        self.layer, self.outs = Structured(), []

    def forward(self, x):
        self.outs = []
        for _ in range(3):
            self.outs.append(self.layer(x))
        return self.outs[-1]["states"][0]


class Structured(nn.Module):
    def forward(self, x):
        return {"ids": torch.arange(len(x)), "states": (2 * x, x)}


@pytest.mark.parametrize("calls", ["first", "all"])
def test_a_layer_that_is_called_several_times(calls):
    model, x = Shared(), images()
    with fm.attach(model, fm.CutMix(), layers=["layer"], calls=calls) as handle:
        model(x)
    handle = fm.attach(model, fm.CutMix(), layers=["layer"], calls=calls)
    model(x)
    for i, out in enumerate(model.outs):
        mixed = calls == "all" or i == 0
        assert torch.equal(out["states"][0], fm.mix(2 * x, handle.plan) if mixed else 2 * x)
        assert torch.equal(out["states"][1], x)
        assert torch.equal(out["ids"], torch.arange(B))


def test_a_layer_that_was_not_called():
    class Skips(Chain):
        def forward(self, x):
            return self.a(x)

    model = Skips()
    handle = fm.attach(model, fm.MixUp(), layers=["b"])
    with pytest.warns(UserWarning, match="layer 'b'.* was not called"):
        out = model(torch.rand(B, K))
    assert handle.plan is None
    assert torch.equal(handle.wrap(F.cross_entropy)(out, Y), F.cross_entropy(out, Y))  # nothing was mixed


def test_nested_models():
    """The hooks belong to the model that was attached to: inside another one, and beside handles of its own layers."""
    inner = Net()
    outer = nn.Sequential(inner, nn.Softmax(1))
    handle = fm.attach(inner, fm.MixUp())
    outside = fm.attach(outer, fm.CutMix(), layers=["0.second"])
    outer(images())
    assert torch.equal(inner.seen[-1], fm.mix(images(), handle.plan))
    assert outside.plan.size == (4, 3)
    assert not torch.equal(outside.plan.partner, handle.plan.partner) or outside.plan is not handle.plan
    count = len(inner.seen)
    handle.remove()
    outer(images())
    assert len(inner.seen) == count + 1
    assert torch.equal(inner.seen[-1], images())
    outside.remove()


def test_a_model_of_torchvision():
    models = pytest.importorskip("torchvision.models")
    model = models.resnet18(num_classes=K)
    handle = fm.attach(model, fm.MixUp(alpha=2.0), layers=["", "layer1", "layer2"])
    criterion = handle.wrap(nn.CrossEntropyLoss(label_smoothing=0.1))
    for _ in range(3):
        criterion(model(torch.rand(4, 3, 32, 32)), Y[:4]).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_autocast():
    net = Net()
    handle = fm.attach(net, fm.MixUp(), layers=["second"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(images())
        assert out.dtype == torch.bfloat16
        loss = handle.wrap(nn.CrossEntropyLoss())(out, Y)
        assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


# --- the loss -------------------------------------------------------------------------------------

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


@pytest.mark.usefixtures("_dynamo")
def test_a_compiled_criterion_is_reduced_as_its_own():
    """It passes its attributes on to the criterion in it."""
    handle = fm.attach(nn.Identity(), fm.MixUp(per="sample"))
    plan, out = handle.mix.sample(B, (1,), seed=3), torch.rand(B, K)
    inner = nn.CrossEntropyLoss()
    criterion = torch.compile(inner, backend="eager")
    loss = handle.wrap(criterion, targets="sparse")(out, Y, plan=plan)
    assert inner.reduction == criterion.reduction == "mean"
    torch.testing.assert_close(loss, fm.mix_cross_entropy(out, Y, plan))


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


# --- when it mixes, and when not ------------------------------------------------------------------


@pytest.mark.parametrize("layers", [None, ["first"], ["", "second", "vector"]])
def test_only_training_is_mixed(layers):
    net, plain, x = Net(), Net(), images()
    handle = fm.attach(net, fm.MixUp(), layers=layers)
    criterion = handle.wrap(nn.CrossEntropyLoss())
    net.eval()
    state = torch.get_rng_state()
    out = net(x)
    assert torch.equal(out, plain.eval()(x))
    assert torch.equal(criterion(out, Y), F.cross_entropy(out, Y))
    assert torch.equal(torch.get_rng_state(), state)
    assert handle.plan is None
    net.train()
    out = net(x)
    assert not torch.equal(out, plain(x))
    plan, loss = handle.plan, criterion(out, Y)
    net.eval()  # a validation in between
    assert torch.equal(criterion(net(x), Y), F.cross_entropy(plain(x), Y))
    net.train()
    assert handle.plan is plan
    assert torch.equal(criterion(out, Y), loss)


def test_gradient_accumulation():
    net, plain = Net(dtype=torch.float64), Net(dtype=torch.float64)
    batches = [images(torch.float64), images(torch.float64).flip(2)]
    handle = fm.attach(net, fm.CutMix(), layers=["", "first"])
    criterion = handle.wrap(nn.CrossEntropyLoss())

    def expect(gradients, places):
        plain.zero_grad()
        for x, (place, plan) in zip(batches, places, strict=True):
            F.cross_entropy(plain(x, (place, plan)), fm.mix_labels(Y, plan, num_classes=K).double()).backward()
        for got, parameter in zip(gradients, plain.parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad, rtol=1e-6, atol=1e-8)

    def place_of(plan):
        return {(12, 10): "", (10, 8): "first"}[plan.size]

    # forward, loss, backward for each
    plans = []
    for x in batches:
        criterion(net(x), Y).backward()
        plans.append(handle.plan)
    expect([p.grad for p in net.parameters()], [(place_of(plan), plan) for plan in plans])
    # all forward passes first: the plans are kept and passed
    net.zero_grad()
    outs, plans = [], []
    for x in batches:
        outs.append(net(x))
        plans.append(handle.plan)
    assert plans[0] is not plans[1]
    sum(criterion(out, Y, plan=plan) for out, plan in zip(outs, plans, strict=True)).backward()
    expect([p.grad for p in net.parameters()], [(place_of(plan), plan) for plan in plans])


class Fails(Chain):
    error = None

    def forward(self, x):
        x = self.b(self.a(x))
        if self.error is not None:
            raise self.error
        return self.c(x)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=["Exception", "KeyboardInterrupt"])
@pytest.mark.parametrize("layers", [None, ["a"], ["c"]])
def test_nothing_stale_is_left_by_an_exception(layers, error):
    model, x = Fails(), torch.rand(B, K)
    handle = fm.attach(model, fm.MixUp(), layers=layers)
    criterion = handle.wrap(nn.CrossEntropyLoss())
    with pytest.raises(RuntimeError, match="no forward pass"):
        criterion(x, Y)
    out = model(x)
    assert criterion(out, Y).isfinite()
    model.error = error
    with pytest.raises(type(error)):
        model(x)
    model.error = None
    assert handle.plan is None
    with pytest.raises(RuntimeError, match="no forward pass"):
        criterion(out, Y)
    if isinstance(error, Exception):
        for name in "abc":  # a layer by itself is no forward pass of the model
            layer = getattr(model, name)
            assert torch.equal(layer(x), layer.forward(x))
    model(x)
    assert handle.plan is not None
    assert criterion(out, Y).isfinite()
    with pytest.raises(ValueError, match="must hold a floating-point tensor"):  # raised by a hook of its own
        model(torch.rand(B, K, dtype=torch.complex64))
    with pytest.raises(RuntimeError, match="no forward pass"):
        criterion(out, Y)


def test_resuming_reproduces():
    x = images()

    def train(net, optimizer, criterion, steps):
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = criterion(net(x), Y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    def start(seed):
        net = Net(seed)
        handle = fm.attach(net, fm.RandomMix([fm.MixUp(), fm.CutMix()], per="sample"), layers=["", "first", "second"])
        return net, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), handle.wrap(nn.CrossEntropyLoss())

    net, optimizer, criterion = start(0)
    torch.manual_seed(5)
    train(net, optimizer, criterion, 2)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict())), torch.get_rng_state()
    rest = train(net, optimizer, criterion, 4)
    net, optimizer, criterion = start(1)
    assert set(net.state_dict()) == set(saved[0][0])
    net.load_state_dict(saved[0][0])
    optimizer.load_state_dict(saved[0][1])
    torch.set_rng_state(saved[1])
    assert all(torch.equal(a, b) for a, b in zip(rest, train(net, optimizer, criterion, 4), strict=True))


# --- attaching, removing, copying -----------------------------------------------------------------

HOOKS = [name for name in vars(nn.Module()) if "hook" in name]


def hooks_of(model):
    return [
        {name: dict(getattr(m, name)) if isinstance(getattr(m, name), dict) else getattr(m, name) for name in HOOKS}
        for m in model.modules()
    ]


@pytest.mark.parametrize("layers", [None, ["", "first", "second"]])
def test_removing_restores_the_model(layers):
    net, x = Net(), images()
    net.first.register_forward_hook(lambda m, a, out: out + 1.0)
    net.register_forward_pre_hook(lambda m, a: None)
    assert "_forward_hooks_always_called" in HOOKS
    before, state = hooks_of(net), copy.deepcopy(net.state_dict())
    attributes = [set(vars(m)) for m in net.modules()]
    expected = net(x)
    with fm.attach(net, fm.MixUp(), layers=layers) as handle:
        criterion = handle.wrap(nn.CrossEntropyLoss())
        assert not torch.equal(net(x), expected)
        assert hooks_of(net) != before
        assert fm.attached(net) == [handle]
    assert hooks_of(net) == before
    assert [set(vars(m)) for m in net.modules()] == attributes
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), state.values(), strict=True))
    assert set(net.state_dict()) == set(state)
    random = torch.get_rng_state()
    assert torch.equal(net(x), expected)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(criterion(expected, Y), F.cross_entropy(expected, Y))
    assert fm.attached(net) == []
    handle.remove()
    with fm.attach(net, fm.MixUp()) as again:  # and one may be attached anew
        net(x)
        assert again.plan is not None


def test_reprs():
    """One line that tells what it is."""
    mix = fm.CutMix(per="sample", alpha=0.4)
    handle = fm.attach(Chain(), mix, layers=["a", ""])
    expected = f"MixHandle({mix!r}, mixes the output of layer 'a', the input of Chain)"
    assert repr(handle) == expected
    assert repr(handle.wrap(F.cross_entropy)) == "MixedFunction(cross_entropy, targets='dense')"
    handle.remove()
    assert repr(handle) == f"MixHandle({mix!r}, removed)"
    alpha = fm.schedules.CosineAlpha(mix, end=0.1, epochs=30)
    alpha.step()
    assert repr(alpha).startswith(f"CosineAlpha({mix!r}, ")
    assert "last_epoch=1" in repr(alpha)
    assert "epochs=30" in repr(alpha)
    assert "\n" not in repr(alpha) + repr(fm.schedules.OffAfter(mix, 3))


PLANS = {
    "MixPlan(box, B=3, size 20×30, roll, per sample, lam 0.25 to 0.75, cpu)": (
        lambda: fm.CutMix(per="sample").sample(3, (20, 30), lam=torch.tensor([0.25, 0.75, 0.5]))
    ),
    "MixPlan(constant, B=4, size 7, flip, per pair, lam 0.50, cpu)": (
        lambda: fm.MixUp(per="pair").sample(4, (7,), lam=0.5)
    ),
    "MixPlan(gaussian, B=2, size 8×8×3, random, per batch, lam 0.30, cpu)": (
        lambda: fm.GMix(pairing="random").sample(2, (8, 8, 3), lam=0.3)
    ),
    "MixPlan(B=0, size 4×4, roll, per batch, cpu)": lambda: fm.FMix().sample(0, (4, 4)),
    "MixPlan(B=2, size 4×4, roll, per batch, meta)": lambda: fm.MixUp().sample(2, (4, 4)).to("meta"),
}


def test_the_repr_of_what_is_no_plan_any_more():
    """A plan is a tree, and a tree_map makes of one what it likes: errors and debuggers show that too."""
    plan = fm.CutMix(per="sample").sample(3, (20, 30))
    tree_map = torch.utils._pytree.tree_map
    assert repr(tree_map(lambda t: t[0], plan)) == "MixPlan(partner=(), lam=(), weight=(), masks=(12,))"
    assert repr(tree_map(lambda t: t.ndim, plan)) == "MixPlan(partner=1, lam=1, weight=1, masks=2)"
    assert repr(replace(plan, partner=plan.partner[0])).startswith("MixPlan(partner=(), lam=(3,), ")
    assert repr(replace(plan, masks=plan.masks[:, :0])).endswith("masks=(3, 0))")
    lam = torch.func.vmap(lambda lam: torch.ones(()).new_tensor(len(repr(replace(plan, lam=lam)))))(torch.rand(2, 3))
    assert lam.tolist() == [len("MixPlan(B=3, size 20×30, roll, per sample, cpu)")] * 2


@pytest.mark.parametrize("expected", PLANS)
def test_the_repr_of_a_plan_is_one_line(expected):
    assert repr(PLANS[expected]()) == expected


# --- twice ----------------------------------------------------------------------------------------


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(K, K), nn.Linear(K, K)
        self.seen = []

    def forward(self, x, y=None):
        self.seen.append((x, y))
        return self.b(self.a(x))


def wrapped_in(name, model):
    # Not run: a DistributedDataParallel and a compiled model hold the model under these names, and nothing else.
    outer = nn.Module()
    outer.add_module(name, model)
    outer.forward = lambda *args, **kwargs: model(*args, **kwargs)
    return outer


MIXED_TWICE = {
    "the input": (Pair(), {}, {}),
    "the input, a layer among others": (Pair(), {}, {"layers": ["a", "input"]}),
    "a layer": (Pair(), {"layers": ["a"]}, {"layers": ["b", "a"]}),
    "one argument of several": (Pair(), {"inputs": [0, 1]}, {"inputs": [1]}),
    "a position and its name": (Pair(), {"inputs": [1]}, {"inputs": ["y"]}),
    "the first and a named one": (Pair(), {}, {"inputs": ["x"]}),
}


@pytest.mark.parametrize("case", MIXED_TWICE)
@pytest.mark.parametrize("place", ["same", "module", "_orig_mod", "inside module", "inside _orig_mod"])
def test_nothing_is_mixed_twice(case, place):
    """A notebook cell that is run again would mix images twice and labels once."""
    model, first, second = MIXED_TWICE[case]
    name = place.split()[-1]
    outer = model if place == "same" else wrapped_in(name, model)
    one, other = (outer, model) if place.startswith("inside") else (model, outer)
    with fm.attach(one, fm.MixUp(), **first) as handle:
        before = hooks_of(outer)
        with pytest.raises(ValueError, match=r"is mixed by another handle.*labels once.*replace=True") as raised:
            fm.attach(other, fm.CutMix(), **second)
        assert hooks_of(outer) == before
        assert "fusedmix.attached(model)[0]" in str(raised.value)
        assert fm.attached(one) == fm.attached(other) == [handle]
    with fm.attach(other, fm.CutMix(), **second):  # the first one is removed
        pass
    with pytest.raises(TypeError, match="replace must be a bool"):
        fm.attach(model, fm.MixUp(), replace=1)


def test_what_several_handles_may_mix():
    """Other inputs, other layers, other models that share a layer."""
    model, x = Pair(), torch.rand(B, K)
    inputs = [fm.attach(model, fm.MixUp(), inputs=inputs) for inputs in ([0], ["y"])]
    layers = [fm.attach(model, fm.MixUp(), layers=[layer]) for layer in ("a", "b")]
    sharing = nn.Sequential(model.a)
    shared = fm.attach(sharing, fm.MixUp(), layers=["0"])
    model(x, y=x)
    assert all(handle.plan is not None for handle in inputs + layers)
    assert shared.plan is None
    for seen, handle in zip(model.seen[-1], inputs, strict=True):
        assert torch.equal(seen, fm.mix(x, handle.plan))
    assert fm.attached(model) == inputs + layers
    with pytest.raises(ValueError, match="replace"):  # now in one forward pass
        fm.attach(nn.Sequential(model, sharing), fm.MixUp(), layers=[model.a])


def test_replace():
    model, x = Pair(), torch.rand(B, K)
    old = fm.attach(model, fm.MixUp())
    wrapped = old.wrap(nn.CrossEntropyLoss())
    other = fm.attach(model, fm.MixUp(), layers=["b"])
    new = fm.attach(model, fm.MixUp(), replace=True)
    assert fm.attached(model) == [other, new]
    out = model(x)
    assert torch.equal(model.seen[-1][0], fm.mix(x, new.plan))
    # Labels must not stay unmixed in silence.
    with pytest.raises(RuntimeError, match=r"replace=True\) has replaced it"):
        wrapped(out, Y)
    model.eval()
    assert torch.equal(wrapped(out, Y), F.cross_entropy(out, Y))
    assert fm.attached(fm.attach(Pair(), fm.MixUp(), replace=True).model)  # nothing to replace


class Calls(Chain):
    """A model that calls itself: on a part, as its own teacher in evaluation mode, until something raises."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, then=None):
        self.seen.append(x)
        if then == "evaluation":
            self.eval()
            self(x)
            self.train()
        elif then == "an error":
            with suppress(ZeroDivisionError):
                self(x, "raise")
        elif then == "raise":
            raise ZeroDivisionError
        elif then is not None:
            self(x[: then + 1], then - 1 if then else None)
        return self.c(self.b(self.a(x)))


@pytest.mark.parametrize("then", [0, 2, "evaluation", "an error"])
@pytest.mark.parametrize("layers", [None, ["a"]])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_model_that_calls_itself_is_mixed_once(then, layers, wrapped):
    """By the outer call, to which the labels belong; also past a wrapper."""
    model, x = Calls(), torch.rand(B, K)
    called = wrapped_in("module", model) if wrapped else model
    handle = fm.attach(called, fm.MixUp(), layers=layers)
    for _ in range(2):
        model.seen.clear()
        out = called(x, then)
        mixed = fm.mix(x, handle.plan)
        assert len(model.seen) > 1
        assert torch.equal(model.seen[0], x if layers else mixed)
        assert all(torch.equal(seen, model.seen[0][: len(seen)]) for seen in model.seen)
        assert torch.equal(out, mixed.tanh())


def test_attaching_registers_nothing_in_the_model():
    net = Net()
    before = [name for name, _ in net.named_modules()]
    fm.attach(net, fm.RandomMix([fm.MixUp(), fm.CutMix()]), layers=["first"])
    assert [name for name, _ in net.named_modules()] == before
    assert not list(net.buffers())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(duplicate):
    net, x = Net(), images()
    handle = fm.attach(net, fm.MixUp(generator=torch.Generator().manual_seed(2)), layers=["", "first"])
    criterion = handle.wrap(nn.CrossEntropyLoss())
    net(x)
    net.seen.clear()
    net_, handle_, criterion_ = duplicate((net, handle, criterion))
    assert handle_.model is net_
    assert handle_.plan is None
    assert criterion_.handle is handle_
    assert fm.attached(net_) == [handle_]
    assert torch.equal(criterion_(net_(x), Y), criterion(net(x), Y))  # the generator was copied in its state
    plan = handle.plan
    net_(x)
    assert handle.plan is plan
    handle_.remove()
    assert not net_.first._forward_hooks
    assert handle.plan is plan
    net(x)
    assert handle.plan is not plan
    # a copy of the model alone mixes by itself, and its handle can be found
    alone = duplicate(net)
    (found,) = fm.attached(alone)
    assert found is not handle
    found.remove()
    assert fm.attached(alone) == []
    assert fm.attached(net) == [handle]


def test_a_replica_is_refused():
    net = Net()
    fm.attach(net, fm.MixUp())
    replica = copy.copy(net)
    with pytest.raises(RuntimeError, match="replica of the attached model"):
        replica(images())
    assert replica.eval()(images()).shape == (B, K)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "net"}, TypeError, "model must be a torch.nn.Module"),
        ({"mix": nn.Identity()}, TypeError, "mix must be a mixing module"),
        ({"mix": fm.MixUp(pairing="cross_class")}, ValueError, "mix must find partners without labels"),
        ({"layers": "first"}, TypeError, "layers must be a sequence"),
        ({"layers": []}, ValueError, "layers must hold at least one"),
        ({"layers": ["third"]}, ValueError, r"layers\[0\] must name a module of the model, but got 'third'"),
        ({"layers": [nn.Linear(2, 2)]}, ValueError, r"layers\[0\] must be a module of the model"),
        ({"layers": ["first", 3]}, TypeError, r"layers\[1\] must be a module or a name"),
        ({"layers": ["first", "first"]}, ValueError, "layers must differ"),
        ({"layers": ["", "input"]}, ValueError, "layers must differ"),
        ({"inputs": "x"}, TypeError, "inputs must be a sequence"),
        ({"inputs": [-1]}, ValueError, r"inputs\[0\] must be >= 0"),
        ({"inputs": []}, ValueError, "inputs must name at least one"),
        ({"inputs": ["x", "x"]}, ValueError, "inputs must name at least one argument, and each once"),
        ({"calls": "last"}, ValueError, "calls must be one of"),
    ],
)
def test_bad_arguments(options, error, message):
    net = Net()
    with pytest.raises(error, match=message):
        fm.attach(**{"model": net, "mix": fm.MixUp(), **options})
    assert fm.attached(net) == []
    assert not net.first._forward_hooks


def test_bad_calls():
    net = Net()
    handle = fm.attach(net, fm.MixUp(label_smoothing=0.1))
    with pytest.raises(TypeError, match="criterion must be"):
        handle.wrap("mse")
    with pytest.raises(ValueError, match="targets must be one of"):
        handle.wrap(F.cross_entropy, targets="two")
    with pytest.raises(ValueError, match="label_smoothing must be 0"):
        handle.wrap(F.cross_entropy, targets="sparse")
    with pytest.raises(ValueError, match="wrapped already"):
        handle.wrap(handle.wrap(F.cross_entropy))
    handle.remove()
    with (
        fm.attach(net, fm.CutMix(), layers=["vector"]),
        pytest.raises(ValueError, match=r"layer 'vector'.*CutMix.*\(6, 8\)"),
    ):
        net(images())
    net(images())


VIDEO = torch.rand(B, 4, 3, 12, 10, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("options", [{}, {"layers": ["0"]}, {"inputs": [0]}], ids=["input", "layer", "inputs"])
@pytest.mark.parametrize("video", [VIDEO, tv_tensors.Video(VIDEO)], ids=["tensor", "Video"])
@pytest.mark.parametrize("make", [fm.CutMix, fm.HMix, fm.GMix, fm.FMix])
def test_videos(make, video, options):
    """Cut alike in all frames, by axes= or by torchvision's type, and never through time or colours."""
    net = nn.Sequential(nn.Identity(), nn.Identity())
    if type(video) is torch.Tensor:
        with fm.attach(net, make(), **options):
            state = torch.get_rng_state()
            with pytest.raises(ValueError, match=r"(the model's input|layer '0'|input 0).*tv_tensors.Video.*axes=\(-2"):
                net(video)
            assert torch.equal(torch.get_rng_state(), state)
    mix = make(**({"axes": (-2, -1)} if type(video) is torch.Tensor else {}))
    with fm.attach(net, mix, **options) as handle:
        torch.manual_seed(3)
        out = net(video)
        assert handle.plan.size == (12, 10)
        assert type(out) is type(video)
        m = handle.plan.mask().double()[:, None, None]
        expected = m * VIDEO.double() + (1 - m) * VIDEO.double()[handle.plan.partner]
        assert (out.as_subclass(torch.Tensor).double() - expected).abs().max() <= 2**-21


def test_axes_that_another_input_does_not_have():
    net = nn.Bilinear(10, 10, 3)
    with (
        fm.attach(net, fm.CutMix(axes=(-2, -1)), inputs=[0, 1]),
        pytest.raises(ValueError, match=r"axes must be different dims of the images.*\(-2, -1\) for \(6, 10\)"),
    ):
        net(torch.rand(B, 12, 10), torch.rand(B, 10))


def test_videos_without_a_mask():
    """One number mixes any shape, as it always did."""
    net = nn.Identity()
    with fm.attach(net, fm.MixUp()) as handle:
        out = net(VIDEO)
        assert torch.equal(out, fm.mix(VIDEO, handle.plan))


class Keywords(nn.Module):
    def forward(self, **inputs):
        return inputs


def test_the_likelier_input_of_keywords():
    net, depth = Keywords(), torch.rand(B, 1, 12, 10)
    with fm.attach(net, fm.CutMix()) as handle:
        out = net(depth=depth, pixel_values=images())
        assert out["depth"] is depth
        assert torch.equal(out["pixel_values"], fm.mix(images(), handle.plan))
        out = net(batch=UserDict(attention=torch.ones(B, 5), features=images()))["batch"]
        assert type(out) is UserDict
        assert torch.equal(out["features"], fm.mix(images(), handle.plan))
        with pytest.raises(ValueError, match=r"Several tensors may be the images.*inputs="):
            net(depth=depth, rgb=images())


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


# --- activation checkpointing ---------------------------------------------------------------------


class Blocks(nn.Module):
    """Two blocks, each checkpointed, with a layer to be mixed and noise that is drawn after it, which is kept."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = (nn.Linear(4, 4, dtype=torch.float64) for _ in range(3))
        self.options, self.noise = options, []

    def block(self, layer, x):
        hidden = layer(x)
        self.noise.append(torch.rand(4, dtype=torch.float64))
        return (hidden.tanh() * self.noise[-1]).sin()

    def forward(self, x):
        for layer in (self.one, self.two):
            x = checkpoint(self.block, layer, x, **self.options) if self.options else self.block(layer, x)
        return self.head(x).sin()

    def by_hand(self, x, place, plan, noise):
        for name, layer, drawn in zip(("one", "two"), (self.one, self.two), noise, strict=True):
            x = layer(x)
            if name == place:
                lam = plan.lam.double()[:, None]
                x = lam * x + (1 - lam) * x[plan.partner]
            x = (x.tanh() * drawn).sin()
        return self.head(x).sin()


REENTRANT = pytest.mark.parametrize("use_reentrant", [False, True])
SOURCES = pytest.mark.parametrize(
    "source", [{}, {"sampling": "device"}, {"per": "sample"}, {"generator": torch.Generator()}], ids=option_id
)


def drawn_place(handle):
    return ("one", "two")[handle._last.drawn]


@REENTRANT
@SOURCES
@pytest.mark.parametrize("order", ["backward at once", "all forward passes first"])
def test_what_is_recomputed_is_mixed_by_the_plan_of_its_forward_pass(use_reentrant, source, order):
    model = Blocks(use_reentrant=use_reentrant)
    handle = fm.attach(model, fm.MixUp(pairing="random", **source), layers=["one", "two"])
    torch.manual_seed(4)
    losses, told, states = [], [], []
    batches = [torch.rand(B, 4, dtype=torch.float64) for _ in range(6)]
    model.noise.clear()
    for x in batches:
        x.requires_grad_()  # the reentrant kind needs it
        losses.append(model(x).square().sum())
        told.append((drawn_place(handle), handle.plan, model.noise[-2:]))
        if order == "backward at once":
            states.append(state_of(source.get("generator")))
            losses[-1].backward()
            assert torch.equal(state_of(source.get("generator")), states[-1])
            assert handle.plan is told[-1][1]
            del model.noise[-2:]
    if order != "backward at once":
        last = handle.plan
        for loss in reversed(losses):
            loss.backward()
        assert handle.plan is last
    assert {place for place, *_ in told} == {"one", "two"}
    got = [p.grad for p in model.parameters()]
    model.zero_grad()
    for x, loss, how in zip(batches, losses, told, strict=True):
        expected = model.by_hand(x, *how).square().sum()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        expected.backward()
    for a, b in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("source", [{}, {"generator": torch.Generator()}], ids=option_id)
def test_generators_that_are_not_rewound(source):
    """An error, or the recorded plans with context_fn."""
    x = torch.rand(B, 4, dtype=torch.float64, requires_grad=True)
    model = Blocks(use_reentrant=False, preserve_rng_state=False)
    fm.attach(model, fm.MixUp(**source), layers=["one", "two"])
    with pytest.raises(RuntimeError, match=r"context_fn=fusedmix\.checkpoint_contexts"):
        model(x).square().sum().backward()

    model = Blocks(use_reentrant=False, preserve_rng_state=False, context_fn=fm.checkpoint_contexts)
    model.block = lambda layer, x: layer(x).tanh().sin()  # without noise, which nobody rewinds
    handle = fm.attach(model, fm.MixUp(**source), layers=["one", "two"])
    for _ in range(4):
        model.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        got = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        expected = model.by_hand(x, drawn_place(handle), handle.plan, (1.0, 1.0)).square().sum()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        expected.backward()
        for a, b in zip(got, model.parameters(), strict=True):
            torch.testing.assert_close(a, b.grad, rtol=1e-6, atol=1e-6)


@REENTRANT
@pytest.mark.parametrize("layers", [None, ["", "one", "two"]])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # seen without grad by the inner function
def test_the_whole_model_inside_a_checkpointed_function(use_reentrant, layers, nested):
    """Its hooks run again with the model: they draw what PyTorch rewinds, and leave the plan of the forward pass."""
    model = Blocks(**({"use_reentrant": use_reentrant} if nested else {}))
    handle = fm.attach(model, fm.MixUp(pairing="random"), layers=layers)
    seen = []
    model.one.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().clone()))
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.rand(B, 4, dtype=torch.float64, requires_grad=True)
        model.zero_grad()
        model.noise.clear()
        seen.clear()
        loss = checkpoint(model, x, use_reentrant=use_reentrant).square().sum()
        plan, noise = handle.plan, model.noise[-2:]
        place = ("", "one", "two")[handle._last.drawn]
        loss.backward()
        assert handle.plan is plan
        assert all(torch.equal(seen[0], again) for again in seen[1:])
        assert len(seen) >= 2
        got = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        mixed = x.detach()
        if place == "":
            mixed = fm.mix(mixed, plan)
        expected = model.by_hand(mixed, place, plan, noise).square().sum()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        expected.backward()
        for a, b in zip(got, model.parameters(), strict=True):
            torch.testing.assert_close(a, b.grad, rtol=1e-6, atol=1e-6)


# --- torch.compile --------------------------------------------------------------------------------


@pytest.fixture
def _dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Small(Chain):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.c = nn.Linear(K, K), nn.Linear(K, K)


@pytest.mark.usefixtures("_dynamo")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("layers", [None, ["a"], ["", "a", "b"]])
def test_compiled_models_equal_eager_ones(order, layers):
    graphs = []

    def counting(graph, _):
        graphs.append(graph)
        return graph

    several = layers is not None and len(layers) > 1
    runs, lams = [], []
    for compiled in (False, True):
        net, mix = Small(), fm.MixUp(per="sample")
        run = net
        if compiled and order == "after":
            run = torch.compile(net, fullgraph=True, backend=counting)
        handle = fm.attach(run, mix, layers=layers)
        if compiled and order == "before":
            run = torch.compile(net, fullgraph=not several, backend=counting)
        criterion = handle.wrap(nn.CrossEntropyLoss())
        torch.manual_seed(5)
        results = []
        x = images()[:, 0, 0, :K]
        for _ in range(8):
            loss = criterion(run(x), Y)
            results += [loss, handle.plan.lam, *torch.autograd.grad(loss, tuple(net.parameters()))]
            lams.append(float(handle.plan.lam[0]))
        net.eval()
        results += [run(x), criterion(run(x), Y)]
        runs.append(results)
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b)
    assert len(set(lams[8:])) == 8, "the draw is frozen into the graph"
    # The model and, where PyTorch compiles them by themselves, its hooks: in training by layer, and in evaluation.
    assert len(graphs) <= (4 if not several else 2 * len(layers) + 2)


class Teaches(Small):
    def forward(self, x, own=True):
        return super().forward(x) + 0.0 * self(x, False) if own else super().forward(x)


@pytest.mark.usefixtures("_dynamo")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("layers", [None, ["a"]])
def test_a_compiled_model_that_calls_itself(order, layers):
    net, x = Teaches(), torch.rand(B, K)
    run = torch.compile(net, fullgraph=True, backend="aot_eager") if order == "after" else net
    handle = fm.attach(run, fm.MixUp(), layers=layers)
    if order == "before":
        run = torch.compile(net, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        out = run(x)
        hidden = F.linear(x if layers else fm.mix(x, handle.plan), net.a.weight, net.a.bias)
        hidden = fm.mix(hidden, handle.plan) if layers else hidden
        torch.testing.assert_close(out, F.linear(hidden.tanh(), net.c.weight, net.c.bias))


@pytest.mark.usefixtures("_dynamo")
def test_several_layers_in_one_graph_are_refused():
    net = Small()
    fm.attach(net, fm.MixUp(), layers=["", "a"])
    with pytest.raises(Exception, match="attach to the compiled model instead"):
        torch.compile(net, fullgraph=True, backend="eager")(torch.rand(B, K))


@pytest.mark.usefixtures("_dynamo")
@pytest.mark.parametrize(
    ("targets", "per", "criterion"),
    [
        ("dense", "batch", nn.CrossEntropyLoss()),
        ("sparse", "batch", F.cross_entropy),
        ("sparse", "sample", nn.CrossEntropyLoss()),
        ("sparse", "sample", F.cross_entropy),
    ],
)
def test_a_whole_step_is_one_graph(targets, per, criterion):
    net = Small()
    wrapped = fm.attach(net, fm.MixUp(per=per), layers=["a"]).wrap(criterion, targets=targets)

    def step(x, y):
        return wrapped(net(x), y)

    runs = []
    for f in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        runs.append([f(images()[:, 0, 0, :K], Y) for _ in range(3)])
    torch.testing.assert_close(*runs)
    assert runs[1][0] != runs[1][1]


# --- several ranks --------------------------------------------------------------------------------

RANK = """
import torch, torch.distributed as dist
import torch.nn.functional as F
import fusedmix as fm
from torch import nn

dist.init_process_group("gloo")
rank = dist.get_rank()
x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(rank))
y = torch.tensor([0, 1, 2, 3, 3, 1])

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Linear(144, 4)
    def forward(self, x, place=None, plan=None):
        x = self.one(fm.mix(x, plan) if place == "" else x)
        return self.two((fm.mix(x, plan) if place == "one" else x).tanh().flatten(1))

for where in ("inside", "around"):
    net, plain = Net(), Net()
    ddp = nn.parallel.DistributedDataParallel(net)
    handle = fm.attach(net if where == "inside" else ddp, fm.CutMix(per="sample"), layers=["", "one"])
    criterion = handle.wrap(nn.CrossEntropyLoss())
    assert not list(ddp.buffers())
    optimizer, by_hand = (torch.optim.SGD(m.parameters(), 0.1) for m in (net, plain))
    torch.manual_seed(100 + rank)

    def run(steps):
        lams, places = [], set()
        for _ in range(steps):
            optimizer.zero_grad()
            plain.load_state_dict(net.state_dict())
            criterion(ddp(x), y).backward()
            plan = handle.plan
            place = "" if plan.size == (8, 8) else "one"
            by_hand.zero_grad()
            F.cross_entropy(plain(x, place, plan), fm.mix_labels(y, plan, num_classes=4)).backward()
            for p, q in zip(net.parameters(), plain.parameters()):
                mean = q.grad.clone()
                dist.all_reduce(mean)
                torch.testing.assert_close(p.grad, mean / 2)
            optimizer.step()
            lams.append(plan.lam)
            places.add(place)
        return torch.stack(lams), places

    run(1)
    saved = torch.get_rng_state()
    mine, places = run(6)
    assert places == {"", "one"}
    every = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(every, mine)
    assert not (every[0] == every[1]).any(), "two ranks drew the same"
    torch.set_rng_state(saved)
    assert torch.equal(run(6)[0], mine), "resuming drew something else"
    ddp.eval()
    torch.testing.assert_close(criterion(ddp(x), y), F.cross_entropy(net.forward(x), y))
    dist.barrier()
    del ddp
dist.destroy_process_group()
print(f"rank {rank} ok")
"""


@pytest.mark.thorough
def test_two_ranks(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANK))
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert all(f"rank {rank} ok" in run.stdout for rank in range(2))
