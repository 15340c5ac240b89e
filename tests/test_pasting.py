"""ResizeMix and RICAP: their laws, by enumeration and by slices, and what becomes of labels and label maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fusedmix as fm
from fusedmix.methods import Pairing
from fusedmix.partners import further
from wrong_calls import check

REFERENCE = {"backend": "reference"}
PERS = ["batch", "pair", "sample"]


def boxes_of(plan):
    return plan.patches.boxes[:, 0].tolist()


@pytest.mark.parametrize("resize", ["nearest", "bilinear"])
@pytest.mark.parametrize("per", PERS)
def test_the_whole_partner_stands_in_the_box(per, resize):
    x = torch.rand(7, 3, 20, 33)
    plan = fm.ResizeMix(per=per, resize=resize).sample(7, (20, 33), seed=2)
    out = fm.mix(x, plan, **REFERENCE)
    how = {"align_corners": False} if resize == "bilinear" else {}
    for i, (top, left, bottom, right) in enumerate(boxes_of(plan)):
        expected = x[i].clone()
        if bottom > top and right > left:
            whole = x[plan.partner[i], None]
            expected[:, top:bottom, left:right] = F.interpolate(
                whole, (bottom - top, right - left), mode=resize, **how
            )[0]
        torch.testing.assert_close(out[i], expected, atol=4e-6 if how else 0, rtol=0)
        area = (bottom - top) * (right - left)
        assert plan.weight[i] == 1 - area / (20 * 33)
    different = len(set(map(tuple, boxes_of(plan))))
    assert different == {"batch": 1, "pair": 4, "sample": 7}[per]
    if per == "pair":
        assert boxes_of(plan) == boxes_of(plan)[::-1]


def test_the_law_of_resizemix():
    """Against the mean of the clipped area over every centre and a fine grid of τ, as the authors' code draws them."""
    size, count = (24, 37), 20_000
    plan = fm.ResizeMix(per="sample", scope=(0.1, 0.8)).sample(count, size, seed=5)
    taus = 0.1 + 0.7 * (np.arange(20_000) + 0.5) / 20_000

    def moments(side):
        centre, half = np.arange(side), np.arange(side // 2 + 1)[:, None]
        length = np.minimum(centre + half, side) - np.maximum(centre - half, 0)
        of_tau = (taus * side).astype(int) // 2
        return length.mean(1)[of_tau], (length**2).mean(1)[of_tau]

    (h, h2), (w, w2) = map(moments, size)
    pixels = math.prod(size)
    mean, square = (h * w).mean() / pixels, (h2 * w2).mean() / pixels**2
    shares = 1 - plan.weight.numpy()
    assert abs(shares.mean() - mean) < 4 * shares.std() / math.sqrt(count)
    assert abs((shares**2).mean() - square) < 4 * (shares**2).std() / math.sqrt(count)


def test_a_given_lam_takes_the_place_of_tau():
    plan = fm.ResizeMix(per="sample").sample(3, (64, 64), lam=torch.tensor([1.0, 0.75, 0.0]), seed=0)
    boxes = plan.patches.boxes[:, 0]
    assert boxes[0, 0] == boxes[0, 2]
    assert (boxes[1, 2:] - boxes[1, :2]).le(32).all()
    assert (boxes[2, 2:] - boxes[2, :2]).le(64).all()
    assert plan.lam.tolist() == [1.0, 0.75, 0.0]


@pytest.mark.parametrize("make", [fm.ResizeMix, fm.RICAP], ids=lambda make: make.__name__)
def test_samples_that_are_left_alone(make):
    x = torch.rand(64, 1, 9, 9)
    plan = make(per="sample", p=0.5).sample(64, (9, 9), seed=1)
    out = fm.mix(x, plan, **REFERENCE)
    alone = (out == x).flatten(1).all(1)
    assert 16 < alone.sum() < 56
    assert plan.weight[alone].eq(1).all()
    assert fm.mix(x, make(p=0.0).sample(64, (9, 9)), **REFERENCE).equal(x)


@pytest.mark.parametrize("size", [(11,), (12, 7), (5, 6, 7)], ids=len)
@pytest.mark.parametrize("per", PERS)
def test_ricap_by_slices(per, size):
    d, x = len(size), torch.rand(6, 2, *size)
    plan = fm.RICAP(per=per).sample(6, size, seed=3)
    out = fm.mix(x, plan, **REFERENCE)
    covered = torch.zeros(6, *size)
    for i in range(6):
        for k in range(1 << d):
            box, crop = plan.patches.boxes[i, k].tolist(), plan.patches.crops[i, k].tolist()
            to, of = (tuple(slice(a, b) for a, b in zip(at[:d], at[d:], strict=True)) for at in (box, crop))
            source = x[plan.patches.partner[i, k]]
            assert out[i][(slice(None), *to)].equal(source[(slice(None), *of)])
            covered[(i, *to)] += 1
            area = math.prod(s.stop - s.start for s in to)
            assert plan.terms.weight[i, k] == area / math.prod(size)
    assert covered.eq(1).all()
    torch.testing.assert_close(plan.mask().flatten(1).double().mean(1), plan.weight)
    assert plan.terms.partner[:, 0].tolist() == list(range(6))
    assert plan.terms.partner[:, 1].equal(plan.partner)


def test_the_law_of_ricap():
    """Cuts as NumPy draws them, by the formula of the paper, and crops at uniform places."""
    size, count = (40, 60), 20_000
    plan = fm.RICAP(per="sample", sampling="device").sample(count, size, seed=1)
    cuts = plan.patches.boxes[:, 0, 2:].numpy()
    drawn = np.random.default_rng(0).beta(0.3, 0.3, (10 * count, 2))
    expected = np.round(drawn * size)
    for power in (1, 2):
        ours, theirs = cuts.astype(float) ** power, expected**power
        error = np.sqrt(ours.var(0) / len(ours) + theirs.var(0) / len(theirs))
        assert (abs(ours.mean(0) - theirs.mean(0)) < 4 * error).all()
    assert abs(np.corrcoef(cuts.T)[0, 1]) < 4 / math.sqrt(count)
    boxes, crops = plan.patches.boxes, plan.patches.crops
    room = torch.tensor(size) - (boxes[:, :, 2:] - boxes[:, :, :2])
    assert (crops[:, :, 2:] - crops[:, :, :2]).equal(boxes[:, :, 2:] - boxes[:, :, :2])
    for of_room, start in zip(room.flatten(1).T, crops[:, :, :2].flatten(1).T, strict=True):
        share = (start / of_room)[of_room > 0].double()
        assert abs(share.mean() - 0.5) < 4 * share.std() / math.sqrt(len(share))


@pytest.mark.parametrize("pairing", Pairing, ids=lambda pairing: pairing.name)
def test_further_partners_are_permutations(pairing):
    labels = torch.arange(24) % 4
    plan = fm.MixUp(pairing=pairing.name.lower(), per="sample").sample(24, (4, 4), seed=9, labels=labels)
    several = further(plan.partner, pairing, torch.tensor(9), 3)
    assert several.sort(0).values.equal(torch.arange(24).unsqueeze(1).expand(24, 3))
    if not pairing.by_class:
        assert (several[:, 0] != several[:, 1]).any()
    if pairing == Pairing.SAME_CLASS:
        assert labels[several].eq(labels.unsqueeze(1)).all()
    if pairing == Pairing.ROLL:
        assert several[0].tolist() == [23, 22, 21]


@pytest.mark.parametrize("make", [fm.ResizeMix, fm.RICAP], ids=lambda make: make.__name__)
def test_label_maps_go_along(make):
    maps = torch.randint(2**40, (5, 16, 12))
    plan = make(per="sample").sample(5, (16, 12), seed=4)
    mixed = fm.mix_masks(maps, plan)
    assert mixed.dtype == maps.dtype
    places = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in (5, 16, 12)), indexing="ij"), dim=1)
    assert mixed.equal(maps[tuple(fm.mix(places, plan, **REFERENCE).long().unbind(1))])


def test_a_module_mixes_a_batch():
    x, y = torch.rand(6, 3, 16, 16), torch.arange(6)
    torch.manual_seed(0)
    mixed, targets = fm.ResizeMix(num_classes=6, **REFERENCE)(x, y)
    torch.manual_seed(0)
    plan = fm.ResizeMix().sample(6, (16, 16))
    assert mixed.equal(fm.mix(x, plan, **REFERENCE))
    torch.testing.assert_close(targets, fm.mix_labels(y, plan, num_classes=6))
    drawn = fm.ResizeMix(sampling="device").sample(6, (16, 16), seed=7)
    assert boxes_of(drawn) == boxes_of(fm.ResizeMix(sampling="device").sample(6, (16, 16), seed=7))
    for batch_size in (0, 1):
        out = fm.RICAP(per="sample").sample(batch_size, (16, 16))
        assert fm.mix(x[:batch_size], out, **REFERENCE).shape == (batch_size, 3, 16, 16)


def test_attributes():
    mix = fm.ResizeMix(scope=(0.2, 0.3), resize="bilinear")
    assert (mix.scope, mix.resize) == ((0.2, 0.3), "bilinear")
    mix.scope, mix.resize = (0.5, 0.5), "nearest"
    plan = mix.sample(9, (40, 40), seed=1)
    box = plan.patches.boxes[0, 0]
    assert (box[2:] - box[:2]).le(20).all()
    ricap = fm.RICAP(beta=1.5)
    ricap.beta = 0.4
    assert "beta=0.4" in repr(ricap)
    assert "scope=(0.5, 0.5)" in repr(mix)


WRONG = {
    "scope": (ValueError, lambda: fm.ResizeMix(scope=(0.1, 1.2)), "scope[1] must be in [0, 1], but got 1.2"),
    "scope order": (ValueError, lambda: fm.ResizeMix(scope=(0.8, 0.1)), "scope must have low <= high"),
    "resize": (ValueError, lambda: fm.ResizeMix(resize="linear"), "Did you mean 'bilinear'?"),
    "beta": (ValueError, lambda: fm.RICAP(beta=0.0), "beta must be finite and > 0, but got 0.0"),
    "in place": (ValueError, lambda: fm.RICAP(inplace=True), "inplace must be False for RICAP"),
    "in place later": (ValueError, lambda: setattr(fm.ResizeMix(), "inplace", True), "inplace must be False"),
    "finish": (ValueError, lambda: fm.ResizeMix(finish=fm.Finish(normalize=None)), "finish must be None for ResizeMix"),
    "lam": (ValueError, lambda: fm.RICAP().sample(4, (8, 8), lam=0.5), "lam must be None for RICAP"),
    "a set": (TypeError, lambda: fm.RandomMix([fm.MixUp(), fm.ResizeMix()]), "of fusedmix, but got ResizeMix."),
    "attach": (ValueError, lambda: fm.attach(torch.nn.Identity(), fm.RICAP()), "whose plan is made for the images"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls(name):
    exception, call, fragment = WRONG[name]
    check(call, exception, [fragment])
