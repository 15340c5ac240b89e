"""Activation checkpointing: what is recomputed in the backward pass mixes by the plan of the forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fusedmix as fm
from conftest import option_id

Y = torch.tensor([0, 1, 2, 3])


class Block(nn.Module):
    """Mixes hidden states of one layer, as Manifold Mixup does, and keeps the plans it used."""

    def __init__(self, mix):
        super().__init__()
        self.before, self.after, self.mix = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3), mix
        self.plans = []

    def forward(self, x):
        hidden = self.before(x).tanh()
        plan = self.mix.sample(hidden.shape[0], hidden.shape[2:])
        self.plans.append(plan)
        return self.after(fm.mix(hidden, plan)).sin()


def state_of(generator):
    return torch.get_rng_state() if generator is None else generator.get_state()


def assert_gradients(module, expected, **tolerance):
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **tolerance)


def gradients(block, x, run):
    loss = run(block, x).square().sum()
    return loss, *torch.autograd.grad(loss, tuple(block.parameters()))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_torchs_generator_is_rewound(use_reentrant, sampling, per):
    torch.manual_seed(1)
    block = Block(fm.CutMix(sampling=sampling, per=per, pairing="random"))
    x = torch.rand(4, 1, 9, 9, requires_grad=True)
    torch.manual_seed(2)
    plain = gradients(block, x, lambda f, x: f(x))
    block.plans.clear()
    torch.manual_seed(2)
    loss = checkpoint(block, x, use_reentrant=use_reentrant).square().sum()
    loss.backward()  # The reentrant kind supports nothing else.
    torch.rand(5)
    forward, again = block.plans
    assert torch.equal(forward.mask(), again.mask())
    assert torch.equal(forward.partner, again.partner)
    assert torch.equal(loss, plain[0])
    assert_gradients(block, plain[1:])


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("source", ["own generator", "not rewound"])
def test_recorded_plans_are_reused(sampling, source):
    """Where PyTorch rewinds nothing, checkpoint_contexts hands the recorded plans out again, in their order."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(7) if source == "own generator" else None
    block = Block(fm.GMix(sampling=sampling, generator=generator))

    def twice(x):
        return block(block(x))

    x = torch.rand(4, 1, 12, 12)
    rewound = source == "own generator"
    out = checkpoint(twice, x, use_reentrant=False, preserve_rng_state=rewound, context_fn=fm.checkpoint_contexts)
    torch.rand(3)
    state = state_of(generator)
    out.square().sum().backward(retain_graph=True)
    assert len(block.plans) == 4
    assert block.plans[0] is block.plans[2]
    assert block.plans[1] is block.plans[3]
    assert block.plans[0] is not block.plans[1]
    assert torch.equal(state_of(generator), state)
    # The gradient is that of the plans of the forward pass.
    got = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    first, second = block.plans[:2]
    hidden = fm.mix(block.before(x).tanh(), first)
    hidden = fm.mix(block.before(block.after(hidden).sin()).tanh(), second)
    block.after(hidden).sin().square().sum().backward()
    assert_gradients(block, got)
    # A second backward pass over the retained graph recomputes once more.
    block.zero_grad()
    out.square().sum().backward()
    assert_gradients(block, got)


def test_drawing_anew_from_an_own_generator_is_refused():
    block = Block(fm.CutMix(generator=torch.Generator()))
    out = checkpoint(block, torch.rand(4, 1, 9, 9), use_reentrant=False)
    with pytest.raises(RuntimeError, match="checkpoint_contexts"):
        out.sum().backward()


@pytest.mark.thorough  # Inductor builds C++.
@pytest.mark.parametrize("sampling", ["host", "device"])
def test_compiled_checkpoint(sampling):
    torch._dynamo.reset()
    torch.manual_seed(1)
    before, after = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3)
    mix = fm.HMix(sampling=sampling, per="sample", pairing="random")
    x = torch.rand(4, 1, 9, 9)

    def block(x):
        hidden = before(x).tanh()
        return after(fm.mix(hidden, mix.sample(4, (7, 7)))).sin()

    def step(x):
        return checkpoint(block, x, use_reentrant=False).square().sum()

    parameters = (*before.parameters(), *after.parameters())
    torch.manual_seed(2)
    plain = torch.autograd.grad(block(x).square().sum(), parameters)
    torch.manual_seed(2)
    compiled = torch.autograd.grad(torch.compile(step, fullgraph=True)(x), parameters)
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b)


# --- an attached model ---


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

    def assert_as_by_hand(self, cases):
        """Of losses whose backward passes have run, (x, loss, place, plan, noise) each: they and the gradients."""
        got = [p.grad.clone() for p in self.parameters()]
        self.zero_grad()
        for x, loss, *how in cases:
            expected = self.by_hand(x, *how).square().sum()
            torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
            expected.backward()
        assert_gradients(self, got, rtol=1e-6, atol=1e-6)

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
    batches = [torch.rand(6, 4, dtype=torch.float64) for _ in range(6)]
    model.noise.clear()
    for x in batches:
        x.requires_grad_()  # The reentrant kind needs it.
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
    model.assert_as_by_hand((x, loss, *how) for x, loss, how in zip(batches, losses, told, strict=True))


@pytest.mark.parametrize("source", [{}, {"generator": torch.Generator()}], ids=option_id)
def test_generators_that_are_not_rewound(source):
    """An error, or the recorded plans with context_fn."""
    x = torch.rand(6, 4, dtype=torch.float64, requires_grad=True)
    model = Blocks(use_reentrant=False, preserve_rng_state=False)
    fm.attach(model, fm.MixUp(**source), layers=["one", "two"])
    with pytest.raises(RuntimeError, match=r"context_fn=fusedmix\.checkpoint_contexts"):
        model(x).square().sum().backward()

    model = Blocks(use_reentrant=False, preserve_rng_state=False, context_fn=fm.checkpoint_contexts)
    model.block = lambda layer, x: layer(x).tanh().sin()  # It draws no noise, which nobody would rewind.
    handle = fm.attach(model, fm.MixUp(**source), layers=["one", "two"])
    for _ in range(4):
        model.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        model.assert_as_by_hand([(x, loss, drawn_place(handle), handle.plan, (1.0, 1.0))])


@REENTRANT
@pytest.mark.parametrize("layers", [None, ["", "one", "two"]])
@pytest.mark.parametrize("nested", [False, True])
# The inner function sees inputs without grad.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_the_whole_model_inside_a_checkpointed_function(use_reentrant, layers, nested):
    """Its hooks run again with the model: they draw what PyTorch rewinds, and leave the plan of the forward pass."""
    model = Blocks(**({"use_reentrant": use_reentrant} if nested else {}))
    handle = fm.attach(model, fm.MixUp(pairing="random"), layers=layers)
    seen = []
    model.one.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().clone()))
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.rand(6, 4, dtype=torch.float64, requires_grad=True)
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
        mixed = fm.mix(x.detach(), plan) if place == "" else x.detach()
        model.assert_as_by_hand([(mixed, loss, place, plan, noise)])
