"""Masks within the valid parts of padded samples: held against the definition, place by place."""

from __future__ import annotations

import itertools

import pytest
import torch

import fusedmix as fm
from callers import CPP

B, K, LONG = 6, 4, 24
Y = torch.tensor([0, 1, 2, 3, 1, 0])
LENGTHS = torch.tensor([24, 7, 1, 23, 12, 18])
MAKE = {
    "MixUp": lambda **kw: fm.MixUp(**kw),
    "CutMix": lambda **kw: fm.CutMix(**kw),
    "CutMix-inside": lambda **kw: fm.CutMix(placement="inside", **kw),
    "HMix": lambda **kw: fm.HMix(**kw),
    "GMix": lambda **kw: fm.GMix(**kw),
    "FMix": lambda **kw: fm.FMix(**kw),
    "FMix-soft": lambda **kw: fm.FMix(max_soft=0.3, **kw),
    "SmoothMix": lambda **kw: fm.SmoothMix(**kw),
    "RandomMix": lambda **kw: fm.RandomMix([fm.MixUp(), fm.CutMix()], **kw),
    "SamplePairing": lambda **kw: fm.SamplePairing(**kw),
}
each_method = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
SIZES = [(LONG,), (5, LONG)]


def expected_masks(plan, lengths, lent):
    """M(⌊t·L/m⌋) at t < m = min(n, n of the partner), and 1 behind."""
    masks = torch.ones(plan.batch_size, *plan.size, dtype=torch.float64)
    drawn = plan.mask().double()
    for i, (n, m) in enumerate(zip(lengths.tolist(), lent.tolist(), strict=True)):
        for t in range(min(n, m)):
            masks[i, ..., t] = drawn[i, ..., t * LONG // min(n, m)]
    return masks


def check(plan, masks, lengths, always):
    # Levels are those of 16 bits.
    assert (plan.mask().double() - masks).abs().max() <= (1e-7 if plan.families in (2, 4, 16) else 1 / 131000)
    means = torch.stack([mask[..., :n].mean() for mask, n in zip(plan.mask().double(), lengths.tolist(), strict=True)])
    expected = torch.ones_like(means) if always else means
    torch.testing.assert_close(plan.weight, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("per", "sampling"), [*itertools.product(("batch", "sample"), ("host", "device"))])
@each_method
def test_masks_and_weights(make, per, sampling, size):
    """Those of the same seed without lengths, within."""
    mix = make(num_classes=K, per=per, sampling=sampling)
    for seed in range(4):
        whole = mix.sample(B, size, seed=seed)
        plan = mix.sample(B, size, seed=seed, lengths=LENGTHS)
        assert torch.equal(plan.partner, whole.partner)
        assert torch.equal(plan.lam, whole.lam)
        masks = expected_masks(whole, LENGTHS, LENGTHS[plan.partner])
        check(plan, masks, LENGTHS, always=isinstance(mix, fm.SamplePairing))


@pytest.mark.parametrize("backend", ["reference", CPP])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("shape", [(B, LONG), (B, 2, LONG), (B, 1, 5, LONG)], ids=str)
@each_method
def test_batches(make, shape, inplace, backend):
    """Mixed by that plan; and no padding gets into what is valid, nor anything valid into padding."""
    x = torch.randn(shape)
    padding = (torch.arange(LONG) >= LENGTHS.unsqueeze(1)).reshape(B, *[1] * (len(shape) - 2), LONG)
    x = torch.where(padding, 1e6, x)
    mix = make(num_classes=K, per="sample", inplace=inplace, backend=backend)
    given = x.clone()
    torch.manual_seed(2)
    out, targets = mix(given, Y, lengths=LENGTHS)
    torch.manual_seed(2)
    plan = mix.sample(B, shape[2:] or shape[1:], lengths=LENGTHS)
    m = plan.mask().double().reshape(B, *[1] * (len(shape) - 1 - len(plan.size)), *plan.size)
    torch.testing.assert_close(out.double(), m * x.double() + (1 - m) * x.double()[plan.partner], rtol=1e-5, atol=1e-5)
    assert torch.equal(out == 1e6, padding.expand(shape))
    assert torch.equal(targets, fm.mix_labels(Y, plan, num_classes=K))
    assert (out is given) == inplace


def test_mixup_weighs_labels_by_what_is_heard_of_the_partner():
    """1 - (1-λ)·m/n."""
    plan = fm.MixUp(per="sample").sample(B, (LONG,), lengths=LENGTHS, seed=0)
    m = torch.minimum(LENGTHS, LENGTHS[plan.partner])
    torch.testing.assert_close(plan.weight, 1 - (1 - plan.lam.double()) * m / LENGTHS, rtol=0, atol=1e-7)


@each_method
def test_full_lengths_change_nothing(make):
    mix, x = make(num_classes=K, per="sample"), torch.randn(B, LONG, dtype=torch.float64)
    torch.manual_seed(0)
    plain, targets = mix(x, Y)
    torch.manual_seed(0)
    found, found_targets = mix(x, Y, lengths=torch.full((B,), LONG, dtype=torch.int32))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-4)
    torch.testing.assert_close(found_targets, targets, rtol=0, atol=1e-4)


def test_a_cut_takes_all_of_a_short_sample():
    plan = fm.CutMix(placement="inside").sample(B, (LONG,), lam=0.0, lengths=LENGTHS)
    m = torch.minimum(LENGTHS, LENGTHS[plan.partner])
    assert torch.equal(plan.weight == 0, m == LENGTHS)
    labels = fm.union_labels(Y, plan, num_classes=K)
    assert torch.equal(labels.sum(1) == 1, (m == LENGTHS) | (Y[plan.partner] == Y))


def test_what_is_not_mixed_stays():
    x = torch.randn(B, LONG)
    for mix in (fm.MixUp(p=0.0, num_classes=K), fm.FMix(p=0.0, num_classes=K)):
        assert torch.equal(mix(x, Y, lengths=LENGTHS)[0], x)
        assert mix.sample(B, (LONG,), lengths=LENGTHS).weight.eq(1).all()
    assert fm.CutMix(num_classes=K)(x[:0], Y[:0], lengths=LENGTHS[:0])[0].shape == (0, LONG)


def test_partners_that_are_given():
    partner = torch.tensor([1, 1, 1, 0, 0, 0])
    plan = fm.MixUp().sample(B, (LONG,), lam=0.25, partner=partner, lengths=LENGTHS)
    m = torch.minimum(LENGTHS, LENGTHS[partner])
    torch.testing.assert_close(plan.weight, 1 - 0.75 * m.double() / LENGTHS)
    assert plan.repeats
