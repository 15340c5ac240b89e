"""Mosaic: its law, by slices and in the mean, and what becomes of images, label maps and boxes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import fusedmix as fm
from wrong_calls import check

REFERENCE = {"backend": "reference"}
PERS = ["batch", "pair", "sample"]


def corners(plan):
    """Of each sample and part, whether it is the second of each side, its box and its crop, as slices."""
    d = len(plan.size)
    for i, k in itertools.product(range(plan.batch_size), range(1 << d)):
        behind = [k >> (d - 1 - axis) & 1 for axis in range(d)]
        box, crop = (x[i, k].tolist() for x in plan.patches[1:])
        yield i, k, behind, *(tuple(map(slice, at[:d], at[d:])) for at in (box, crop))


@pytest.mark.parametrize("size", [(11,), (12, 7), (5, 6, 7)], ids=len)
@pytest.mark.parametrize("per", PERS)
def test_by_slices(per, size):
    """At their own scale, parts have the corners of images that lie at the centre."""
    x = torch.rand(6, 2, *size)
    plan = fm.Mosaic(per=per, scale=(1, 1)).sample(6, size, seed=3)
    out, covered = fm.mix(x, plan, **REFERENCE), torch.zeros(6, *size)
    for i, k, behind, to, of in corners(plan):
        for side, second, box, crop in zip(size, behind, to, of, strict=True):
            n = box.stop - box.start
            assert crop == (slice(0, n) if second else slice(side - n, side))
        assert out[i][(slice(None), *to)].equal(x[plan.patches.partner[i, k]][(slice(None), *of)])
        covered[(i, *to)] += 1
        assert plan.terms.weight[i, k] == math.prod(s.stop - s.start for s in to) / math.prod(size)
    assert covered.eq(1).all()
    assert plan.terms.partner[:, 0].tolist() == list(range(6))
    assert plan.terms.partner[:, 1].equal(plan.partner)
    assert len(set(map(tuple, plan.patches.boxes[:, 0].tolist()))) <= {"batch": 1, "pair": 3, "sample": 6}[per]


@pytest.mark.parametrize("resize", ["nearest", "bilinear"])
def test_parts_are_resized(resize):
    """To the scale, or to the least one at which an image fills its part; the corner at the centre stays there."""
    size, scale = (24, 36), 0.5
    x = torch.rand(16, 3, *size)
    plan = fm.Mosaic(per="sample", scale=(scale, scale), resize=resize).sample(16, size, seed=1)
    out = fm.mix(x, plan, **REFERENCE)
    whole = 0
    for i, k, behind, to, of in corners(plan):
        lengths, shown = ([s.stop - s.start for s in at] for at in (to, of))
        least = max(scale, *(n / side for n, side in zip(lengths, size, strict=True)))
        assert shown == [round(n / least) for n in lengths]
        whole += any(n == side for n, side in zip(shown, size, strict=True))
        for second, side, crop in zip(behind, size, of, strict=True):
            assert crop.start == 0 if second else crop.stop == side
        how = {"align_corners": False} if resize == "bilinear" else {}
        part = x[plan.patches.partner[i, k], None][(slice(None), slice(None), *of)]
        expected = F.interpolate(part, lengths, mode=resize, **how)[0]
        torch.testing.assert_close(out[i][(slice(None), *to)], expected, atol=4e-6 if how else 0, rtol=0)
    assert 16 <= whole < 64


def test_the_law():
    """Centres are uniform pixels between two shares of the sides, scales are uniform, both are independent."""
    size, count = (40, 60), 20_000
    plan = fm.Mosaic(per="sample", centre=(0.25, 0.7), scale=(1.0, 2.0)).sample(count, size, seed=2)
    centre = plan.patches.boxes[:, 0, 2:].double()
    for axis, side in enumerate(size):
        low, high = round(0.25 * side), round(0.7 * side)
        counts = centre[:, axis].long().bincount(minlength=side)
        assert counts[:low].sum() + counts[high + 1 :].sum() == 0
        expected = count / (high - low + 1)
        assert (counts[low : high + 1] - expected).abs().max() < 5 * math.sqrt(expected)
    boxes, crops = plan.patches.boxes[:, 0].double(), plan.patches.crops[:, 0].double()
    scale = (boxes[:, 2:] - boxes[:, :2]) / (crops[:, 2:] - crops[:, :2])
    assert abs(scale.mean() - 1.5) < 0.02  # Crops are rounded to pixels.
    correlation = torch.corrcoef(torch.cat((centre, scale[:, :1]), 1).T)
    assert (correlation - torch.eye(3)).abs().max() < 0.05
    same = fm.Mosaic(per="sample", centre=(0.25, 0.7), scale=(1.0, 2.0), sampling="device").sample(9, size, seed=2)
    assert same.patches.boxes.equal(plan.patches.boxes[:9])


def test_samples_that_are_left_alone():
    x = torch.rand(64, 1, 9, 9)
    plan = fm.Mosaic(per="sample", p=0.5).sample(64, (9, 9), seed=1)
    alone = (fm.mix(x, plan, **REFERENCE) == x).flatten(1).all(1)
    assert 16 < alone.sum() < 56
    assert plan.weight[alone].eq(1).all()
    for batch_size in (0, 1):
        few = fm.Mosaic(per="sample").sample(batch_size, (9, 9))
        assert fm.mix(x[:batch_size], few, **REFERENCE).shape == (batch_size, 1, 9, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slices"])
def test_cpp_does_as_the_reference(dtype, layout):
    x = (torch.rand(5, 3, 33, 46) * 255).to(dtype)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "slices":
        x = x[:, :, 2:, ::2]
    for resize in ("nearest", "bilinear"):
        plan = fm.Mosaic(per="sample", resize=resize).sample(5, tuple(x.shape[2:]), seed=4)
        assert fm.mix(x, plan, backend="cpp").equal(fm.mix(x, plan, **REFERENCE))


def test_label_maps_go_along():
    maps = torch.randint(2**40, (5, 16, 12))
    plan = fm.Mosaic(per="sample", resize="nearest").sample(5, (16, 12), seed=4)
    mixed = fm.mix_masks(maps, plan)
    places = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in (5, 16, 12)), indexing="ij"), dim=1)
    assert mixed.equal(maps[tuple(fm.mix(places, plan, **REFERENCE).long().unbind(1))])


def test_a_module_mixes_a_batch():
    x, y = torch.rand(6, 3, 16, 16), torch.arange(6)
    torch.manual_seed(0)
    mixed, targets = fm.Mosaic(num_classes=6, **REFERENCE)(x, y)
    torch.manual_seed(0)
    plan = fm.Mosaic().sample(6, (16, 16))
    assert mixed.equal(fm.mix(x, plan, **REFERENCE))
    torch.testing.assert_close(targets, fm.mix_labels(y, plan, num_classes=6))


def test_attributes():
    mix = fm.Mosaic(centre=(0.5, 0.5), scale=(1, 1), resize="nearest")
    assert (mix.centre, mix.scale, mix.resize) == ((0.5, 0.5), (1.0, 1.0), "nearest")
    assert mix.sample(2, (10, 20)).patches.boxes[0, 0].tolist() == [0, 0, 5, 10]
    mix.centre, mix.scale, mix.resize = (0.1, 0.2), (0.0, 3.0), "bilinear"
    assert repr(mix) == "Mosaic(centre=(0.1, 0.2), scale=(0.0, 3.0), resize='bilinear')"


WRONG = {
    "centre": (lambda: fm.Mosaic(centre=(0.1, 1.2)), "centre[1] must be in [0, 1], but got 1.2"),
    "centre order": (lambda: fm.Mosaic(centre=(0.8, 0.2)), "centre must have low <= high"),
    "scale": (lambda: setattr(fm.Mosaic(), "scale", (-1.0, 1.0)), "scale[0] must be finite and >= 0, but got -1.0"),
    "resize": (lambda: fm.Mosaic(resize="linear"), "Did you mean 'bilinear'?"),
    "in place": (lambda: fm.Mosaic(inplace=True), "inplace must be False for Mosaic"),
    "lam": (lambda: fm.Mosaic().sample(4, (8, 8), lam=0.5), "lam must be None for Mosaic"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls(name):
    call, fragment = WRONG[name]
    check(call, ValueError, [fragment])
