"""Partners that are given to `sample`, and those that are found by the distance of targets."""

from __future__ import annotations

import math

import pytest
import torch

import fusedmix as fm
from callers import each_backend
from fusedmix.methods import Pairing
from wrong_calls import GENERATOR, X, check, wrong_type, wrong_value

B, SIZE = 6, (9, 7)
REPEATED = torch.tensor([1, 1, 3, 0, 1, 5])
PERMUTED = torch.tensor([2, 0, 4, 1, 5, 3])


def tensors(plan):
    return [plan.lam, plan.weight, plan.masks, *([] if plan.pixels is None else [plan.pixels])]


@pytest.mark.parametrize("pairing", ["roll", "random", "cross_class"])
@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_all_else_is_drawn_as_without(method, per, sampling, pairing):
    mix = method(per=per, sampling=sampling, pairing=pairing, p=0.9)
    labels = torch.tensor([0, 1, 1, 2, 0, 2])
    drawn = [mix.sample(B, SIZE, seed=5, labels=labels)]
    drawn += [mix.sample(B, SIZE, seed=5, partner=partner) for partner in (REPEATED, PERMUTED)]
    for plan, partner in zip(drawn[1:], (REPEATED, PERMUTED), strict=True):
        assert all(map(torch.equal, tensors(plan), tensors(drawn[0])))
        assert torch.equal(plan.partner, partner)
        assert plan.repeats == (partner is REPEATED)
        assert plan.pairing == Pairing.RANDOM
        assert plan.per == drawn[0].per
    states = []
    for options in ({"labels": labels}, {"partner": REPEATED}):
        generator = torch.Generator().manual_seed(3)
        mix.sample(B, SIZE, generator=generator, **options)
        states.append(generator.get_state())
    assert torch.equal(*states)


@each_backend
@pytest.mark.parametrize("make", [fm.CutMix, fm.MixUp, fm.FMix], ids=lambda make: make.__name__)
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_mixing(backend, make, per):
    plan = make(per=per).sample(B, SIZE, seed=2, partner=REPEATED)
    x = torch.rand(B, 2, *SIZE)
    w = plan.mask().unsqueeze(1)
    out = backend.mix(x.to(backend.device), plan).cpu()
    torch.testing.assert_close(out, w * x + (1 - w) * x[REPEATED], atol=1e-6, rtol=0)
    with pytest.raises(fm.InplaceError, match="partner of several"):
        fm.mix_(x, plan)


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_derivatives(per):
    for make in (fm.CutMix, fm.MixUp, fm.FMix):
        plan = make(per=per).sample(B, (3, 2), seed=2, partner=REPEATED)
        x = torch.rand(B, 1, 3, 2, dtype=torch.float64, requires_grad=True)
        w, grad = plan.mask().double().unsqueeze(1), torch.rand_like(x)
        found = torch.autograd.grad(fm.mix(x, plan), x, grad)[0]
        torch.testing.assert_close(found, (w * grad).index_add(0, REPEATED, (1 - w) * grad))


def test_embeddings_and_sets():
    embeddings, tokens = torch.rand(B, 5, 3), torch.tensor([5, 2, 3, 1, 4, 5])
    plan = fm.EmbedMix().sample(B, (5,), lam=0.6, partner=REPEATED)
    _, lengths = fm.mix_embeddings(embeddings, plan, tokens)
    assert torch.equal(lengths, torch.maximum(tokens, tokens[REPEATED]))
    mix = fm.RandomMix([fm.MixUp(), fm.CutMix(), fm.FMix()], per="sample")
    assert torch.equal(mix.sample(B, SIZE, partner=REPEATED).partner, REPEATED)


def test_a_module_that_is_off():
    mix = fm.MixUp(training_only=True).eval()
    plan = mix.sample(B, SIZE, partner=REPEATED)
    assert torch.equal(fm.mix(x := torch.rand(B, 1, *SIZE), plan), x)


def test_recomputed():
    """A checkpointed function takes the partners of the forward pass again."""
    drawn = []

    def block(x):
        mix = fm.MixUp(generator=torch.Generator().manual_seed(len(drawn)))
        plan = mix.sample(B, SIZE, partner=torch.randint(0, B, (B,)))
        drawn.append(plan)
        return fm.mix(x, plan).square()

    x = torch.rand(B, 1, *SIZE, requires_grad=True)
    contexts = fm.checkpoint_contexts
    torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False, context_fn=contexts).sum().backward()
    assert len(drawn) == 2
    assert drawn[0] is drawn[1]


def test_compiled():
    mix = fm.CutMix(per="sample")

    def step(x, partner):
        plan = mix.sample(B, SIZE, partner=partner, seed=4)
        return fm.mix(x, plan)

    torch._dynamo.reset()
    x = torch.rand(B, 1, *SIZE)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for partner in (REPEATED, PERMUTED):
        assert torch.equal(compiled(x, partner), step(x, partner))


# ---- by distance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(B,), (B, 2)], ids=["numbers", "vectors"])
@pytest.mark.parametrize("bandwidth", [0.3, 2.0])
def test_law(shape, bandwidth):
    """P(j | i) ∝ exp(-d²/2h²), one's own included: every one of B² frequencies within 4.5 standard errors. Many samples
    have each of B targets, so that one call is as many draws."""
    y = torch.randn(shape, dtype=torch.float64)
    flat = y.reshape(B, -1)
    expected = (-(flat[:, None] - flat[None]).square().sum(2) / (2 * bandwidth**2)).softmax(1)
    copies, calls = 250, 4
    generator = torch.Generator().manual_seed(1)
    counts = torch.zeros(B * B, dtype=torch.float64)
    of = torch.arange(B).repeat(copies)
    for _ in range(calls):
        partner = fm.pairing_by_distance(y[of], bandwidth, generator=generator)
        counts += (of * B + of[partner]).bincount(minlength=B * B)
    trials = copies * calls
    error = (expected * (1 - expected) / trials).sqrt()
    assert ((counts.reshape(B, B) / trials - expected).abs() <= 4.5 * error + 1e-12).all()


def test_draws_are_independent():
    """Of many samples that are all alike no two draw together."""
    partner = fm.pairing_by_distance(torch.zeros(4096), 1.0)
    counts = partner.bincount(minlength=4096)
    assert abs(int((counts == 0).sum()) / 4096 - math.exp(-1)) < 0.03  # Poisson with mean 1
    assert abs(int((partner == torch.arange(4096)).sum()) - 1) <= 6


def test_seeds():
    y = torch.rand(64)
    torch.manual_seed(7)
    first, second = fm.pairing_by_distance(y, 1.0), fm.pairing_by_distance(y, 1.0)
    torch.manual_seed(7)
    assert torch.equal(fm.pairing_by_distance(y, 1.0), first)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    own = [fm.pairing_by_distance(y, 1.0, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*own)
    assert torch.equal(own[0], first)
    assert torch.equal(torch.get_rng_state(), state)


def test_far_targets_and_small_batches():
    far = torch.tensor([0.0, 1e30, -1e30, 5.0])
    for y in (far, far.double() * 1e200, far.unsqueeze(1), torch.tensor([0, 10**6, -(10**6), 5])):
        assert fm.pairing_by_distance(y, 1e-3).tolist() == [0, 1, 2, 3]
    for shape in ((0,), (0, 3), (1,), (1, 3), (4, 0)):
        partner = fm.pairing_by_distance(torch.zeros(shape), 1.0)
        assert partner.dtype == torch.int64
        assert partner.shape == shape[:1]
        assert ((partner >= 0) & (partner < shape[0])).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64], ids=str)
def test_dtypes(dtype):
    y = torch.tensor([0, 1, 2, 5, 9], dtype=dtype)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    found = [fm.pairing_by_distance(of, 2.0, generator=g) for of, g in zip((y, y.double()), generators, strict=True)]
    assert torch.equal(*found)


def test_distance_compiled():
    """Nothing drawn is frozen into the graph, and the graph draws what is drawn without it."""
    torch._dynamo.reset()
    compiled = torch.compile(fm.pairing_by_distance, fullgraph=True, backend="aot_eager")
    y = torch.rand(32)
    torch.manual_seed(2)
    found = [compiled(y, 0.5) for _ in range(2)]
    torch.manual_seed(2)
    assert all(map(torch.equal, found, [fm.pairing_by_distance(y, 0.5) for _ in range(2)]))
    assert not torch.equal(*found)
    with pytest.raises(Exception, match="generator must be None"):
        torch.compile(
            lambda y: fm.pairing_by_distance(y, 0.5, generator=GENERATOR), backend="aot_eager", fullgraph=True
        )(y)


def test_regression():
    y = torch.rand(B, 1)
    partner = fm.pairing_by_distance(y, 0.2)
    plan = fm.MixUp(alpha=2.0).sample(B, SIZE, partner=partner)
    w = plan.weight.unsqueeze(1).float()
    torch.testing.assert_close(fm.mix_targets(y, plan), w * y + (1 - w) * y[partner])


# ---- wrong calls -----------------------------------------------------------------------------------------------------

Y = torch.tensor([0.0, 1.0, 2.0, 3.0])
by_distance, sample = fm.pairing_by_distance, fm.MixUp(generator=GENERATOR).sample
WRONG = {
    "partner a list": wrong_type(lambda: sample(4, (8, 8), partner=[0, 1, 2, 3]), "partner", "list", "torch.as_tensor"),
    "partner float": wrong_value(lambda: sample(4, (8, 8), partner=Y), "partner", "float32", "int64"),
    "partner of five": wrong_value(lambda: sample(5, (8, 8), partner=Y.long()), "partner", "(4,)", "(5,)"),
    "partner outside": wrong_value(lambda: sample(4, (8, 8), partner=Y.long() + 1), "partner", "[0, 4)", "4"),
    "partner negative": wrong_value(lambda: sample(4, (8, 8), partner=-Y.long()), "partner", "[0, 4)", "-3"),
    "partners of pairs": wrong_value(
        lambda: fm.CutMix(per="pair").sample(4, (8, 8), partner=Y.long()), "partner", 'per="pair"', 'per="sample"'
    ),
    "y a list": wrong_type(lambda: by_distance([0.0], 1.0), "y ", "list", "torch.as_tensor"),
    "y images": wrong_value(lambda: by_distance(X, 1.0), "y ", "(4, 3, 8, 8)", "(batch_size,)"),
    "y bool": wrong_value(lambda: by_distance(Y > 1, 1.0), "y ", "bool", "real numbers"),
    "y nan": wrong_value(lambda: by_distance(Y / 0, 1.0), "y ", "finite", "NaN"),
    "bandwidth zero": wrong_value(lambda: by_distance(Y, 0.0), "bandwidth", "0.0", "> 0"),
    "bandwidth infinite": wrong_value(lambda: by_distance(Y, math.inf), "bandwidth", "inf", "finite"),
    "bandwidth a tensor": wrong_type(lambda: by_distance(Y, Y[:1]), "bandwidth", "number", "Tensor"),
    "generator a seed": wrong_type(lambda: by_distance(Y, 1.0, generator=0), "generator", "int", "torch.Generator"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_partners(case):
    check(*case)
