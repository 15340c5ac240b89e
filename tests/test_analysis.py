"""fusedmix.analysis against mathematics written a second time: enumerations, quadratures and derivatives of its own."""

from __future__ import annotations

import csv
import itertools
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.special import roots_jacobi

import fusedmix as fm
from conftest import NO_CPP, NO_TRITON, TRITON_DEVICE
from fusedmix import analysis
from fusedmix.analysis import __main__ as cli
from mask_formulas import MOMENTS, OFFSETS, all_centres, float32, moments, oracle
from mask_formulas import PUBLISHED as METHODS

# Masks are float32, and so is what is left of 1-M.
ROUNDING = 2.0**-22
BACKENDS = ["reference", pytest.param("cpp", marks=pytest.mark.skipif(NO_CPP is not None, reason=str(NO_CPP)))]
FORMULAS = {name: make for name, (make, _, _) in METHODS.items()}
STOCHASTIC = {"Stochastic": lambda **kw: fm.RandomMix([fm.MixUp(), fm.CutMix()], **kw)}
SHORT = [(0, 0), (3, 0), (0, 5), (7, -4), (-9, -2)]


def assert_within_four_errors(found: analysis.Coefficients, expected: torch.Tensor, mean: float) -> None:
    distance = (found.mean - expected).abs()
    assert (distance <= 4 * found.standard_error + ROUNDING).all(), distance / found.standard_error
    assert abs(found.mask_mean - mean) <= 4 * found.mask_mean_error + ROUNDING


# ---- Coefficients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MOMENTS)
def test_exact_has_the_published_moments(name):
    mix = (FORMULAS | STOCHASTIC)[name]()
    published = torch.tensor(MOMENTS[name], dtype=torch.float64)
    assert (analysis.exact(mix, (64, 64), lam=0.5, offsets=OFFSETS) - published[1:]).abs().max() <= 0.6e-6
    assert abs(analysis.exact_mask_mean(mix, (64, 64), lam=0.5) - published[0]) <= 0.6e-6


@pytest.mark.parametrize("lam", [0.05, 0.37, 0.5, 0.81, 0.95])
@pytest.mark.parametrize("name", METHODS)
def test_exact_is_the_mean_over_all_centres(name, lam):
    size, offsets = (9, 14), [(0, 0), (2, 0), (0, 5), (3, 4), (8, 13)]
    rows = moments(oracle(name, float32(lam), *all_centres(size), size), offsets).mean(0)
    found = analysis.exact(FORMULAS[name](), size, lam=lam, offsets=offsets)
    assert np.abs(found.numpy() - rows[1:]).max() <= 1e-12
    assert abs(analysis.exact_mask_mean(FORMULAS[name](), size, lam=lam) - rows[0]) <= 1e-12


@pytest.mark.parametrize("name", METHODS)
def test_exact_is_even_in_the_offset(name):
    """Pairs are unordered, and so the sign of d is no matter; nor is one axis' sign, all centres being as likely, but
    for boxes, whose centre is half a pixel off the middle."""
    mix, pairs = FORMULAS[name](), [(3, 5), (-3, -5), (3, -5), (-3, 5)]
    a, b, c, d = analysis.exact(mix, (12, 17), lam=0.4, offsets=pairs).tolist()
    assert a == pytest.approx(b, abs=1e-14)
    assert c == pytest.approx(d, abs=1e-14)
    if "GMix" in name or name == "MixUp":
        assert a == pytest.approx(c, abs=1e-14)


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("name", METHODS)
def test_degenerate_masks(name, lam):
    """The kernels' masks at λ = 0 and 1 are finite, and the exact forms are theirs."""
    found = analysis.coefficients(FORMULAS[name](per="sample"), (8, 6), lam=lam, offsets=SHORT_TINY, masks=400)
    expected = analysis.exact(FORMULAS[name](), (8, 6), lam=lam, offsets=SHORT_TINY)
    assert_within_four_errors(found, expected, analysis.exact_mask_mean(FORMULAS[name](), (8, 6), lam=lam))
    if lam == 1.0:
        assert expected.abs().max() == 0


SHORT_TINY = [(0, 0), (2, 1), (0, -3)]


@pytest.mark.parametrize(("size", "lam"), [((24, 40), 0.5), ((31, 17), 0.3)])
@pytest.mark.parametrize("name", FORMULAS | STOCHASTIC)
@pytest.mark.parametrize("backend", BACKENDS)
def test_monte_carlo_is_within_four_standard_errors(backend, name, size, lam):
    mix = (FORMULAS | STOCHASTIC)[name](per="sample", backend=backend)
    found = analysis.coefficients(mix, size, lam=lam, offsets=SHORT, masks=1500, seed=1)
    expected = analysis.exact(mix, size, lam=lam, offsets=SHORT)
    assert_within_four_errors(found, expected, analysis.exact_mask_mean(mix, size, lam=lam))
    assert found.masks == 1500
    assert found.offsets.tolist() == [list(d) for d in SHORT]


@pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))
@pytest.mark.parametrize("name", ["CutMix", "HMix released .5", "GMix released"])
def test_monte_carlo_of_triton(name):
    mix = FORMULAS[name](per="sample", backend="triton")
    found = analysis.coefficients(mix, (9, 8), lam=0.4, offsets=SHORT_TINY, masks=60, device=TRITON_DEVICE)
    expected = analysis.exact(mix, (9, 8), lam=0.4, offsets=SHORT_TINY)
    assert_within_four_errors(found, expected, analysis.exact_mask_mean(mix, (9, 8), lam=0.4))


@pytest.mark.parametrize(("size", "offsets"), [((50,), [(0,), (7,), (-20,)]), ((6, 9, 7), [(0, 0, 0), (2, -3, 1)])])
@pytest.mark.parametrize("name", METHODS)
def test_signals_and_volumes(name, size, offsets):
    found = analysis.coefficients(FORMULAS[name](per="sample"), size, lam=0.45, offsets=offsets, masks=1500)
    expected = analysis.exact(FORMULAS[name](), size, lam=0.45, offsets=offsets)
    assert_within_four_errors(found, expected, analysis.exact_mask_mean(FORMULAS[name](), size, lam=0.45))


@pytest.mark.parametrize("size", [(24, 40), (31, 17), (50,), (6, 9, 7)])
@pytest.mark.parametrize("name", ["CutMix", "HMix released .5", "HMix paper .5"])
def test_boxes_inside(name, size):
    mix = FORMULAS[name](per="sample", placement="inside")
    offsets = [(0,) * len(size), (3,) * len(size), (-2, *(1,) * (len(size) - 1))]
    found = analysis.coefficients(mix, size, lam=0.45, offsets=offsets, masks=1500)
    expected = analysis.exact(mix, size, lam=0.45, offsets=offsets)
    assert_within_four_errors(found, expected, analysis.exact_mask_mean(mix, size, lam=0.45))


@pytest.mark.parametrize("lam", [0.05, 0.37, 0.5, 0.81])
def test_boxes_inside_are_those_of_equation_10(lam):
    mix = fm.CutMix(placement="inside")
    exact, closed = (of(mix, (24, 40), lam=lam, offsets=SHORT) for of in (analysis.exact, analysis.closed_form))
    assert (exact - closed).abs().max() <= 1e-12


@pytest.mark.parametrize(
    ("mix", "name"),
    [
        (fm.CutMix(aspect=(0.5, 2.0)), "aspect"),
        (fm.CutMix(minmax=(0.2, 0.8)), "minmax"),
        (fm.HMix(aspect=(0.5, 2.0)), "aspect"),
        (fm.HMix(ratio_alpha=1.0), "ratio_alpha"),
    ],
    ids=str,
)
def test_sides_that_do_not_follow_from_lambda_have_no_exact_form(mix, name):
    with pytest.raises(ValueError, match=rf"mix must have {name}=None here, but got {name}="):
        analysis.exact(mix, (8, 8), lam=0.5)
    with pytest.raises(ValueError, match=rf"mix must have {name}=None here" if isinstance(mix, fm.CutMix) else "HMix"):
        analysis.closed_form(mix, (8, 8), lam=0.5)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_fmix_is_binary_with_mean_lambda(variant):
    mix = fm.FMix(variant=variant, per="sample")
    found = analysis.coefficients(mix, (20, 25), lam=0.25, offsets=[(0, 0), (5, 0)], masks=500)  # 125 pixels
    assert found.mask_mean == pytest.approx(0.25, abs=1e-12)
    assert found.mean[0] == pytest.approx(0.75, abs=1e-12)  # (1-M)² = 1-M
    assert 0.75**2 < found.mean[1] < 0.75  # neighbours are correlated, but not wholly


def test_lambda_may_be_drawn():
    """E(1-λ)² = ⅓ over Beta(1, 1)."""
    found = analysis.coefficients(fm.MixUp(per="sample"), (4, 4), offsets=[(0, 0)], masks=4000)
    assert_within_four_errors(found, torch.tensor([1 / 3], dtype=torch.float64), 0.5)
    assert found.standard_error > 0


def test_a_seed_repeats_and_masks_come_in_chunks(monkeypatch):
    mix = fm.GMix(per="sample")
    first, again, other = (analysis.coefficients(mix, (16, 12), lam=0.3, masks=300, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.mean, again.mean)
    assert not torch.equal(first.mean, other.mean)
    assert first.offsets.tolist() == [[d, 0] for d in range(16)]
    monkeypatch.setattr("fusedmix.analysis.moments._CHUNK", 16 * 12 * 70)
    chunked = analysis.coefficients(mix, (16, 12), lam=0.3, masks=300, seed=1)
    expected = analysis.exact(mix, (16, 12), lam=0.3)
    assert_within_four_errors(chunked, expected, analysis.exact_mask_mean(mix, (16, 12), lam=0.3))
    assert not torch.equal(chunked.mean, first.mean)


@pytest.mark.parametrize("d", [(0, 0), (3, 0), (2, 5), (12, 1)])
def test_equation_10_is_exact_for_boxes_inside(d):
    height, width, lam = 14, 21, 0.5
    h, w = int(height * math.sqrt(1 - lam)), int(width * math.sqrt(1 - lam))
    places = list(itertools.product(range(height - h + 1), range(width - w + 1)))
    masks = np.ones((len(places), height, width))
    for mask, (top, left) in zip(masks, places, strict=True):
        mask[top : top + h, left : left + w] = 0
    expected = moments(masks, [d])[:, 1].mean()
    assert float(analysis.closed_form(fm.CutMix(), (height, width), lam=lam, offsets=[d])) == pytest.approx(expected)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("d", [(0, 0), (4, 0), (3, -6)])
def test_equation_11_is_the_integral_over_the_plane(variant, d):
    lam, area = 0.7, 20 * 30
    rate = math.pi / ((2 if variant == "paper" else 1) * (1 - lam) * area)

    def product(x, y):
        return math.exp(-rate * (x * x + y * y)) * math.exp(-rate * ((x + d[0]) ** 2 + (y + d[1]) ** 2))

    far = 8 / math.sqrt(2 * rate)
    integral, _ = integrate.dblquad(product, -far, far, -far, far)
    found = analysis.closed_form(fm.GMix(variant=variant), (20, 30), lam=lam, offsets=[d])
    assert float(found) == pytest.approx(integral / area, rel=1e-5)  # λ is float32's


def test_the_closed_form_of_mixup_is_exact():
    offsets = [(0, 0), (3, 4)]
    closed, exact = (
        form(fm.MixUp(), (8, 8), lam=0.3, offsets=offsets) for form in (analysis.closed_form, analysis.exact)
    )
    assert torch.equal(closed, exact)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: analysis.coefficients("CutMix", (8, 8)), TypeError, "mix must be a mixing module"),
        (lambda: analysis.coefficients(fm.CutMix(), (8, 8)), ValueError, 'per="sample"'),
        (lambda: analysis.coefficients(fm.CutMix(per="sample"), (8, 0)), ValueError, "size"),
        (lambda: analysis.coefficients(fm.CutMix(per="sample"), (8, 8), masks=1), ValueError, "masks"),
        (lambda: analysis.coefficients(fm.CutMix(per="sample"), (8, 8), lam=2.0), ValueError, "lam"),
        (lambda: analysis.coefficients(fm.CutMix(per="sample"), (8, 8), seed=-1), ValueError, "seed"),
        (lambda: analysis.coefficients(fm.CutMix(per="sample"), (8, 8), offsets=[(8, 0)]), ValueError, r"offsets\[0\]"),
        (lambda: analysis.coefficients(fm.CutMix(per="sample"), (8, 8), offsets=[(1,)]), ValueError, r"offsets\[0\]"),
        (lambda: analysis.coefficients(fm.CutMix(per="sample"), (8, 8), offsets=[]), ValueError, "offsets"),
        (lambda: analysis.exact(fm.FMix(), (8, 8), lam=0.5), ValueError, "exact form"),
        (lambda: analysis.exact(fm.CutMix(p=0.5), (8, 8), lam=0.5), ValueError, "p=1"),
        (lambda: analysis.exact(fm.RandomMix([fm.CutMix()], p=0.5), (8, 8), lam=0.5), ValueError, "p=1"),
        (lambda: analysis.exact(fm.CutMix(), (8, 8), lam=1.5), ValueError, "lam"),
        (lambda: analysis.closed_form(fm.HMix(), (8, 8), lam=0.5), ValueError, "closed form"),
        (lambda: analysis.closed_form(fm.GMix(), (8, 8), lam=0.4), ValueError, "closed form"),
        (lambda: analysis.closed_form(fm.CutMix(), (8,), lam=0.5), ValueError, "size"),
        (lambda: analysis.closed_form(fm.CutMix(), (8, 8), lam=1.0), ValueError, "lam"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- Theorem 1 -------------------------------------------------------------------------------------------------------

BETAS = [(1.0, 1.0), (0.2, 0.2), (2.0, 0.7)]


def data(m=7, d=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, d, generator=generator, dtype=torch.float64)
    return x - x.mean(0), (torch.rand(m, generator=generator) < 0.5).double()


def distribution(name, d, alpha, beta):
    return {"mixup": analysis.mixup_masks, "bernoulli": analysis.bernoulli_masks}[name](d, alpha=alpha, beta=beta)


def lambda_moment(alpha, beta, ones, zeros):
    """E λ^ones (1-λ)^zeros over Beta(α, β)."""
    beta_function = math.gamma(alpha + ones) * math.gamma(beta + zeros) / math.gamma(alpha + beta + ones + zeros)
    return beta_function * math.gamma(alpha + beta) / (math.gamma(alpha) * math.gamma(beta))


def d_lambda(alpha, beta, ones, zeros):
    """The same over D_λ of the paper."""
    share = alpha / (alpha + beta)
    return share * lambda_moment(alpha + 1, beta, ones, zeros) + (1 - share) * lambda_moment(
        beta + 1, alpha, ones, zeros
    )


def d_lambda_masks(name, d, alpha, beta):
    """Masks and probabilities under D_λ: for Mixup by SciPy's quadrature."""
    if name == "bernoulli":
        masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=d)), dtype=torch.float64)
        weights = [d_lambda(alpha, beta, int(m.sum()), d - int(m.sum())) for m in masks]
        return masks, torch.tensor(weights, dtype=torch.float64)
    lam, weights = [], []
    for share, p, q in ((alpha / (alpha + beta), alpha + 1, beta), (beta / (alpha + beta), beta + 1, alpha)):
        nodes, w = roots_jacobi(24, q - 1, p - 1)
        lam.append((nodes + 1) / 2)
        weights.append(share * w / w.sum())
    lam = torch.tensor(np.concatenate(lam))
    return lam[:, None].expand(-1, d), torch.tensor(np.concatenate(weights))


def own_label_loss(theta, x, y, masks, weights, t):
    """E ℓ(θᵀ(x_i + tδ), y_i), sample by sample and mask by mask."""
    total = 0.0
    for mask, weight in zip(masks, weights, strict=True):
        displaced = x[:, None] + t * (1 - mask) * (x[None] - x[:, None])
        z = displaced @ theta
        total = total + weight * (torch.log1p(torch.exp(z)) - y[:, None] * z).mean()
    return total


@pytest.mark.parametrize(("alpha", "beta"), BETAS)
@pytest.mark.parametrize("nodes", [1, 2, 5, 16])
def test_quadrature_has_the_moments_of_the_beta(alpha, beta, nodes):
    found = analysis.mixup_masks(3, alpha=alpha, beta=beta, nodes=nodes)
    assert found.masks.shape == (nodes, 3)
    for k in range(2 * nodes):
        expected = lambda_moment(alpha, beta, k, 0)
        assert float(found.probability @ found.label_weight**k) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), BETAS)
@pytest.mark.parametrize("d", [1, 2, 5])
def test_bernoulli_masks_are_all_masks(alpha, beta, d):
    found = analysis.bernoulli_masks(d, alpha=alpha, beta=beta)
    assert len({tuple(m) for m in found.masks.tolist()}) == 2**d
    for mask, probability, weight in zip(*found, strict=True):
        ones = int(mask.sum())
        chance = lambda_moment(alpha, beta, ones, d - ones)
        assert float(probability) == pytest.approx(chance)
        assert float(weight) == pytest.approx(lambda_moment(alpha, beta, ones + 1, d - ones) / chance)


@pytest.mark.parametrize(("alpha", "beta"), BETAS)
@pytest.mark.parametrize("name", ["mixup", "bernoulli"])
def test_with_its_own_label_a_mask_is_that_of_d_lambda(name, alpha, beta):
    masks, weights = distribution(name, 2, alpha, beta).with_own_label()
    assert float(weights.sum()) == pytest.approx(1)
    rest = 1 - masks
    diagonal = d_lambda(alpha, beta, 0, 1 if name == "bernoulli" else 2)
    off = d_lambda(alpha, beta, 0, 2)
    expected = torch.tensor([[diagonal, off], [off, diagonal]], dtype=torch.float64)
    assert torch.allclose(rest.T @ (weights[:, None] * rest), expected, rtol=1e-12, atol=0)
    assert torch.allclose(weights @ rest, torch.full((2,), d_lambda(alpha, beta, 0, 1), dtype=torch.float64))


@pytest.mark.parametrize(("alpha", "beta"), BETAS)
@pytest.mark.parametrize("name", ["mixup", "bernoulli"])
def test_the_mixed_loss_is_its_definition(name, alpha, beta):
    """Against adaptive integration over λ of the loss with both labels, pair by pair."""
    x, y = data(m=4)
    theta = torch.tensor([1.5, -2.0], dtype=torch.float64)
    a, b, p = x.numpy(), y.numpy(), theta.numpy()

    def at(lam):
        masks = [(lam, lam)] if name == "mixup" else list(itertools.product((0, 1), repeat=2))
        total = 0.0
        for mask in map(np.array, masks):
            chance = 1.0 if name == "mixup" else np.prod(np.where(mask == 1, lam, 1 - lam))
            for i, k in itertools.product(range(4), repeat=2):
                z = p @ (mask * a[i] + (1 - mask) * a[k])
                label = lam * b[i] + (1 - lam) * b[k]
                total += chance * (np.log1p(np.exp(z)) - label * z) / 16
        return total

    norm = math.gamma(alpha + beta) / (math.gamma(alpha) * math.gamma(beta))
    expected, _ = integrate.quad(lambda u: norm * at(u), 0, 1, weight="alg", wvar=(alpha - 1, beta - 1), epsabs=1e-10)
    found = analysis.msda_loss(theta, x, y, distribution(name, 2, alpha, beta))
    assert float(found) == pytest.approx(expected, abs=1e-8)


def test_the_mixed_loss_is_that_of_batches_the_kernels_mix():
    x, y = data(m=60, seed=3)
    theta = torch.tensor([1.0, -2.0], dtype=torch.float64)
    mix = fm.MixUp(per="sample", pairing="random")
    losses = []
    for seed in range(100):
        plan = mix.sample(60, (2,), seed=seed)  # of a random permutation every partner is as likely, oneself too
        z = fm.mix(x[:, None], plan)[:, 0] @ theta
        label = plan.weight * y + (1 - plan.weight) * y[plan.partner]
        losses.append(float((torch.nn.functional.softplus(z) - label * z).mean()))
    expected = float(analysis.msda_loss(theta, x, y, analysis.mixup_masks(2)))
    assert abs(np.mean(losses) - expected) <= 4 * np.std(losses, ddof=1) / math.sqrt(len(losses))


@pytest.mark.parametrize(("alpha", "beta"), BETAS)
@pytest.mark.parametrize(("name", "d"), [("mixup", 2), ("mixup", 4), ("bernoulli", 2), ("bernoulli", 4)])
def test_the_expansion_is_the_taylor_polynomial(name, d, alpha, beta):
    """Of the expected loss under D_λ with the displacement scaled by t: value and two derivatives at t = 0, by
    autograd and by central differences."""
    x, y = data(d=d)
    theta = torch.linspace(-1.5, 2.0, d, dtype=torch.float64)
    masks, weights = d_lambda_masks(name, d, alpha, beta)

    def loss(t):
        return own_label_loss(theta, x, y, masks, weights, t)

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = loss(t)
    (slope,) = torch.autograd.grad(value, t, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, t)
    h = 1e-3
    assert curvature.item() == pytest.approx(float(loss(h) - 2 * loss(0.0) + loss(-h)) / h**2, abs=1e-5)

    terms = analysis.second_order(theta, x, y, distribution(name, d, alpha, beta))
    assert float(terms.plain) == pytest.approx(value.item(), abs=1e-13)
    assert float(terms.first) == pytest.approx(slope.item(), abs=1e-13)
    assert float(terms.second) == pytest.approx(curvature.item() / 2, abs=1e-13)
    assert float(terms.total) == float(terms.plain + terms.first + terms.second)
    # and at t = 1 it is the mixed loss
    mixed = analysis.msda_loss(theta, x, y, distribution(name, d, alpha, beta))
    assert float(loss(1.0)) == pytest.approx(float(mixed), abs=1e-9)


@pytest.mark.parametrize("name", ["mixup", "bernoulli"])
def test_the_remainder_is_of_third_order_and_bounded(name):
    x, y = data(m=20, seed=5)
    masks = distribution(name, 2, 1.0, 1.0)
    direction = torch.tensor([0.6, -0.8], dtype=torch.float64)

    def remainder(scale):
        theta = scale * direction
        return float((analysis.msda_loss(theta, x, y, masks) - analysis.second_order(theta, x, y, masks).total).abs())

    for scale in (0.01, 0.1, 1.0, 3.0, 10.0, 50.0):
        assert 0 < remainder(scale) <= float(analysis.remainder_bound(scale * direction, x, masks))
    assert remainder(0.02) / remainder(0.01) >= 7.5  # 8, or more where the cubic term is small


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": torch.zeros(2)}, "theta must be a float64"),
        ({"theta": torch.zeros(3, dtype=torch.float64)}, "must fit each other"),
        ({"x": torch.zeros(0, 2, dtype=torch.float64), "y": torch.zeros(0, dtype=torch.float64)}, "hold a sample"),
        ({"y": torch.zeros(3, dtype=torch.float64)}, "must fit each other"),
        ({"y": torch.zeros(7, 1, dtype=torch.float64)}, "y must be a float64"),
        ({"masks": analysis.mixup_masks(3)}, "must fit each other"),
        ({"x": data()[0] + 1}, "centred"),
    ],
)
def test_bad_data(change, message):
    x, y = data()
    given = {"theta": torch.zeros(2, dtype=torch.float64), "x": x, "y": y, "masks": analysis.mixup_masks(2)} | change
    with pytest.raises(ValueError, match=message):
        analysis.second_order(**given)


def test_bad_distributions():
    with pytest.raises(ValueError, match="alpha"):
        analysis.mixup_masks(2, alpha=0.0)
    with pytest.raises(ValueError, match="beta"):
        analysis.bernoulli_masks(2, beta=-1.0)
    with pytest.raises(ValueError, match="dims"):
        analysis.bernoulli_masks(13)
    with pytest.raises(TypeError, match="MaskDistribution"):
        analysis.msda_loss(torch.zeros(2, dtype=torch.float64), *data(), (1, 2, 3))


# ---- Figures ---------------------------------------------------------------------------------------------------------


def test_the_approximation_is_close_over_training():
    """On two moons, at every step: within the bound of Taylor's remainder; nearer to the mixed loss than the first
    order is, and that nearer than the loss without mixing; and most of what mixing adds to the loss is explained."""
    from fusedmix.analysis import moons

    x, y = moons.moons(40)
    for name, alpha in itertools.product(moons.MASKS, moons.ALPHAS):
        masks = moons.MASKS[name](2, alpha=alpha)
        rows = moons.train(x, y, masks, name=name, alpha=alpha, trained_on="original", steps=60)
        assert rows[0].original == pytest.approx(math.log(2))
        assert rows[-1].original < rows[0].original
        for row in rows[1:]:
            assert row.error <= row.bound
            added = row.original - row.plain
            assert row.error < abs(row.original - row.first_order) < added
            assert row.error < added / 2


@pytest.mark.parametrize("command", ["examples", "coefficients", "moons", "designs", "unbounded"])
def test_commands(command, tmp_path, capsys):
    assert cli.main([command, "--out", str(tmp_path / "figures"), "--quick"]) == 0
    said = capsys.readouterr().out
    assert "Figure" in said
    assert said.count("\n|") >= 6
    picture, numbers = (tmp_path / "figures" / f"{command}.{kind}" for kind in ("png", "csv"))
    assert picture.read_bytes().startswith(b"\x89PNG")
    with numbers.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if command == "examples":
        assert {row["method"] for row in rows} >= {"MixUp", "CutMix", "HMix (released)", "GMix (paper)", "FMix (paper)"}
        assert "0.65" in {row["lam"] for row in rows}
        assert all(float(row["label_weight"]) == pytest.approx(float(row["mask_mean"]), abs=1e-5) for row in rows)
    elif command == "coefficients":
        known = [row for row in rows if row["exact"]]
        assert len({row["method"] for row in known}) == 8
        for row in known:
            distance = abs(float(row["monte_carlo"]) - float(row["exact"]))
            assert distance <= 4 * float(row["standard_error"]) + 1e-6, row  # six digits are written
    elif command == "designs":
        assert len({row["design"] for row in rows}) == 4
        for row in rows:
            gaps = [abs(float(row["reached"]) - float(row[of])) for of in ("monte_carlo", "wanted")]
            assert gaps[0] <= 4 * float(row["standard_error"]) + 1e-6, row
            assert gaps[1] <= float(row["residual"]) + 1e-6, row
    elif command == "unbounded":
        for row in rows:
            width = float(row["width"])
            assert float(row["coefficient"]) == pytest.approx(0.25 + width**2 / 3, abs=1e-5)
    else:
        assert {(row["masks"], row["trained_on"]) for row in rows} == {
            (masks, loss) for masks in ("Mixup", "Bernoulli") for loss in ("original", "approximation")
        }
        for row in rows:
            assert abs(float(row["original"]) - float(row["second_order"])) <= float(row["bound"]) + 1e-6


def test_missing_packages_give_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert cli.main(["examples", "--out", str(tmp_path / "none")]) == 1
    err = capsys.readouterr().err
    assert err == 'fusedmix.analysis examples: scikit-image not installed: pip install "fusedmix[demo]"\n'
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("argv", "message"), [([], "required"), (["moons"], "--out"), (["moons", "--out", __file__], "cannot use")]
)
def test_bad_commands(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# ---- docs/analysis.md ------------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "analysis.md"
needs_docs = pytest.mark.skipif(not PAGE.exists(), reason="an installed package comes without its documentation")


@needs_docs
def test_the_examples_of_the_page_run():
    first, *others = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    namespace = {}
    exec(first, namespace)
    assert (namespace["measured"].mean - namespace["known"]).abs().max() <= 4 * namespace[
        "measured"
    ].standard_error.max()
    for block in others:
        exec(block, namespace)


@needs_docs
def test_the_pictures_of_the_page_are_small():
    names = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", PAGE.read_text(encoding="utf-8"))
    assert len(names) == 5
    assert all((DOCS / name).stat().st_size < 200_000 for name in names)
