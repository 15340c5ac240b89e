"""λ ~ Beta(α, α): the distribution of what is drawn, against scipy's and in moments that mathematics gives."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from scipy import stats

import fusedmix as fm
from fusedmix import philox

N = 200_000
FLOAT32_BELOW_1 = 1 - 2.0**-24

SOURCES = ["float64", "device", "host"]
ALPHAS = [0.3, 0.5, 1.0, 2.0, 8.0]
SMALL_ALPHAS = [0.01, 0.1, 0.2]


def beta64(alpha: float, seed: int = 1, n: int = N) -> np.ndarray:
    return philox.symmetric_beta(torch.tensor(seed), torch.arange(n), torch.tensor(alpha, dtype=torch.float64)).numpy()


@functools.lru_cache(maxsize=40)
def draw(source: str, alpha: float, seed: int = 1) -> np.ndarray:
    """N draws as float64; those of a module are rounded to float32."""
    if source == "float64":
        lam = beta64(alpha, seed)
    else:
        lam = fm.MixUp(alpha=alpha, per="sample", sampling=source).sample(N, (1,), seed=seed).lam.double().numpy()
    lam.flags.writeable = False
    return lam


def cell(source: str, lam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The interval of real numbers that a drawn value stands for: itself, or what rounds to it in float32.

    torch's own Dirichlet, of which host sampling is made, gives the largest float32 below 1 for all that lies above.
    """
    if source == "float64":
        return lam, lam
    one = np.float32(1)
    v = lam.astype(np.float32)
    low = (np.nextafter(v, -one).astype(np.float64) + lam) / 2
    high = (np.nextafter(v, 2 * one).astype(np.float64) + lam) / 2
    if source == "host":
        high = np.where(lam == FLOAT32_BELOW_1, 1.0, high)
    return low.clip(0, 1), high.clip(0, 1)


def kolmogorov_smirnov(source: str, lam: np.ndarray, alpha: float) -> float:
    """p-value. Distribution functions are compared at the edges of the cells, where rounding changes neither."""
    values, counts = np.unique(lam, return_counts=True)
    after = counts.cumsum() / lam.size
    low, high = cell(source, values)
    cdf = stats.beta(alpha, alpha).cdf
    distance = max(np.abs(after - cdf(high)).max(), np.abs(after - counts / lam.size - cdf(low)).max())
    return stats.kstwo.sf(distance, lam.size)


def assert_mean(x: np.ndarray, expected: float) -> None:
    """Within four standard errors."""
    assert abs(x.mean() - expected) <= 4 * x.std() / np.sqrt(x.size)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("source", SOURCES)
def test_kolmogorov_smirnov(source, alpha):
    assert kolmogorov_smirnov(source, draw(source, alpha), alpha) > 1e-3


@pytest.mark.parametrize("alpha", [0.3, 1.0, 8.0])
def test_kolmogorov_smirnov_over_seeds(alpha):
    """The first samples of consecutive seeds are as Beta as consecutive samples of one seed."""
    alpha64 = torch.tensor(alpha, dtype=torch.float64)
    lam = philox.symmetric_beta(torch.arange(-500, 500).unsqueeze(1), torch.arange(200), alpha64).flatten().numpy()
    assert kolmogorov_smirnov("float64", lam, alpha) > 1e-3


@pytest.mark.parametrize("source", SOURCES)
def test_the_kolmogorov_smirnov_test_can_fail(source):
    """A Beta with α off by 5% is told apart from the one that was asked for: the distribution functions are .006
    apart, where 1.95/√N = .0044 is rejected."""
    assert kolmogorov_smirnov(source, draw(source, 1.0), 1.05) < 1e-3


@pytest.mark.parametrize("t", [1e-6, 1e-4, 1e-2, 0.1, 0.5])
@pytest.mark.parametrize("alpha", SMALL_ALPHAS)
@pytest.mark.parametrize("source", SOURCES)
def test_tails(source, alpha, t):
    """P(λ < t) and P(1-λ < t), for α at which U^(1/α) underflows or 1-λ falls below float32's spacing near 1."""
    lam = draw(source, alpha)
    near = np.array([t, 1 - t])
    if source != "float64":
        near = near.astype(np.float32).astype(np.float64)
    # Values before and after those next to t and 1-t: probabilities up to the edges of their cells.
    low, high = cell(source, near)
    below, above = (stats.beta(alpha, alpha).cdf(edge) for edge in (low[0], 1 - high[1]))
    assert stats.binomtest(int((lam < near[0]).sum()), N, below).pvalue > 1e-4
    assert stats.binomtest(int((lam > near[1]).sum()), N, above).pvalue > 1e-4
    # Rounding has moved the thresholds by less than the test could see: half a standard error.
    exact = stats.beta(alpha, alpha).cdf(t)
    assert max(abs(below - exact), abs(above - exact)) < 0.5 * np.sqrt(exact * (1 - exact) / N)


@pytest.mark.parametrize("alpha", SMALL_ALPHAS + ALPHAS)
@pytest.mark.parametrize("source", SOURCES)
def test_moments(source, alpha):
    """Mean 1/2, variance 1/(4(2α+1)), no third central moment, fourth 3/(16(2α+1)(2α+3))."""
    lam = draw(source, alpha)
    assert_mean(lam, 0.5)
    assert_mean((lam - 0.5) ** 2, 1 / (4 * (2 * alpha + 1)))
    assert_mean((lam - 0.5) ** 3, 0.0)
    assert_mean((lam - 0.5) ** 4, 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3)))


@pytest.mark.parametrize("alpha", [1e-300, 1e-20, 1e-4])
def test_tiny_alphas_on_the_device(alpha):
    """Never NaN: a fair coin, but for P(1e-6 < λ < 1-1e-6) <= 13.8·α: the density is at most α/(2λ(1-λ))."""
    plan = fm.MixUp(alpha=alpha, per="sample").sample(50_000, (1,), seed=4)
    for lam in (beta64(alpha, 4, 50_000), plan.lam.double().numpy()):
        assert ((lam >= 0) & (lam <= 1)).all()
        assert stats.binomtest(int((lam < 0.5).sum()), lam.size, 0.5).pvalue > 1e-4
        between = int(((lam > 1e-6) & (lam < 1 - 1e-6)).sum())
        assert stats.binomtest(between, lam.size, alpha * np.log(1e6 - 1), alternative="greater").pvalue > 1e-4


@pytest.mark.parametrize("alpha", [1e6, 1e20, 1e300])
def test_huge_alphas_on_the_device(alpha):
    """Never NaN: normal around 1/2 with the variance 1/(4(2α+1)), of which 6 standard deviations hold 50000 draws."""
    plan = fm.MixUp(alpha=alpha, per="sample").sample(50_000, (1,), seed=4)
    for lam in (beta64(alpha, 4, 50_000), plan.lam.double().numpy()):
        assert np.abs(lam - 0.5).max() <= 3 / np.sqrt(2 * alpha) + 2.0**-25
    if alpha == 1e6:
        assert kolmogorov_smirnov("float64", beta64(alpha, 4, 50_000), alpha) > 1e-3


@pytest.mark.parametrize("alpha", [1e-4, 1e6])
def test_extreme_alphas_on_the_host(alpha):
    lam = draw("host", alpha, 4)
    assert ((lam >= 0) & (lam <= 1)).all()


@pytest.mark.parametrize("alpha", [1e-300, 1e-4, 0.1, 1.0, 8.0, 1e6, 1e300])
def test_extreme_words_never_give_nan(alpha, monkeypatch):
    """Every combination of the smallest, a middle and the largest word: uniforms next to 0 and 1, cosines of ±1."""
    levels = [0, 2**31, 2**32 - 1]
    table = torch.tensor(list(itertools.product(levels, repeat=8))).T
    both_calls = table.reshape(2, 4, -1).unbind(1)
    monkeypatch.setattr(philox, "words", lambda seed, index, stream, call: both_calls)
    index = torch.arange(table.shape[1])
    lam = philox.symmetric_beta(torch.tensor(0), index, torch.tensor(alpha, dtype=torch.float64))
    assert ((lam >= 0) & (lam <= 1)).all()
    assert lam.shape == index.shape
    assert lam.min() < 0.5 < lam.max() or alpha == 1e300


def test_alpha_broadcasts_against_the_index():
    """Each sample may have its own α (RandomMix): the same λ as alone."""
    alpha = torch.tensor([0.1, 1.0, 8.0], dtype=torch.float64).repeat(100)
    together = philox.symmetric_beta(torch.tensor(5), torch.arange(300), alpha)
    for k, a in enumerate((0.1, 1.0, 8.0)):
        alone = beta64(a, 5, 300)
        assert np.array_equal(together.numpy()[k::3], alone[k::3])


@pytest.mark.parametrize("lag", [1, 2, 7])
@pytest.mark.parametrize("source", SOURCES)
def test_samples_of_one_seed_are_independent(source, lag):
    """The correlation of λ, and of its distance to 1/2, is within four standard errors, 1/√n, of 0."""
    lam = draw(source, 0.5)
    for x in (lam, np.abs(lam - 0.5)):
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) <= 4 / np.sqrt(N - lag)


# Of a seed torch's CPU generator takes 32 bits, Philox all 64.
@pytest.mark.parametrize(
    ("source", "step"), [("float64", 1), ("device", 1), ("host", 1), ("float64", 2**32), ("device", 2**32)]
)
def test_seeds_are_independent(source, step):
    a, b = draw(source, 0.5), draw(source, 0.5, seed=1 + step)
    for x, y in ((a, b), (np.abs(a - 0.5), np.abs(b - 0.5))):
        assert abs(np.corrcoef(x, y)[0, 1]) <= 4 / np.sqrt(N)


@pytest.mark.parametrize("sampling", ["device", "host"])
def test_lam_is_independent_of_the_centre(sampling):
    plan = fm.GMix(alpha=1.0, per="sample", sampling=sampling).sample(50_000, (64, 32), seed=7)
    y, x = plan.geometry[:, 1].numpy(), plan.geometry[:, 2].numpy()
    lam = plan.lam.numpy()
    for a, b in ((lam, y), (lam, x), (y, x), (np.abs(lam - 0.5), np.abs(y - 31.5)), (lam[1:], x[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) <= 4 / np.sqrt(len(a))


@pytest.mark.parametrize("sampling", ["device", "host"])
def test_per_batch_over_seeds(sampling):
    """One λ a batch: Beta over the seeds, and the same for all samples."""
    mix = fm.MixUp(alpha=0.5, sampling=sampling)
    lam = torch.stack([mix.sample(3, (1,), seed=seed).lam for seed in range(500)])
    assert (lam == lam[:, :1]).all()
    assert kolmogorov_smirnov(sampling, lam[:, 0].double().numpy(), 0.5) > 1e-3
