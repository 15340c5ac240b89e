"""Philox4x32-10 and what is made of its words, against published vectors, Python's integers and chi-squared."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

import fusedmix as fm
from fusedmix.masks.family import own_uniform
from fusedmix.philox import Stream, below, philox4x32, sort_key, uniform, words
from mask_formulas import draws_at

MASK = 0xFFFFFFFF
ONES = 2**64 - 1

# counter, key, result: the three philox4x32 10 lines of Random123's kat_vectors (Salmon et al. 2011)
KNOWN_ANSWERS = {
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}
# The streams of a seed, by number: what a seed means must not change from one release to the next.
LAM, CENTRE, CHOICE, APPLY, PARTNER = 0, 1, 2, 3, 4


def python_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 on Python's integers, as section 4.3 of the paper writes a round."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for r in range(10):
        r0, r1 = (k0 + r * 0x9E3779B9) % 2**32, (k1 + r * 0xBB67AE85) % 2**32
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ r0, low1, high0 ^ c3 ^ r1, low0
    return c0, c1, c2, c3


def python_words(seed: int, index: int, stream: int, call: int = 0) -> tuple[int, ...]:
    """The words at an index: Python's integers are two's complement of any length, so a shift takes the sign along."""
    return python_philox((index & MASK, index >> 32 & MASK, stream, call), (seed & MASK, seed >> 32 & MASK))


def python_uniform(high: int, low: int) -> float:
    """The middle of one of 2^52 equal cells of (0, 1)."""
    return float(Fraction(high * 2**20 + low // 2**12) / 2**52 + Fraction(1, 2**53))


def python_lam(seed: int, index: int, alpha: float) -> float:
    """Beta(α, α) from eight words: Ulrich's polar formula for α+1, and Stuart's boost of both gammas down to α."""
    a, b, c, d = python_words(seed, index, LAM, 0)
    e, f, g, h = python_words(seed, index, LAM, 1)
    u, v = python_uniform(a, b), python_uniform(c, d)
    t = math.cos(2 * math.pi * v) * math.sqrt(-math.expm1(2 / (2 * alpha + 1) * math.log(u)))
    log_odds = (
        math.log1p(t) - math.log1p(-t) + (math.log(python_uniform(e, f)) - math.log(python_uniform(g, h))) / alpha
    )
    return 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else math.exp(log_odds)


def signed(x: int) -> int:
    """64 bits as int64 reads them."""
    return (x + 2**63) % 2**64 - 2**63


def tensors(values: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(v) for v in values)


# ---------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS.values(), ids=KNOWN_ANSWERS)
def test_published_vectors(counter, key, result):
    assert tuple(int(word) for word in philox4x32(tensors(counter), tensors(key))) == result
    assert python_philox(counter, key) == result


def test_published_vectors_as_seed_and_index():
    """All bits set: seed and index of -1, and the second half of the counter by stream and call."""
    assert [int(w) for w in words(torch.tensor(0), torch.tensor(0), Stream.LAM)] == list(KNOWN_ANSWERS["zeros"][2])
    key, counter = 0x299F31D0A4093822, 0x85A308D3243F6A88
    expected = python_philox((0x243F6A88, 0x85A308D3, 1, 2), (0xA4093822, 0x299F31D0))
    drawn = words(torch.tensor(key), torch.tensor(signed(counter)), Stream.CENTRE, 2)
    assert tuple(int(w) for w in drawn) == expected


@pytest.mark.parametrize("stream", list(Stream))
@pytest.mark.parametrize("call", [0, 1, MASK])
def test_words_equal_python_integers(stream, call):
    rng = random.Random(1000 * stream + call)
    edges = [0, 1, -1, MASK, MASK + 1, -MASK, 2**63 - 1, -(2**63)]
    indices = edges + [signed(rng.getrandbits(64)) for _ in range(40)]
    for seed in edges + [signed(rng.getrandbits(64)) for _ in range(12)]:
        drawn = words(torch.tensor(seed), torch.tensor(indices), stream, call)
        assert torch.stack(drawn, 1).tolist() == [list(python_words(seed, i, stream, call)) for i in indices]


def test_words_keep_the_shape_of_the_index():
    index = torch.arange(24).reshape(2, 3, 4)
    for word, flat in zip(
        words(torch.tensor(7), index, Stream.LAM), words(torch.tensor(7), index.flatten(), Stream.LAM), strict=True
    ):
        assert word.shape == index.shape
        assert torch.equal(word.flatten(), flat)


def test_streams_calls_seeds_and_indices_share_no_word():
    """2·7·50·50 blocks of 128 bits: that two agree has a probability of 1e-30."""
    seed, index = torch.arange(-25, 25).unsqueeze(1), torch.arange(50)
    blocks = [torch.stack(words(seed, index, s, c), -1).reshape(-1, 4) for s in Stream for c in (0, 1)]
    blocks = torch.cat(blocks)
    assert blocks.unique(dim=0).shape == blocks.shape


@pytest.mark.parametrize("over", ["indices", "seeds"])
def test_words_are_uniform(over):
    """The upper and the lower byte of each word, over consecutive indices and over consecutive seeds."""
    n = torch.arange(50_000)
    drawn = words(torch.tensor(5), n, Stream.PARTNER) if over == "indices" else words(n, n * 0, Stream.PARTNER)
    for word in drawn:
        for shift in (0, 24):
            counts = torch.bincount(word >> shift & 255, minlength=256).numpy()
            assert stats.chisquare(counts).pvalue > 1e-4


# ------------------------------------------------------------------------------------------ uniform, below, sort_key


def test_uniform_stays_inside_the_open_interval():
    zero, ones = torch.tensor(0), torch.tensor(MASK)
    assert uniform(zero, zero).item() == 2.0**-53
    assert uniform(ones, ones).item() == 1 - 2.0**-53
    assert uniform(zero, zero).dtype == torch.float64


def test_uniform_is_symmetric_and_exact():
    rng = random.Random(2)
    pairs = [(rng.getrandbits(32), rng.getrandbits(32)) for _ in range(2000)] + [(0, MASK), (MASK, 0), (2**31, 0)]
    high, low = (torch.tensor(x) for x in zip(*pairs, strict=True))
    drawn = uniform(high, low)
    assert drawn.tolist() == [python_uniform(*pair) for pair in pairs]
    assert torch.equal(uniform(MASK - high, MASK - low), 1.0 - drawn)


def test_uniform_is_uniform():
    drawn = uniform(*words(torch.tensor(11), torch.arange(100_000), Stream.CHOICE)[:2]).numpy()
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    # Its lowest bits too: the place within one of 2^20 cells.
    assert stats.kstest(drawn * 2**20 % 1, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("n", [1, 2, 3, 7, 224, 1000, 65_537, 2**31 - 1])
def test_below_has_equal_shares(n):
    """Each result k is taken by the words from ⌈k·2³²/n⌉ to the next: within one word of equal shares."""
    for k in sorted({*range(min(n, 50)), n // 2, n - 2, n - 1} - {-1}):
        first, stop = -(-k * 2**32 // n), -(-(k + 1) * 2**32 // n)
        assert below(torch.tensor([first, stop - 1]), n).tolist() == [k, k]
        assert abs(stop - first - 2**32 / n) < 1
    assert below(torch.tensor([0, MASK]), n).tolist() == [0, n - 1]


@pytest.mark.parametrize("n", [2, 7, 224])
def test_below_is_uniform(n):
    drawn = below(words(torch.tensor(-3), torch.arange(100_000), Stream.CENTRE)[1], n)
    assert stats.chisquare(torch.bincount(drawn, minlength=n).numpy()).pvalue > 1e-4


def test_sort_keys_are_63_bits_in_order():
    rng = random.Random(3)
    pairs = [(rng.getrandbits(32), rng.getrandbits(32)) for _ in range(1000)] + [(0, 0), (MASK, MASK), (0, 1), (1, 0)]
    high, low = (torch.tensor(x) for x in zip(*pairs, strict=True))
    assert sort_key(high, low).tolist() == [(h * 2**32 + v) // 2 for h, v in pairs]


# ------------------------------------------------------------------------------------------------ what a seed means

SEEDS = [0, 1, -1, 20_240_229, 2**63 - 1, -(2**63), 2**64 - 12_345]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
def test_lam_of_a_seed(seed, alpha):
    """λ of sample i is the Beta of the words of stream 0 at i, rounded once to float32."""
    lam = fm.MixUp(alpha=alpha, per="sample").sample(50, (4, 4), seed=seed).lam
    expected = np.array([python_lam(signed(seed), i, alpha) for i in range(50)])
    spacing = np.spacing(expected.astype(np.float32)).astype(np.float64)
    assert (np.abs(lam.double().numpy() - expected) <= 0.501 * spacing).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [(97,), (224, 31), (5, 64, 33)])
def test_centre_of_a_seed(seed, size):
    """Words 0, 1, 2 of stream 1 are the centre along the last, second to last and third to last axis."""
    centre = fm.GMix(per="sample").sample(50, size, lam=0.5, seed=seed).geometry[:, :3]
    drawn = [python_words(signed(seed), i, CENTRE) for i in range(50)]
    expected = [[w[axis] * side >> 32 for axis, side in enumerate(reversed(size))] for w in drawn]
    assert centre[:, 3 - len(size) :].flip(1).tolist() == expected
    assert not centre[:, : 3 - len(size)].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_random_partners_of_a_seed(seed):
    """The partner of sample i is the rank of its key, 63 bits of stream 4."""
    partner = fm.MixUp(pairing="random", sampling="device").sample(50, (1,), seed=seed).partner
    keys = [(w[0] * 2**32 + w[1]) // 2 for w in (python_words(signed(seed), i, PARTNER) for i in range(50))]
    assert partner.tolist() == [sorted(keys).index(key) for key in keys]


@pytest.mark.parametrize("seed", SEEDS)
def test_choices_of_a_seed(seed):
    """Stream 2 chooses the method and lets the batch's p decide, stream 3 the method's."""
    mix = fm.RandomMix([fm.MixUp(p=0.5), fm.CutMix(p=0.8), fm.GMix()], weights=[1, 2, 5], per="sample", p=0.75)
    plan = mix.sample(200, (8, 8), lam=0.25, seed=seed)
    expected = []
    for i in range(200):
        a, b, c, d = python_words(signed(seed), i, CHOICE)
        e, f, _, _ = python_words(signed(seed), i, APPLY)
        choice = sum(python_uniform(a, b) >= edge for edge in (1 / 8, 3 / 8))
        applied = python_uniform(c, d) < 0.75 and python_uniform(e, f) < (0.5, 0.8, 1.0)[choice]
        expected.append((choice if applied else 0, 0.25 if applied else 1.0))
    assert list(zip(plan.kind.tolist(), plan.lam.tolist(), strict=True)) == expected


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_seeds_are_64_bits(sampling):
    """Seeds that differ by 2^64 are one; others are different, whichever of their halves differs."""
    mix = fm.CutMix(per="sample", sampling=sampling)

    def lam(seed: int) -> list[float]:
        return mix.sample(8, (16, 16), seed=seed).lam.tolist()

    assert lam(-1) == lam(ONES)
    assert lam(-(2**63)) == lam(2**63)
    different = [0, 1, 2] if sampling == "host" else [0, 1, 2, 2**32, 2**63, 2**32 + 1, ONES]
    assert len({tuple(lam(seed)) for seed in different}) == len(different)


# --------------------------------------------------------------------------------------------- what it depends on

STATELESS = {
    "MixUp": lambda **k: fm.MixUp(alpha=0.4, **k),
    "CutMix": lambda **k: fm.CutMix(p=0.5, **k),
    "HMix": lambda **k: fm.HMix(ratio=0.5, **k),
    "GMix": lambda **k: fm.GMix(variant="paper", **k),
    "RandomMix": lambda **k: fm.RandomMix([fm.MixUp(), fm.CutMix(), fm.GMix(p=0.7)], p=0.9, **k),
}


@pytest.mark.parametrize("make", STATELESS.values(), ids=STATELESS)
@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
def test_a_sample_does_not_depend_on_the_batch_size(make, pairing):
    mix = make(per="sample", pairing=pairing)
    large = mix.sample(1000, (33, 20), seed=42)
    for batch_size in (1, 2, 7, 999):
        small = mix.sample(batch_size, (33, 20), seed=42)
        for name in ("lam", "weight", "masks"):
            assert torch.equal(getattr(small, name), getattr(large, name)[:batch_size])


@pytest.mark.parametrize("make", STATELESS.values(), ids=STATELESS)
def test_pairs_and_batches_are_the_first_draws(make):
    """Pair i (of flip) has the draw of sample i, a batch that of sample 0."""
    each = make(per="sample", pairing="flip").sample(9, (16, 16), seed=3)
    pairs = make(per="pair", pairing="flip", sampling="device").sample(9, (16, 16), seed=3)
    batch = make(per="batch", pairing="flip", sampling="device").sample(9, (16, 16), seed=3)
    first = [0, 1, 2, 3, 4, 3, 2, 1, 0]
    for name in ("lam", "weight", "masks"):
        assert torch.equal(getattr(pairs, name), getattr(each, name)[first])
        assert torch.equal(getattr(batch, name), getattr(each, name)[[0] * 9])


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("pairing", ["roll", "random", "cross_class", "same_class"])
def test_a_seeded_draw_neither_reads_nor_moves_the_global_generator(sampling, pairing):
    mix = fm.RandomMix([fm.MixUp(), fm.CutMix()], p=0.9, per="sample", sampling=sampling, pairing=pairing)
    labels = torch.arange(64) % 5
    plans = []
    for state in (0, 1):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        plans.append(mix.sample(64, (32, 32), seed=9, labels=labels))
        assert torch.equal(torch.get_rng_state(), before)
    for name in ("partner", "lam", "weight", "masks"):
        assert torch.equal(getattr(plans[0], name), getattr(plans[1], name))


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_an_unseeded_draw_follows_the_generator(sampling):
    mix = fm.CutMix(per="sample", sampling=sampling)

    def draw(generator: torch.Generator | None = None) -> list[float]:
        return mix.sample(16, (32, 32), generator=generator).lam.tolist()

    torch.manual_seed(1)
    first, second = draw(), draw()
    torch.manual_seed(1)
    assert (draw(), draw()) == (first, second)
    torch.manual_seed(2)
    third = draw()
    assert first != second
    assert first != third
    assert second != third

    state = torch.get_rng_state()
    assert draw(torch.Generator().manual_seed(1)) == draw(torch.Generator().manual_seed(1)) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_a_host_seed_is_a_manual_seed():
    mix = fm.CutMix(pairing="random")
    torch.manual_seed(77)
    unseeded, seeded = mix.sample(16, (32, 32)), mix.sample(16, (32, 32), seed=77)
    for name in ("partner", "lam", "weight", "masks"):
        assert torch.equal(getattr(unseeded, name), getattr(seeded, name))


def test_numbers_of_a_family_are_independent():
    """Uniform, each of them, for each draw and under each seed."""
    draws = draws_at(torch.ones(20_000), torch.zeros(20_000, 1).long())
    seeds = [draws, draws._replace(noise=draws.noise + 1)]
    numbers = torch.stack([own_uniform(of, k) for of in seeds for k in range(5)])
    assert ((numbers > 0) & (numbers < 1)).all()
    assert all(stats.kstest(of.numpy(), "uniform").pvalue > 1e-4 for of in numbers)
    correlated = torch.corrcoef(numbers) - torch.eye(len(numbers))
    assert correlated.abs().max() < 5 / 20_000**0.5
