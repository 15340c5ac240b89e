"""Masks and label weights against their mathematics, written a second time in NumPy and in Python's integers."""

from __future__ import annotations

import itertools
import math
import random
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

import fusedmix as fm
from families import RECORDS
from fusedmix.masks.family import own_uniform
from fusedmix.methods import Kind, Method
from mask_formulas import (
    METHODS,
    MOMENTS,
    OFFSETS,
    PUBLISHED,
    SHORT_OFFSETS,
    all_centres,
    assert_means,
    draws_at,
    float32,
    formula_at,
    moments,
    oracle,
    plan_at,
    record_of,
    sampled_moments,
)

HMIX_RELEASED = [name for name in METHODS if name.startswith("HMix released")]

# ------------------------------------------------------------------------------------------ first and second moments


@pytest.mark.parametrize("name", ["CutMix", "HMix released .5", "HMix paper .5", "GMix released", "GMix paper"])
def test_the_oracle_has_the_published_moments(name):
    """Enumerated over all centres, to the six digits that are published."""
    offsets = [(0, 0), (16, 0), (16, 16)]
    chunks = np.array_split(np.stack(all_centres((64, 64))), 8, axis=1)
    rows = [moments(oracle(name, 0.5, cy, cx, (64, 64)), offsets) for cy, cx in chunks]
    published = [MOMENTS[name][0], *(MOMENTS[name][1 + OFFSETS.index(d)] for d in offsets)]
    assert np.abs(np.concatenate(rows).mean(0) - published).max() <= 0.6e-6


@pytest.mark.parametrize("name", PUBLISHED)
def test_sampled_masks_have_the_published_moments(name):
    drawn = sampled_moments(METHODS[name][0](per="sample"), 4000, (64, 64), 0.5, OFFSETS)
    assert_means(drawn[:, :-1], np.array(MOMENTS[name]))


def test_stochastic_mixup_and_cutmix_has_the_published_moments():
    mix = fm.RandomMix([fm.MixUp(), fm.CutMix()], per="sample")
    assert_means(sampled_moments(mix, 4000, (64, 64), 0.5, OFFSETS)[:, :-1], np.array(MOMENTS["Stochastic"]))


def enumerated(name: str, size: tuple[int, int], lam: float, offsets: list[tuple[int, int]]) -> np.ndarray:
    """The moments at every centre; their last column is the label weight, the realised mean. Of numbers that a family
    draws itself there are four for each centre, in all as evenly spread as multiples of irrational numbers are."""
    centres, own_numbers = np.stack(all_centres(size)), record_of(name).own_numbers
    if own_numbers:
        centres = centres.repeat(4, axis=1)
    own = np.modf(np.sqrt([[2], [3], [5], [7]])[:own_numbers] * np.arange(1, centres.shape[1] + 1))[0]
    rows = moments(oracle(name, float32(lam), *centres, size, *own), offsets)
    return np.column_stack((rows, rows[:, 0]))


@pytest.mark.parametrize(("size", "lam"), [((24, 40), 0.1), ((31, 17), 0.37), ((24, 40), 0.8), ((17, 31), 0.8)])
@pytest.mark.parametrize("name", METHODS)
def test_sampled_masks_have_the_enumerated_moments(name, size, lam):
    exact = enumerated(name, size, lam, SHORT_OFFSETS)
    drawn = sampled_moments(METHODS[name][0](per="sample"), 3000, size, lam, SHORT_OFFSETS)
    assert_means(drawn, exact.mean(0), exact.std(0))


@pytest.mark.parametrize("name", ["CutMix", "HMix released .5", "GMix paper"])
def test_masks_of_batches_have_the_enumerated_moments(name):
    """Host sampling, one draw a batch, over seeds."""
    exact = enumerated(name, (31, 17), 0.37, SHORT_OFFSETS)
    mix = METHODS[name][0]()
    plans = [mix.sample(1, (31, 17), lam=0.37, seed=seed) for seed in range(800)]
    masks = torch.cat([plan.mask() for plan in plans]).numpy()
    drawn = np.column_stack((moments(masks, SHORT_OFFSETS), torch.cat([plan.weight for plan in plans])))
    assert_means(drawn, exact.mean(0), exact.std(0))


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("name", ["CutMix", "HMix paper .5", "GMix released"])
def test_masks_of_pairs_have_the_enumerated_moments(name, sampling):
    """Both of a pair have one mask, and the pairs are independent draws."""
    exact = enumerated(name, (24, 40), 0.37, SHORT_OFFSETS)
    plan = METHODS[name][0](per="pair", pairing="flip", sampling=sampling).sample(4001, (24, 40), lam=0.37, seed=1)
    masks = plan.mask()
    assert torch.equal(masks, masks.flip(0))
    assert torch.equal(plan.weight, plan.weight.flip(0))
    drawn = np.column_stack((moments(masks[:2001].numpy(), SHORT_OFFSETS), plan.weight[:2001]))
    assert_means(drawn, exact.mean(0), exact.std(0))


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("size", [(13,), (5, 8), (3, 4, 5)])
def test_centres_are_uniform(size, sampling):
    """Over pixels, jointly in all axes."""
    centre = fm.GMix(per="sample", sampling=sampling).sample(30_000, size, lam=0.5, seed=8).geometry[:, :3]
    cell = np.ravel_multi_index(tuple(centre[:, 3 - len(size) :].T.numpy()), size)
    assert stats.chisquare(np.bincount(cell, minlength=math.prod(size))).pvalue > 1e-4


# ------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("lam", [0.02, 0.1, 0.37, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("size", [(24, 40), (31, 17), (1, 9), (6, 1)])
@pytest.mark.parametrize("name", METHODS)
def test_masks_at_every_centre(name, size, lam):
    """To 4·2⁻²⁴ of the definition, and the label weight is the mean."""
    lam = float32(lam)
    centre = torch.from_numpy(np.stack(all_centres(size), 1))
    plan, draws = plan_at(name, lam, centre, size), draws_at(torch.full((len(centre),), lam), centre)
    own = [own_uniform(draws, k).numpy() for k in range(record_of(name).own_numbers)]
    expected = oracle(name, lam, *all_centres(size), size, *own)
    assert np.abs(plan.mask().numpy() - expected).max() <= 4 * 2.0**-24
    assert np.abs(plan.weight.numpy() - expected.mean((1, 2))).max() <= 1e-6


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("size", [(40,), (24, 40), (31, 17), (9, 8, 7)])
@pytest.mark.parametrize("name", METHODS)
def test_label_weight_is_the_mean_of_the_mask(name, size, sampling):
    plan = METHODS[name][0](alpha=0.5, per="sample", sampling=sampling).sample(500, size, seed=3)
    mean = plan.mask().double().flatten(1).mean(1)
    assert plan.weight.dtype == torch.float64
    assert (plan.weight - mean).abs().max() <= 1e-6


def test_sample_pairing_keeps_its_label():
    plan = fm.SamplePairing().sample(5, (4, 6), seed=0)
    assert (plan.weight == 1).all()
    assert (plan.lam == 0.5).all()
    assert (plan.mask() == 0.5).all()


@pytest.mark.parametrize("size", [(64, 64), (24, 40), (31, 17), (7, 5), (1, 9), (50,), (1,), (9, 8, 7), (1, 1)])
@pytest.mark.parametrize("name", HMIX_RELEASED)
def test_released_hmix_has_the_mean_lam_on_every_mask(name, size):
    lam = torch.cat((torch.linspace(0, 1, 201), torch.tensor([1e-30, 1e-45, 1e-7, 1e-3, 1 - 2.0**-24, 1 - 1e-3])))
    plans = [METHODS[name][0](per="sample").sample(len(lam), size, lam=lam, seed=seed) for seed in range(4)]
    plans += [METHODS[name][0](alpha=alpha, per="sample").sample(300, size, seed=5) for alpha in (0.1, 1.0)]
    for plan in plans:
        mean = plan.mask().double().flatten(1).mean(1)
        assert (mean - plan.lam.double()).abs().max() <= 1e-6
        assert torch.equal(plan.weight, plan.lam.double())


@pytest.mark.parametrize("lam", [0.0, 1e-20, 1e-3, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("method", [Method.HMIX_RELEASED, Method.HMIX_PAPER])
def test_hmix_of_ratio_0_is_mixup(method, lam):
    plan = formula_at(method, {"ratio": 0.0}, lam, torch.from_numpy(np.stack(all_centres((8, 6)), 1)), (8, 6))
    assert (plan.mask() == float32(lam)).all()
    assert (plan.weight == float32(lam)).all()


@pytest.mark.parametrize("lam", [1e-30, 1e-17, 3e-15, 4e-13, 1e-12, 1e-8, 1e-3, 0.3, 0.5, 0.9, 1.0])
def test_paper_hmix_of_ratio_1_is_cutmix(lam):
    """λ/(1-(1-λ)·1) = 1 outside the box for every λ > 0. With α = .1, one λ in 13 is below 1e-8."""
    centre = torch.from_numpy(np.stack(all_centres((8, 6)), 1))
    hmix = formula_at(Method.HMIX_PAPER, {}, lam, centre, (8, 6))
    cutmix = formula_at(Method.CUTMIX, {}, lam, centre, (8, 6))
    assert (hmix.mask() - cutmix.mask()).abs().max() <= 2.0**-24
    assert (hmix.weight - cutmix.weight).abs().max() <= 1e-6


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("method", [Method.HMIX_RELEASED, Method.HMIX_PAPER])
def test_value_outside_the_hybrid_box(method, ratio):
    """Within one float32 step of the definition in fractions, for λ down to the smallest."""
    rng = random.Random(4)
    size = (24, 40)
    lam = [float32(x) for x in (1e-45, 1e-30, 1e-10, 1 - 2.0**-24)] + [float32(rng.random()) for _ in range(300)]
    centre = torch.tensor([[rng.randrange(side) for side in size] for _ in lam])
    plan = formula_at(method, {"ratio": ratio}, torch.tensor(lam), centre, size)
    for x, geometry, value in zip(lam, plan.geometry.tolist(), plan.value[:, 0].tolist(), strict=True):
        _, y0, x0, _, y1, x1 = geometry
        covered = Fraction((y1 - y0) * (x1 - x0), math.prod(size))
        share = 1 - covered if method == Method.HMIX_RELEASED else 1 - (1 - Fraction(x)) * Fraction(ratio)
        exact = float(Fraction(x) / share)
        assert abs(value - exact) <= float(np.spacing(np.float32(exact)))


# ------------------------------------------------------------------------------------------------------------- boxes


def float32_root(x: float, degree: int) -> float:
    """x^(1/d): a float64 root for d = 2; for d = 3 a root that is rounded to float32, so that it is one everywhere."""
    if degree == 1:
        return x
    if degree == 2:
        return math.sqrt(x)
    with localcontext() as context:
        context.prec = 50
        return float32(float(Decimal(x) ** (Decimal(1) / 3)))


def python_box(lam: float, ratio: float, centre: list[int], size: tuple[int, ...]) -> list[int]:
    """First and past-the-end (z, y, x) of the clipped box: half = int(side·(root(1-λ)·root(ratio)))//2."""
    degree = len(size)
    fraction = float32_root(1.0 - lam, degree) * float32_root(ratio, degree)
    half = [int(side * fraction) // 2 for side in size]
    first = [max(c - h, 0) for c, h in zip(centre, half, strict=True)]
    stop = [min(c + h, side) for c, h, side in zip(centre, half, size, strict=True)]
    return [0] * (3 - degree) + first + [1] * (3 - degree) + stop


def exact_side(lam: float, ratio: float, side: int, degree: int) -> tuple[int, bool]:
    """⌊side·((1-λ)·ratio)^(1/d)⌋ in integers, and whether the root is whole, where rounding may go either way."""
    power = (1 - Fraction(lam)) * Fraction(ratio) * side**degree
    root = max(k for k in range(side + 1) if k**degree <= power)
    return root, root**degree == power


BOXED = [
    (Method.CUTMIX, 1.0),
    *itertools.product((Method.HMIX_RELEASED, Method.HMIX_PAPER), (0.0, 0.25, 0.3, 0.5, 0.75, 1.0)),
]


LAM_GRIDS = {
    "uniform": lambda rng: float32(rng.random()),
    "coarse": lambda rng: rng.randrange(257) / 256,  # Roots are whole: the order of evaluation decides.
    "tiny": lambda rng: float32(10.0 ** rng.uniform(-45, 0)),
}


@pytest.mark.parametrize("grid", LAM_GRIDS)
@pytest.mark.parametrize(("method", "ratio"), BOXED)
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_boxes_equal_python(method, ratio, degree, grid):
    """Over random λ, centres, and sizes that are odd, even, small and large."""
    rng = random.Random(10 * degree + method)
    for _ in range(5):
        size = tuple(rng.choice([1, 2, 3, 7, 17, 24, 31, 32, 40, 64, 97, 224, 256]) for _ in range(degree))
        lam = [LAM_GRIDS[grid](rng) for _ in range(100)]
        centre = [[rng.randrange(side) for side in size] for _ in lam]
        plan = formula_at(method, {"ratio": ratio}, torch.tensor(lam), torch.tensor(centre), size)
        assert plan.geometry.tolist() == [python_box(x, ratio, c, size) for x, c in zip(lam, centre, strict=True)]
        assert (plan.kind == Kind.BOX).all()
        stop, first = plan.geometry[:, 3:], plan.geometry[:, :3]
        sides = torch.tensor((1,) * (3 - degree) + size)
        assert ((first >= 0) & (first <= stop) & (stop <= sides)).all()


@pytest.mark.parametrize(
    ("ratio", "lam", "side"),
    [
        (0.75, 0.44610595703125, 512),  # 512·(√(1-λ)·√.75) is 329.99999999999994
        (0.75, 0.56036376953125, 512),  # 294, not 293.99999999999994
        (0.75, 0.8615264892578125, 1024),  # 329.99999999999994
        (1.0, 2.0**-53, 24),  # √(1-2⁻⁵³) rounds to 1-2⁻⁵³
    ],
)
def test_square_roots_are_correctly_rounded(ratio, lam, side):
    """A last bit of a root decides about these boxes. math.sqrt has it right; vectorised roots need not (MKL's, by
    which torch.sqrt takes float64 roots on x86, gets 1% of them wrong), and backends would disagree."""
    centre = [side // 2, side // 2]
    plan = formula_at(Method.HMIX_RELEASED, {"ratio": ratio}, lam, torch.tensor([centre]), (side, side))
    assert plan.geometry.tolist() == [python_box(lam, ratio, centre, (side, side))]


@pytest.mark.parametrize("ratio", [1.0, 0.75, 0.5, 0.25])
@pytest.mark.parametrize("side", [1, 2, 31, 32, 64, 97, 224, 512])
def test_sides_of_images_are_exact(side, ratio):
    """In integers: ⌊side·√((1-λ)·ratio)⌋//2 on each side of the centre of a large enough image. Where the root is
    whole, two roots in float64 and their product may fall below it, as they do in the authors' code."""
    rng = random.Random(side)
    lam = [rng.randrange(2**24) / 2**24 for _ in range(300)]
    size = (side, side)
    plan = formula_at(Method.HMIX_RELEASED, {"ratio": ratio}, torch.tensor(lam), torch.full((300, 2), side // 2), size)
    for x, (_, y0, x0, _, y1, x1) in zip(lam, plan.geometry.tolist(), strict=True):
        root, whole = exact_side(x, ratio, side, 2)
        if not whole:
            half = root // 2
            c = side // 2
            assert (y0, y1, x0, x1) == (c - half, min(c + half, side)) * 2


@pytest.mark.parametrize("side", [5, 32, 64, 100])
def test_sides_of_volumes_are_exact(side):
    """In integers, but for sides within a float32 step of a whole number of pixels."""
    rng = random.Random(side)
    lam = [rng.randrange(2**24) / 2**24 for _ in range(300)]
    c = side // 2
    plan = formula_at(Method.CUTMIX, {}, torch.tensor(lam), torch.full((300, 3), c), (side,) * 3)
    compared = 0
    for x, geometry in zip(lam, plan.geometry.tolist(), strict=True):
        length = side * (1 - x) ** (1 / 3)
        if abs(length - round(length)) > side * 2.0**-23:
            half = exact_side(x, 1.0, side, 3)[0] // 2
            assert geometry == [c - half] * 3 + [min(c + half, side)] * 3
            compared += 1
    assert compared > 250


def test_the_box_that_float32_loses():
    """int(64·(√½·√½)) is 32 in float64 and 31 in float32, where the box would be off by a pixel on each side."""
    half32 = np.sqrt(np.float32(0.5))
    assert int(np.float32(64) * half32 * half32) == 31
    for mix in (fm.HMix(ratio=0.5, per="sample"), fm.HMix(ratio=0.5, per="sample", variant="paper")):
        geometry = mix.sample(2000, (64, 64), lam=0.5, seed=0).geometry
        first, stop = geometry[:, 1:3], geometry[:, 4:6]
        unclipped = (first > 0) & (stop < 64)
        assert unclipped.any()
        assert ((stop - first)[unclipped] == 32).all()


@pytest.mark.parametrize("size", [(10,), (4, 100), (50, 20, 10)])
def test_an_unclipped_box_holds_its_share(size):
    """A side is the d-th root of the share: (1-λ)·L, √(1-λ)·H, ∛(1-λ)·D. Here 1-λ is ¼, ¼ and ⅛ and all is whole."""
    lam = {1: 0.75, 2: 0.75, 3: 0.875}[len(size)]
    share = {1: 0.2, 2: 0.25, 3: 0.096}[len(size)]  # of whole, even sides: 2 of 10, 2·50 of 400, 24·10·4 of 10000
    centre = torch.tensor([[side // 2 for side in size]])
    plan = formula_at(Method.CUTMIX, {}, lam, centre, size)
    assert plan.weight.item() == 1 - share
    assert (1 - plan.mask().double()).mean().item() == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("size", [(40,), (24, 40), (224, 224), (9, 8, 7)])
@pytest.mark.parametrize("sampling", ["host", "device"])
def test_cutmix_weight_is_exactly_what_the_box_leaves(size, sampling):
    plan = fm.CutMix(per="sample", sampling=sampling).sample(2000, size, seed=6)
    sides = plan.geometry[:, 3:] - plan.geometry[:, :3]
    area = [math.prod(side) for side in sides.tolist()]
    assert plan.weight.tolist() == [1.0 - a / math.prod(size) for a in area]
    if math.prod(size) < 10_000:
        mask = plan.mask()
        assert ((mask == 0) | (mask == 1)).all()
        assert (mask == 0).flatten(1).sum(1).tolist() == area


# ----------------------------------------------------------------------------------------------- label distributions


def cutmix_weight(n: int) -> float:
    """E[weight] of CutMix at α = 1 on n×n: √(1-λ)·n falls into [2k, 2k+2) with probability (8k+4)/n²; over the
    centres, the clipped sides are independent."""
    centre = np.arange(n)
    covered = 0.0
    for k in range(n // 2):
        side = (np.minimum(centre + k, n) - np.maximum(centre - k, 0)).mean() / n
        covered += (8 * k + 4) / n**2 * side**2
    return 1 - covered


# Published, with standard errors of 10⁶ draws: E[weight], P(weight = 1), P(weight < ½).
CUTMIX_LABELS = {32: (0.70067, 0.00392, 0.1452), 64: (0.68984, 0.00097, 0.1652), 224: (0.68222, 0.00006, 0.1740)}


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("n", CUTMIX_LABELS)
def test_label_weights_of_cutmix(n, sampling):
    weight = fm.CutMix(alpha=1.0, per="sample", sampling=sampling).sample(100_000, (n, n), seed=12).weight.numpy()
    assert_means(weight[:, None], np.array([cutmix_weight(n)]))
    published = np.array(CUTMIX_LABELS[n])
    drawn = np.column_stack((weight, weight == 1, weight < 0.5))
    error = np.sqrt(drawn.var(0) / 1e5 + drawn.var(0) / 1e6)
    # The figures are rounded to 5, 5 and 4 digits.
    assert (np.abs(drawn.mean(0) - published) <= 4 * error + np.array([0.5e-5, 0.5e-5, 0.5e-4])).all()


# Published, of 10⁵ draws: n, α, E[weight], its standard error, E[min(weight, 1-weight)], its standard error.
GMIX_LABELS = [(32, 0.5, 0.49994, 0.00123, 0.12503, 0.00033), (64, 1.0, 0.50107, 0.00109, 0.16873, 0.00031)]


@pytest.mark.parametrize(("n", "alpha", "mean", "mean_error", "fold", "fold_error"), GMIX_LABELS)
def test_label_weights_of_gmix(n, alpha, mean, mean_error, fold, fold_error):
    weight = fm.GMix(alpha=alpha, per="sample").sample(20_000, (n, n), seed=13).weight.numpy()
    folded = np.minimum(weight, 1 - weight)
    assert abs(weight.mean() - mean) <= 4 * math.sqrt(mean_error**2 + weight.var() / weight.size)
    assert abs(folded.mean() - fold) <= 4 * math.sqrt(fold_error**2 + folded.var() / folded.size)


@pytest.mark.parametrize("n", [64, 224])
def test_released_gmix_never_weighs_both_labels_alike(n):
    """No weight in (.427, .573): g grows with s, so the extremes are at λ next to ½; all centres are looked at."""
    centre = torch.cartesian_prod(torch.arange(n // 2 + 1), torch.arange(n // 2 + 1))  # The rest mirrors these.
    below = plan_at("GMix released", float32(0.5 - 2.0**-25), centre, (n, n)).weight
    above = plan_at("GMix released", 0.5, centre, (n, n)).weight
    assert 0.42 < below.max() <= 0.427
    assert 0.573 <= above.min() < 0.58
    weight = fm.GMix(per="sample").sample(5000, (n, n), seed=14).weight
    assert not ((weight > 0.427) & (weight < 0.573)).any()


@pytest.mark.parametrize(("size", "lam"), [((4001,), 0.05), ((201, 301), 0.02), ((41, 61, 51), 0.01)])
def test_a_gaussian_integrates_to_its_share_in_every_dimension(size, lam):
    """∫exp(-πd²/(s·V)^(2/d)) = s·V, where the borders are far: 1e-5 of the Gaussians here is beyond them."""
    centre = torch.tensor([[side // 2 for side in size]])
    released = plan_at("GMix released", lam, centre, size)
    paper = plan_at("GMix paper", 1 - lam / 2, centre, size)
    assert released.weight.item() == pytest.approx(lam, rel=1e-4)
    assert paper.weight.item() == pytest.approx(1 - lam, rel=1e-4)
    assert released.mask().double().mean().item() == pytest.approx(lam, rel=1e-4)


@pytest.mark.parametrize("method", [Method.SMOOTHMIX_DISC, Method.SMOOTHMIX_SQUARE])
@pytest.mark.parametrize("size", [(4001,), (201, 301), (41, 61, 51)])
@pytest.mark.parametrize("lam", [0.88, 0.9995])
def test_a_smooth_shape_takes_its_share_in_every_dimension(size, method, lam):
    """1-λ of the volume, where the borders are far, with an edge that leaves place for a radius and without one."""
    plan = formula_at(method, {"edge": 0.04}, lam, torch.tensor([[side // 2 for side in size]]), size)
    assert (plan.value[:, 1] > 0).item() == (lam < 0.9)
    assert 1 - plan.weight.item() == pytest.approx(1 - lam, rel=2e-3)


# -------------------------------------------------------------------------------------------------- degenerate draws

DEGENERATE_LAM = [0.0, 1.0, 1e-30, 1 - 2.0**-24, 1e-45, 1e-38, 0.5, 0.5 - 2.0**-25]
TINY_SIZES = [(1,), (2,), (5,), (1, 1), (1, 7), (7, 1), (2, 2), (4, 4), (3, 5), (1, 1, 1), (1, 1, 4), (2, 3, 4)]
DEGENERATE = [(method, columns) for _, method, columns in METHODS.values()]
DEGENERATE += [case for record in RECORDS.values() for case in record.degenerate]


@pytest.mark.parametrize("size", TINY_SIZES)
@pytest.mark.parametrize(("method", "columns"), DEGENERATE)
def test_degenerate_draws_stay_in_range(method, columns, size):
    """Nothing infinite, NaN or outside [0, 1], at all centres: empty boxes, boxes that cover all, s = 0, λ = 0 or 1."""
    centre = torch.from_numpy(np.stack(all_centres(size), 1)).repeat(len(DEGENERATE_LAM), 1)
    lam = torch.tensor(DEGENERATE_LAM).repeat_interleave(math.prod(size))
    plan = formula_at(method, columns, lam, centre, size)
    mask = plan.mask()
    assert ((mask >= 0) & (mask <= 1)).all()
    assert ((plan.weight >= 0) & (plan.weight <= 1)).all()
    assert plan.value.isfinite().all()
    if method != Method.SAMPLE_PAIRING:
        assert (mask.double().flatten(1).mean(1) - plan.weight).abs().max() <= 1e-6


def test_a_box_that_covers_everything():
    """λ = 0 around the middle of an even image: all is the partner, and no 0/0 outside."""
    centre = torch.tensor([[4, 3]])
    for method, ratio in ((Method.CUTMIX, 1.0), (Method.HMIX_RELEASED, 1.0), (Method.HMIX_PAPER, 1.0)):
        plan = formula_at(method, {"ratio": ratio}, 0.0, centre, (8, 6))
        assert plan.geometry.tolist() == [[0, 0, 0, 1, 8, 6]]
        assert (plan.mask() == 0).all()
        assert plan.weight.item() == 0


@pytest.mark.parametrize("name", ["GMix released", "GMix paper"])
def test_a_gaussian_of_no_width(name):
    """s = 0 is the limit of the definition: λ everywhere; s > 0, however small, mixes the centre only."""
    centre = torch.tensor([[4, 3]])
    assert (plan_at(name, 1.0, centre, (8, 6)).mask() == 1).all()
    narrow = plan_at(name, 1 - 2.0**-24, centre, (8, 6))
    assert narrow.mask()[0, 4, 3] == 0
    assert narrow.mask().sum() == 47
    assert narrow.weight.item() == pytest.approx(47 / 48)
    if name == "GMix released":
        assert (plan_at(name, 0.0, centre, (8, 6)).mask() == 0).all()
        assert plan_at(name, 1e-45, centre, (8, 6)).mask().sum() == 1


def awkward_batch(dtype: torch.dtype, size: tuple[int, ...]) -> torch.Tensor:
    """(5, 2, *size) with what a multiplication would not leave alone: infinities, NaN, zeros of both signs."""
    x = torch.randn((5, 2, *size), generator=torch.Generator().manual_seed(0)) * 40 + 100
    if dtype == torch.uint8:
        return x.clamp(0, 255).to(dtype)
    x = x.to(dtype)
    special = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny])
    x.view(-1)[:: max(1, x.numel() // 7)][:7] = special.to(dtype)[: len(x.view(-1)[:: max(1, x.numel() // 7)][:7])]
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8], ids=str)
@pytest.mark.parametrize("size", [(9,), (6, 5), (3, 4, 2)])
@pytest.mark.parametrize("name", METHODS)
def test_lam_1_leaves_the_batch_bit_for_bit(name, size, dtype):
    x = awkward_batch(dtype, size)
    plan = METHODS[name][0](per="sample", pairing="random").sample(5, size, lam=1.0, seed=1)
    assert not torch.equal(plan.partner, torch.arange(5))
    assert torch.equal(fm.mix(x, plan).view(torch.uint8), x.view(torch.uint8))
    assert (plan.weight == 1).all()
