"""Activation checkpointing: what is recomputed in the backward pass mixes by the plan of the forward pass."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fusedmix as fm

Y = torch.tensor([0, 1, 2, 3])


class Block(torch.nn.Module):
    """Mixes hidden states of one layer, as Manifold Mixup does, and keeps the plans it used."""

    def __init__(self, mix):
        super().__init__()
        self.before, self.after, self.mix = torch.nn.Conv2d(1, 2, 3), torch.nn.Conv2d(2, 1, 3), mix
        self.plans = []

    def forward(self, x):
        hidden = self.before(x).tanh()
        plan = self.mix.sample(hidden.shape[0], hidden.shape[2:])
        self.plans.append(plan)
        return self.after(fm.mix(hidden, plan)).sin()


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
    loss.backward()  # the reentrant kind supports nothing else
    torch.rand(5)
    forward, again = block.plans
    assert torch.equal(forward.mask(), again.mask())
    assert torch.equal(forward.partner, again.partner)
    assert torch.equal(loss, plain[0])
    for parameter, expected in zip(block.parameters(), plain[1:], strict=True):
        torch.testing.assert_close(parameter.grad, expected)


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
    out = checkpoint(
        twice,
        x,
        use_reentrant=False,
        preserve_rng_state=source == "own generator",
        context_fn=fm.checkpoint_contexts,
    )
    torch.rand(3)
    state = torch.get_rng_state() if generator is None else generator.get_state()
    out.square().sum().backward(retain_graph=True)
    assert len(block.plans) == 4
    assert block.plans[0] is block.plans[2]
    assert block.plans[1] is block.plans[3]
    assert block.plans[0] is not block.plans[1]
    assert torch.equal(torch.get_rng_state() if generator is None else generator.get_state(), state)
    # the gradient is that of the plans of the forward pass
    got = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    first, second = block.plans[:2]
    hidden = fm.mix(block.before(x).tanh(), first)
    hidden = fm.mix(block.before(block.after(hidden).sin()).tanh(), second)
    block.after(hidden).sin().square().sum().backward()
    for a, b in zip(got, block.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad)
    # a second backward pass over the retained graph recomputes once more
    block.zero_grad()
    out.square().sum().backward()
    for a, b in zip(got, block.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad)


def test_drawing_anew_from_an_own_generator_is_refused():
    block = Block(fm.CutMix(generator=torch.Generator()))
    out = checkpoint(block, torch.rand(4, 1, 9, 9), use_reentrant=False)
    with pytest.raises(RuntimeError, match="checkpoint_contexts"):
        out.sum().backward()


@pytest.mark.thorough  # inductor builds C++
@pytest.mark.parametrize("sampling", ["host", "device"])
def test_compiled_checkpoint(sampling):
    torch._dynamo.reset()
    torch.manual_seed(1)
    before, after = torch.nn.Conv2d(1, 2, 3), torch.nn.Conv2d(2, 1, 3)
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
