"""attach: which tensors are mixed, of a model's inputs and of its layers' outputs, and how."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from torchvision import tv_tensors

import fusedmix as fm
from attaching import B, Chain, K, Net, Y, images

NAMES = ["first", "second", "vector"]

# --- the input ---


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
        if isinstance(mix, fm.SamplePairing):  # By definition the label is that of the first image.
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
    with fm.attach(model, fm.CutMix()) as handle:  # The first floating-point tensor is mixed.
        out = model(ids, a, b)
        assert torch.equal(out[1], fm.mix(a, handle.plan))
        assert out[2] is b
        out = model(ids=ids, c=c, a=None)
        assert torch.equal(out[3], fm.mix(c, handle.plan))
        nested = model(ids, {"ids": ids, "pixels": [a]})[1]
        assert torch.equal(nested["pixels"][0], fm.mix(a, handle.plan))
    with fm.attach(model, fm.MixUp(), inputs=["a", "b"]) as handle:  # Constant masks fit every size.
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


VIDEO = torch.rand(B, 4, 3, 12, 10, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("options", [{}, {"layers": ["0"]}, {"inputs": [0]}], ids=["input", "layer", "inputs"])
@pytest.mark.parametrize("video", [VIDEO, tv_tensors.Video(VIDEO)], ids=["tensor", "Video"])
@pytest.mark.parametrize("make", [fm.CutMix, fm.HMix, fm.GMix, fm.FMix])
def test_videos(make, video, options):
    """Cut alike in all frames, and not through time or colours."""
    net = nn.Sequential(nn.Identity(), nn.Identity())
    with fm.attach(net, make(), **options) as handle:
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


# --- hidden layers ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("place", ["", *NAMES])
def test_gradients_are_those_of_a_model_that_mixes_by_hand(method, place, per, dtype):
    mix = method(per=per, pairing="random")
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
        # What is mixed stays mixed further on: the first place that differs is where it happened.
        assert len(places) == count + 1
        assert handle.plan is not None
    return places


@pytest.mark.parametrize("options", [{}, {"sampling": "device"}, {"generator": torch.Generator().manual_seed(1)}])
def test_the_layer_is_drawn_uniformly(options):
    n = 1600
    places = mixed_places(Chain(), n, **options)
    counts = [places.count(name) for name in ("", "a", "b", "c")]
    assert sum(counts) == n
    assert stats.chisquare(counts).pvalue > 1e-3
    pairs = [places[i : i + 2] for i in range(0, n, 2)]  # One draw says nothing about the next.
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
    assert torch.equal(handle.wrap(F.cross_entropy)(out, Y), F.cross_entropy(out, Y))  # Nothing was mixed.


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
