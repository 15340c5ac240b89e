"""Options of CutMix and HMix: where a box is. Against enumerations and laws written a second time."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

import fusedmix as fm
from conftest import NO_CPP
from fusedmix import backends
from fusedmix.draws import CPU
from fusedmix.methods import WIDTH, Column, Number
from mask_formulas import SHORT_OFFSETS, assert_means, float32, moments, sampled_moments

SIZES = [(40,), (24, 40), (31, 17), (9, 8, 7), (2, 5), (1, 9)]
MAKE = {
    "CutMix": fm.CutMix,
    "HMix released": lambda **k: fm.HMix(ratio=0.5, **k),
    "HMix paper": lambda **k: fm.HMix(ratio=0.5, variant="paper", **k),
}


def lengths(lam, ratio, size):
    """The sides of a box that holds (1-λ)·ratio of an image, in pixels, rounded down."""
    d = len(size)
    root = {1: lambda x: x, 2: np.sqrt, 3: lambda x: np.cbrt(x).astype(np.float32).astype(np.float64)}[d]
    fraction = root(1 - np.asarray(lam, np.float64)) * root(np.float64(ratio))
    return np.stack([np.floor(side * fraction).astype(int) for side in size], -1)


def box_of(plan):
    """First and past-the-end pixels (n, d), as NumPy."""
    d = len(plan.size)
    geometry = plan.geometry.numpy()
    return geometry[:, 3 - d : 3], geometry[:, 6 - d : 6]


# ---------------------------------------------------------------------------------------------------------- placement


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MAKE)
def test_boxes_inside_are_whole(name, size, sampling):
    """As long as λ says, and wholly in the image; the label weight is the realised mean."""
    plan = MAKE[name](placement="inside", per="sample", sampling=sampling).sample(500, size, seed=3)
    first, stop = box_of(plan)
    assert (first >= 0).all()
    assert (stop <= np.array(size)).all()
    assert np.array_equal(stop - first, lengths(plan.lam.numpy(), 1.0 if name == "CutMix" else 0.5, size))
    mean = plan.mask().double().flatten(1).mean(1)
    assert (plan.weight - mean).abs().max() <= 1e-6


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("size", [(13,), (6, 9), (4, 5, 6)])
def test_places_inside_are_uniform(size, sampling):
    """Over all places of a box, jointly in all axes."""
    plan = fm.CutMix(placement="inside", per="sample", sampling=sampling).sample(20_000, size, lam=0.5, seed=8)
    places = np.array(size) - lengths(float32(0.5), 1.0, size) + 1
    cell = np.ravel_multi_index(tuple(box_of(plan)[0].T), tuple(places))
    assert stats.chisquare(np.bincount(cell, minlength=math.prod(places))).pvalue > 1e-4


@pytest.mark.parametrize(("size", "lam"), [((24, 40), 0.1), ((31, 17), 0.37), ((24, 40), 0.8)])
@pytest.mark.parametrize("name", MAKE)
def test_boxes_inside_have_the_enumerated_moments(name, size, lam):
    """Of all places, in NumPy."""
    lam, ratio = float32(lam), 1.0 if name == "CutMix" else 0.5
    (height, width), (rows, columns) = lengths(lam, ratio, size), size
    outside = {
        "CutMix": 1.0,
        "HMix released": lam / (1 - height * width / (rows * columns)),
        "HMix paper": lam / (1 - (1 - lam) * ratio),
    }[name]
    masks = np.full(((rows - height + 1) * (columns - width + 1), *size), outside)
    every = itertools.product(range(rows - height + 1), range(columns - width + 1))
    for mask, (y, x) in zip(masks, every, strict=True):
        mask[y : y + height, x : x + width] = 0
    exact = moments(masks, SHORT_OFFSETS)
    exact = np.column_stack((exact, exact[:, 0]))
    drawn = sampled_moments(MAKE[name](placement="inside", per="sample"), 3000, size, lam, SHORT_OFFSETS)
    assert_means(drawn, exact.mean(0), exact.std(0))


@pytest.mark.parametrize("size", [(500,), (200, 300), (90, 80, 100)])
def test_the_label_weight_of_boxes_inside_is_lam(size):
    """But for sides that are rounded down, by less than a pixel each: so it is λ on average too. Clipping makes it
    larger."""
    lam = torch.linspace(0, 1, 401)
    inside = fm.CutMix(placement="inside", per="sample").sample(401, size, lam=lam, seed=1)
    more = inside.weight - lam.double()
    assert (more >= -1e-6).all()
    assert (more <= sum(1 / side for side in size)).all()
    drawn = fm.CutMix(placement="inside", per="sample").sample(4000, size, seed=2).weight.numpy()
    clipped = fm.CutMix(per="sample").sample(4000, size, seed=2).weight.numpy()
    error = drawn.std() / math.sqrt(len(drawn))
    assert -4 * error <= drawn.mean() - 0.5 <= 4 * error + sum(1 / side for side in size)
    assert clipped.mean() - 0.5 > 8 * error


def test_what_boxes_inside_draw_on_the_host():
    """λ, then 32 bits an axis, the last one first; no centre."""
    size, mix = (24, 40), fm.CutMix(placement="inside")
    plan = mix.sample(3, size, seed=5)
    torch.manual_seed(5)
    lam = torch._sample_dirichlet(torch.tensor([1.0, 1.0]))[0]
    x, y = (int(torch.randint(1 << 32, ())) for _ in range(2))
    height, width = lengths(lam.double().numpy(), 1.0, size)
    first = [y * int(size[0] - height + 1) >> 32, x * int(size[1] - width + 1) >> 32]
    assert torch.equal(plan.lam, lam.expand(3))
    assert box_of(plan)[0].tolist() == [first] * 3


@pytest.mark.skipif(NO_CPP is not None, reason=str(NO_CPP))
@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("name", MAKE)
def test_a_step_of_both_backends_is_that_of_a_plan(name, sampling):
    """The short way of a plain step and the long one, by both backends on the CPU; what is drawn later is the same."""
    x, y = torch.rand(8, 3, 16, 23), torch.arange(8)
    made = []
    for backend in ("reference", "cpp"):
        mix = MAKE[name](placement="inside", num_classes=8, sampling=sampling, backend=backend)
        torch.manual_seed(1)
        mixed, targets = mix(x, y)
        made.append((torch.rand(1), targets, mixed))
        torch.manual_seed(1)
        assert torch.equal(fm.mix(x, mix.sample(8, (16, 23)), backend=backend), mixed)
    assert all(torch.allclose(a, b, atol=1e-6, rtol=0) for a, b in zip(*made, strict=True))


def test_only_boxes_around_a_centre_are_empty_on_short_sides():
    """A side of 1 or 2 pixels has no half: what lies inside has no need of one, and there is nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mix in (fm.CutMix(minmax=(0.5, 1.0)), fm.HMix(placement="inside")):
            assert (mix.sample(8, (2, 30), lam=None, seed=1).weight < 1).all()
        either = fm.RandomMix([fm.CutMix(placement="inside"), fm.CutMix()])
        with pytest.raises(UserWarning, match="Boxes are empty"):
            either.sample(8, (2, 30), seed=1)


def test_placement_is_an_attribute():
    mix = fm.CutMix()
    assert mix.placement == "clip"
    assert "placement" not in repr(mix)
    mix.placement = "inside"
    assert "placement='inside'" in repr(mix)
    twin = fm.CutMix(placement="inside")
    assert torch.equal(mix.sample(5, (9, 9), seed=1).masks, twin.sample(5, (9, 9), seed=1).masks)
    mix.placement = "clip"
    assert torch.equal(mix.sample(5, (9, 9), seed=1).masks, fm.CutMix().sample(5, (9, 9), seed=1).masks)


@pytest.mark.parametrize("wrong", ["outside", "Inside", None, 1])
@pytest.mark.parametrize("make", [fm.CutMix, fm.HMix])
def test_placement_is_checked(make, wrong):
    with pytest.raises((TypeError, ValueError), match=rf"placement must be .*clip, inside.*{wrong!r}"):
        make(placement=wrong)
    mix = make()
    with pytest.raises((TypeError, ValueError), match=rf"placement must be .*clip, inside.*{wrong!r}"):
        mix.placement = wrong
    assert mix.placement == "clip"


# ------------------------------------------------------------------------------------------------------------- minmax


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("size", [(40,), (24, 41), (9, 8, 7)])
def test_sides_of_minmax_are_uniform(size, sampling):
    """As timm draws them, numpy.random.randint(int(side·low), int(side·high)), each for itself; λ follows from them."""
    low, high = 0.2, 0.7
    plan = fm.CutMix(minmax=(low, high), per="sample", sampling=sampling).sample(20_000, size, seed=4)
    first, stop = box_of(plan)
    choices = [int(side * high) - int(side * low) for side in size]
    past = stop - first - [int(side * low) for side in size]
    assert (past >= 0).all()
    cell = np.ravel_multi_index(tuple(past.T), choices)  # raises where a side is too long
    assert stats.chisquare(np.bincount(cell, minlength=math.prod(choices))).pvalue > 1e-4
    for axis, side in enumerate(size):  # the place among those that a box of that length has
        places = side - (stop - first)[:, axis] + 1
        assert (first[:, axis] < places).all()
        assert (first[:, axis] >= 0).all()
        spread = (first[:, axis] + np.random.default_rng(axis).random(len(first))) / places
        assert stats.kstest(spread, "uniform").pvalue > 1e-4
    weight = 1 - (stop - first).prod(1) / math.prod(size)
    assert np.abs(plan.weight.numpy() - weight).max() <= 1e-13
    assert torch.equal(plan.lam, plan.weight.float())


def test_minmax_has_the_law_of_timm():
    """Label weights and sides of timm's own cutmix_minmax, a batch each."""
    mixup = pytest.importorskip("timm.data.mixup")
    np.random.seed(3)
    theirs = [mixup.rand_bbox_minmax((3, 30, 45), (0.3, 0.8)) for _ in range(4000)]
    theirs = np.array([(1 - (yh - yl) * (xh - xl) / (30 * 45), yh - yl, xh - xl) for yl, yh, xl, xh in theirs])
    plan = fm.CutMix(minmax=(0.3, 0.8), per="sample").sample(4000, (30, 45), seed=3)
    first, stop = box_of(plan)
    ours = np.column_stack((plan.weight, stop - first))
    for a, b in zip(ours.T, theirs.T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-4
        assert abs(a.mean() - b.mean()) <= 4 * math.sqrt((a.var() + b.var()) / 4000)


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_minmax_draws_no_lam(sampling):
    """So α and what is drawn for λ change nothing; a sample that is not mixed has λ = 1."""
    make = {"minmax": (0.2, 0.7), "per": "sample", "sampling": sampling}
    plan, other = (fm.CutMix(alpha=alpha, **make).sample(50, (20, 30), seed=2) for alpha in (0.1, 3.0))
    assert torch.equal(plan.masks, other.masks)
    assert (plan.weight < 1).all()
    some = fm.RandomMix([fm.CutMix(minmax=(0.2, 0.7), p=0.5), fm.MixUp()], per="sample", sampling=sampling)
    plan = some.sample(400, (20, 30), seed=2)
    mean = plan.mask().double().flatten(1).mean(1)
    assert (plan.weight - mean).abs().max() <= 1e-6
    assert (plan.lam - mean).abs().max() <= 1e-6
    assert (plan.lam == 1).sum() > 50


def test_sides_too_short_for_a_choice():
    """One length is left, or none."""
    for size in ((1, 1), (2, 3), (1,), (1, 2, 1)):
        plan = fm.CutMix(minmax=(0.5, 0.6), per="sample").sample(30, size, seed=1)
        first, stop = box_of(plan)
        assert np.array_equal(stop - first, np.tile([side // 2 for side in size], (30, 1)))
        assert (first >= 0).all()
        assert (stop <= np.array(size)).all()


def test_minmax_is_an_attribute():
    mix = fm.CutMix(num_classes=5)
    assert mix.minmax is None
    assert "minmax" not in repr(mix)
    mix.minmax = [0.2, 0.5]
    assert mix.minmax == (0.2, 0.5)
    assert "minmax=(0.2, 0.5)" in repr(mix)
    twin = fm.CutMix(minmax=(0.2, 0.5))
    assert torch.equal(mix.sample(5, (9, 9), seed=1).masks, twin.sample(5, (9, 9), seed=1).masks)
    with pytest.raises(ValueError, match=r"minmax and placement exclude each other.*\(0\.2, 0\.5\).*'inside'"):
        mix.placement = "inside"
    mix.minmax = None
    assert torch.equal(mix.sample(5, (9, 9), seed=1).masks, fm.CutMix().sample(5, (9, 9), seed=1).masks)
    mix.placement = "inside"
    with pytest.raises(ValueError, match="minmax and placement exclude each other"):
        mix.minmax = (0.2, 0.5)
    assert mix.minmax is None


@pytest.mark.parametrize("wrong", [(0.5, 0.5), (0.6, 0.2), (-0.1, 0.5), (0.2, 1.1), (0.2,), 0.3, "ab", (0.1, math.nan)])
def test_minmax_is_checked(wrong):
    with pytest.raises((TypeError, ValueError), match="minmax"):
        fm.CutMix(minmax=wrong)
    mix = fm.CutMix()
    with pytest.raises((TypeError, ValueError), match="minmax"):
        mix.minmax = wrong
    assert mix.minmax is None


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_sides_follow_from_a_lam_that_is_given(sampling):
    """As with placement="inside"; so nothing is mixed in evaluation mode by a module for training only."""
    mix = fm.CutMix(minmax=(0.2, 0.5), per="sample", sampling=sampling, training_only=True)
    lam = torch.linspace(0, 1, 30)
    for given in (lam, torch.tensor(0.3)):
        plan = mix.sample(30, (20, 30), lam=given, seed=1)
        first, stop = box_of(plan)
        assert torch.equal(plan.lam, given.expand(30))
        assert np.array_equal(stop - first, lengths(plan.lam.numpy(), 1.0, (20, 30)))
        assert (first >= 0).all()
        assert (stop <= np.array((20, 30))).all()
    plan = mix.eval().sample(30, (20, 30))
    assert (plan.weight == 1).all()
    assert (plan.mask() == 1).all()


# ------------------------------------------------------------------------------------------------------------- aspect


def shaped_boxes(lam, ratio, aspects, size):
    """The (height, width) of boxes of (1-λ)·ratio of an image and of width/height `aspects`, by solving for them."""
    area = (1 - lam) * ratio * size[0] * size[1]
    height, width = np.sqrt(area / aspects), np.sqrt(area * aspects)
    over = height > size[0]
    height, width = np.where(over, size[0], height), np.where(over, area / size[0], width)
    over = width > size[1]
    return np.where(over, area / size[1], height), np.where(over, size[1], width)


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("placement", ["clip", "inside"])
@pytest.mark.parametrize("name", MAKE)
def test_aspects_are_log_uniform_and_keep_the_area(name, placement, sampling):
    size, (low, high), lam, ratio = (700, 1100), (0.4, 1.5), float32(0.8), 1.0 if name == "CutMix" else 0.5
    make = MAKE[name](aspect=(low, high), placement=placement, per="sample", sampling=sampling)
    plan = make.sample(4000, size, lam=lam, seed=11)
    first, stop = box_of(plan)
    whole = (first > 0).all(1) & (stop < np.array(size)).all(1)  # where it is clear that no border clips them
    length = (stop - first)[whole] + np.random.default_rng(0).random((whole.sum(), 2)) * (
        2 if placement == "clip" else 1
    )
    aspect = length[:, 1] / length[:, 0]
    assert np.abs(length.prod(1) / ((1 - lam) * ratio * math.prod(size)) - 1).max() < 0.03
    assert aspect.min() > 0.97 * low
    assert aspect.max() < 1.03 * high
    if placement == "inside":
        assert stats.kstest(np.log(aspect / low) / math.log(high / low), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (5, 300)])
@pytest.mark.parametrize("aspect", [(1e-6, 1e-6), (0.2, 0.2), (1.0, 1.0), (30.0, 30.0), (1e6, 1e6)])
def test_boxes_that_would_not_fit_span_the_image(aspect, size):
    lam = np.linspace(0, 1, 101).astype(np.float32).astype(np.float64)
    module = fm.CutMix(aspect=aspect, placement="inside", per="sample")
    plan = module.sample(101, size, lam=torch.tensor(lam), seed=2)
    first, stop = box_of(plan)
    assert (first >= 0).all()
    assert (stop <= np.array(size)).all()
    expected = np.stack(shaped_boxes(lam, 1.0, aspect[0], size), -1)
    found = stop - first
    slack = 1e-6 * np.array(size)  # an exponential is rounded to float32
    assert (found <= np.floor(expected + slack)).all()
    assert (found >= np.floor(expected - slack)).all()
    spans = (expected == np.array(size)) & (lam[:, None] < 1)
    assert (found[spans] == np.broadcast_to(size, found.shape)[spans]).all()


@pytest.mark.parametrize("name", MAKE)
def test_boxes_of_drawn_aspects_have_the_moments_of_all_aspects(name):
    """Integrated over aspects, and enumerated over places, in NumPy."""
    size, (low, high), lam, ratio = (24, 40), (0.3, 4.0), float32(0.3), 1.0 if name == "CutMix" else 0.5
    rows, columns = size
    quantiles = (np.arange(20_000) + 0.5) / 20_000
    height, width = (np.floor(x).astype(int) for x in shaped_boxes(lam, ratio, low * (high / low) ** quantiles, size))
    expected = 0.0
    for (h, w), count in zip(*np.unique(np.stack((height, width), 1), axis=0, return_counts=True), strict=True):
        outside = {
            "CutMix": 1.0,
            "HMix released": lam / (1 - h * w / (rows * columns)),
            "HMix paper": lam / (1 - (1 - lam) * ratio),
        }[name]
        masks = np.full(((rows - h + 1) * (columns - w + 1), *size), outside)
        for mask, (y, x) in zip(masks, np.ndindex(rows - h + 1, columns - w + 1), strict=True):
            mask[y : y + h, x : x + w] = 0
        exact = moments(masks, SHORT_OFFSETS)
        weight = masks.mean((1, 2))
        expected = expected + count / len(quantiles) * np.column_stack((exact, weight)).mean(0)
    module = MAKE[name](aspect=(low, high), placement="inside", per="sample")
    assert_means(sampled_moments(module, 4000, size, lam, SHORT_OFFSETS), expected)


def test_a_signal_of_one_axis_has_no_aspect():
    for sampling in ("host", "device"):
        plain, other = (
            fm.CutMix(aspect=aspect, per="sample", sampling=sampling).sample(9, (30,), seed=1)
            for aspect in (None, (2, 3))
        )
        assert torch.equal(plain.masks, other.masks)


def test_aspect_is_an_attribute():
    mix = fm.HMix(num_classes=5)
    assert mix.aspect is None
    assert "aspect" not in repr(mix)
    mix.aspect = [0.5, 2]
    assert mix.aspect == (0.5, 2.0)
    assert "aspect=(0.5, 2.0)" in repr(mix)
    twin = fm.HMix(aspect=(0.5, 2.0))
    assert torch.equal(mix.sample(5, (9, 9), seed=1).masks, twin.sample(5, (9, 9), seed=1).masks)
    mix.aspect = None
    assert torch.equal(mix.sample(5, (9, 9), seed=1).masks, fm.HMix().sample(5, (9, 9), seed=1).masks)
    with pytest.raises(ValueError, match=r"minmax and aspect exclude each other.*\(0\.2, 0\.5\).*\(1, 2\)"):
        fm.CutMix(minmax=(0.2, 0.5), aspect=(1, 2))
    cut = fm.CutMix(minmax=(0.2, 0.5))
    with pytest.raises(ValueError, match="minmax and aspect exclude each other"):
        cut.aspect = (1, 2)
    assert cut.aspect is None


@pytest.mark.parametrize("wrong", [(2, 1), (0, 1), (-1, 1), (1, math.inf), (1, math.nan), (1,), 1.0, "ab"])
def test_aspect_is_checked(wrong):
    for make in (fm.CutMix, fm.HMix):
        with pytest.raises((TypeError, ValueError), match="aspect"):
            make(aspect=wrong)
        mix = make()
        with pytest.raises((TypeError, ValueError), match="aspect"):
            mix.aspect = wrong
        assert mix.aspect is None


# ------------------------------------------------------------------------------------------------------------- ratios


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("gamma", [0.3, 1.0, 4.0])
def test_ratios_are_beta(gamma, sampling):
    """Found in the paper's value outside of the box, λ/(1-(1-λ)·ratio)."""
    lam = float32(0.25)
    mix = fm.HMix(ratio_alpha=gamma, variant="paper", per="sample", sampling=sampling)
    outside = mix.sample(5000, (8, 8), lam=lam, seed=3).value[:, 0].double().numpy()
    ratio = (1 - lam / outside) / (1 - lam)
    assert stats.kstest(np.clip(ratio, 0, 1), stats.beta(gamma, gamma).cdf).pvalue > 1e-4


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_ratios_do_not_depend_on_lam(sampling):
    """Two numbers of the same law: from the same numbers they would be equal."""
    plan = fm.HMix(ratio_alpha=1.0, variant="paper", per="sample", sampling=sampling).sample(4000, (8, 8), seed=3)
    lam, outside = plan.lam.double().numpy(), plan.value[:, 0].double().numpy()
    ratio = (1 - lam / outside) / (1 - lam)
    assert stats.pearsonr(lam[lam < 0.99], ratio[lam < 0.99]).pvalue > 1e-4


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_boxes_of_drawn_ratios_have_the_moments_of_all_ratios(variant):
    """Integrated over ratios, and enumerated over places, in NumPy."""
    size, gamma, lam = (24, 40), 2.0, float32(0.3)
    ratios = stats.beta(gamma, gamma).ppf((np.arange(2000) + 0.5) / 2000)
    found, expected = {}, 0.0
    for ratio, (h, w) in zip(ratios, lengths(lam, ratios, size).tolist(), strict=True):
        if (h, w) not in found:
            boxes = np.zeros(((size[0] - h + 1) * (size[1] - w + 1), *size))
            for box, (y, x) in zip(boxes, np.ndindex(size[0] - h + 1, size[1] - w + 1), strict=True):
                box[y : y + h, x : x + w] = 1
            pairs = [(boxes[:, : size[0] - dy, : size[1] - dx], boxes[:, dy:, dx:]) for dy, dx in SHORT_OFFSETS]
            found[h, w] = [(box.mean() + other.mean(), (box * other).mean()) for box, other in pairs]
        rest = 1 - h * w / math.prod(size)
        outside = lam / rest if variant == "released" else lam / (1 - (1 - lam) * ratio)
        # 1-M is 1-outside, and outside more in the box.
        of_pairs = [(1 - outside) ** 2 + (1 - outside) * outside * one + outside**2 * two for one, two in found[h, w]]
        expected = expected + np.array([outside * rest, *of_pairs]) / len(ratios)
    module = fm.HMix(ratio_alpha=gamma, variant=variant, placement="inside", per="sample")
    drawn = sampled_moments(module, 4000, size, lam, SHORT_OFFSETS)
    assert_means(drawn[:, :-1], expected)
    assert np.abs(drawn[:, -1] - (drawn[:, 0] if variant == "paper" else lam)).max() <= 1e-6


def test_what_a_drawn_ratio_draws_on_the_host():
    """λ, the ratio, the partners, then the centre."""
    size, mix = (24, 40), fm.HMix(ratio_alpha=2.0, variant="paper", pairing="random")
    plan = mix.sample(6, size, seed=5)
    torch.manual_seed(5)
    lam = torch._sample_dirichlet(torch.tensor([1.0, 1.0]))[0]
    ratio = torch._sample_dirichlet(torch.tensor([2.0, 2.0]))[0].double()
    partner = torch.randperm(6)
    x, y = (int(torch.randint(side, ())) for side in (40, 24))
    outside = (lam.double() / ((1 - ratio) + lam.double() * ratio)).float()
    assert torch.equal(plan.lam, lam.expand(6))
    assert torch.equal(plan.partner, partner)
    assert torch.equal(plan.value[:, 0], outside.expand(6))
    half = lengths(lam.double().numpy(), ratio.numpy(), size) // 2
    first = np.maximum(np.array([y, x]) - half, 0)
    assert box_of(plan)[0].tolist() == [first.tolist()] * 6


def test_ratio_alpha_is_an_attribute():
    mix = fm.HMix(num_classes=5)
    assert mix.ratio_alpha is None
    assert "ratio=0.75" in repr(mix)
    mix.ratio_alpha = 2
    assert mix.ratio_alpha == 2.0
    assert "ratio_alpha=2.0" in repr(mix)
    assert "ratio=" not in repr(mix)
    twin = fm.HMix(ratio_alpha=2.0, ratio=0.1)
    assert torch.equal(mix.sample(5, (9, 9), seed=1).masks, twin.sample(5, (9, 9), seed=1).masks)
    mix.ratio_alpha = None
    assert torch.equal(mix.sample(5, (9, 9), seed=1).masks, fm.HMix().sample(5, (9, 9), seed=1).masks)


@pytest.mark.parametrize("wrong", [0, -1.0, math.inf, math.nan, "beta", (1, 2)])
def test_ratio_alpha_is_checked(wrong):
    mix = fm.HMix()
    with pytest.raises((TypeError, ValueError), match="ratio_alpha"):
        fm.HMix(ratio_alpha=wrong)
    with pytest.raises((TypeError, ValueError), match="ratio_alpha"):
        mix.ratio_alpha = wrong
    assert mix.ratio_alpha is None


# ------------------------------------------------------------------------------------------------- what operators take


@pytest.mark.parametrize(
    "name", ["reference", pytest.param("cpp", marks=pytest.mark.skipif(NO_CPP is not None, reason=str(NO_CPP)))]
)
def test_operators_refuse_what_no_module_makes(name):
    sample, spec = backends.operators("cpu", name).sample, fm.HMix(ratio_alpha=1.0)._spec
    rest = [4, [6, 6], 0, 0, 1.0, None, None]
    columns = {
        Column.SIDE_LOW: (-0.1, 0.5, math.nan),  # more than SIDE_HIGH
        Column.SIDE_HIGH: (1.1, math.nan),
        Column.ASPECT_LOW: (-1.0, 1.0, math.nan),  # more than ASPECT_HIGH
        Column.ASPECT_HIGH: (math.inf, math.nan),
        Column.RATIO_ALPHA: (-1.0, math.nan),
    }
    for column, value in ((column, value) for column, values in columns.items() for value in values):
        bad = spec.clone()
        bad[0, column] = value
        with pytest.raises((ValueError, RuntimeError), match="row 0 of spec describes no method"):
            sample(bad, *rest, torch.tensor(1), None, None, CPU)
    drawn = torch.zeros(1, WIDTH, dtype=torch.float64)
    sample(spec, *rest, None, drawn, None, CPU)
    of_bits = range(Number.PLACE, Number.RATIO)
    for number, value in [
        *itertools.product(of_bits, (-1.0, 2.0**32, math.nan)),
        (Number.RATIO, 1.1),
        (Number.RATIO, -0.1),
    ]:
        bad = drawn.clone()
        bad[0, number] = value
        with pytest.raises((ValueError, RuntimeError), match=r"drawn .*\[0, 2\^32\)"):
            sample(spec, *rest, None, bad, None, CPU)
