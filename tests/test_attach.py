"""attach: when a model is mixed and when not, and what handles, copies and replicas of it do."""

from __future__ import annotations

import copy
import pickle
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fusedmix as fm
from attaching import B, Chain, K, Net, Y, images

# --- when it mixes, and when not ---


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
    net.eval()  # A validation runs in between.
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

    # Each batch goes forwards and backwards before the next.
    plans = []
    for x in batches:
        criterion(net(x), Y).backward()
        plans.append(handle.plan)
    expect([p.grad for p in net.parameters()], [(place_of(plan), plan) for plan in plans])
    # All forward passes come first, so the plans are kept, and passed to the criterion.
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
        for name in "abc":  # A layer that is called by itself is no forward pass of the model.
            layer = getattr(model, name)
            assert torch.equal(layer(x), layer.forward(x))
    model(x)
    assert handle.plan is not None
    assert criterion(out, Y).isfinite()
    with pytest.raises(ValueError, match="must hold a floating-point tensor"):  # The hook itself raises.
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


# --- attaching, removing, copying ---

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
    with fm.attach(net, fm.MixUp()) as again:  # A model may be attached to again.
        net(x)
        assert again.plan is not None


# --- twice ---


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(K, K), nn.Linear(K, K)
        self.seen = []

    def forward(self, x, y=None):
        self.seen.append((x, y))
        return self.b(self.a(x))


def wrapped_in(name, model):
    # It stands for a DistributedDataParallel or a compiled model, which hold the model under this name, nothing else.
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
    with fm.attach(other, fm.CutMix(), **second):  # The first handle is removed by now.
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
    with pytest.raises(ValueError, match="replace"):  # Here both would mix in one forward pass.
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
    assert fm.attached(fm.attach(Pair(), fm.MixUp(), replace=True).model)  # There is nothing to replace.


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
    assert torch.equal(criterion_(net_(x), Y), criterion(net(x), Y))  # The generator was copied with its state.
    plan = handle.plan
    net_(x)
    assert handle.plan is plan
    handle_.remove()
    assert not net_.first._forward_hooks
    assert handle.plan is plan
    net(x)
    assert handle.plan is not plan
    # A copy of the model alone mixes by itself, and its handle can be found.
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
    flat = nn.Sequential(nn.Flatten(0))
    with fm.attach(flat, fm.CutMix(), layers=["0"]), pytest.raises(ValueError, match=r"layer '0'.*CutMix.*MixUp mixes"):
        flat(images())
    flat(images())
