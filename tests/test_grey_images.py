"""FMix's grey images, and how binary masks and ramps are made of them.

What is expected comes from the formulas (METHODS), written here once more as plainly as possible, and from NumPy's FFT.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from fusedmix import fourier
from fusedmix.masks.fourier import unpack
from fusedmix.philox import Stream, words


def released_form(n0, n1, height, width, decay):
    """METHODS, "variant=released": the closed form, pixel by pixel."""
    rows, least = min(width // 2 + 1 + width % 2, height), 1 / max(height, width)
    f = np.fft.fftfreq(width)[:rows]
    s0 = np.maximum(np.abs(f), least) ** -decay
    s1 = np.maximum(np.sqrt(f**2 + height**-2.0), least) ** -decay
    y, x = np.mgrid[:height, :width]
    g = np.zeros((height, width))
    for a, b in itertools.product(range(rows), (0, 1)):
        theta = 2 * np.pi * (a * y / height + b * x / width)
        g += (1, 2)[b] * (s0[a] * n0[a, b] * np.cos(theta) - s1[a] * n1[a, b] * np.sin(theta))
    return g


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (12, 9), (5, 31), (31, 6), (224, 224)])
@pytest.mark.parametrize("decay", [3.0, 1.3])
def test_released_grey_images_have_the_closed_form(size, decay):
    seed, index = torch.tensor(5), torch.tensor([3])
    along = fourier.frequencies(size, "released")
    n0, n1 = (n[0].numpy() for n in fourier.noise(seed, index, along))
    expected = released_form(n0, n1, *size, decay) * max(size) ** -decay
    grey = fourier.grey(seed, index, size, "released", decay, math.inf)[0].numpy()
    assert np.abs(grey - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("size", [(7, 3, 9), (4, 6, 5), (6, 6, 6), (50,), (51,)])
def test_released_grey_images_follow_the_code_in_other_dimensions(size):
    """Which takes entries 0 and 1 of its noise along the first axis for the real and the imaginary part."""
    seed, index, decay = torch.tensor(8), torch.tensor([0]), 2.0
    along = fourier.frequencies(size, "released")
    n0, n1 = (n[0].numpy() for n in fourier.noise(seed, index, along))
    half = size[-1] // 2 + 1 + size[-1] % 2
    f = [np.fft.fftfreq(n) for n in size[:-1]] + [np.fft.fftfreq(size[-1])[:half]]
    radius = np.sqrt(sum(g**2 for g in np.meshgrid(*f, indexing="ij")))
    scale = np.broadcast_to((1 / np.maximum(radius, 1 / max(size)) ** decay)[..., None], (*radius.shape, 2))
    real, imaginary = (np.array(part) for part in (scale[0], scale[1]))  # It slips: these are not of the last axis.
    cut = tuple(slice(len(k)) for k in along)
    spectrum = real[cut] * n0 + 1j * imaginary[cut] * n1
    expected = np.fft.irfftn(spectrum, size, axes=range(len(size))) * np.prod(size) * max(size) ** -decay
    grey = fourier.grey(seed, index, size, "released", decay, math.inf)[0].numpy()
    assert np.abs(grey - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("size", [(16,), (17,), (8, 8), (9, 12), (12, 9), (7, 7), (4, 6, 8), (5, 3, 7)])
@pytest.mark.parametrize("cutoff", [math.inf, 3.0])
def test_paper_grey_images_are_inverse_transforms(size, cutoff):
    """Re ifft(Z·amplitude), with Z of the whole spectrum made of the noise of half of it."""
    seed, index, decay = torch.tensor(1), torch.tensor([0]), 2.5
    along = fourier.frequencies(size, "paper", cutoff)
    a, b = (n[0].numpy() for n in fourier.noise(seed, index, along))
    spectrum = np.zeros(size, dtype=complex)
    for at in itertools.product(*(range(len(k)) for k in along)):
        k = tuple(frequencies[i] for frequencies, i in zip(along, at, strict=True))
        f = math.sqrt(sum((k_axis / n) ** 2 for k_axis, n in zip(k, size, strict=True)))
        assert cutoff == math.inf or max(abs(i) / n for i, n in zip(k, size, strict=True)) <= cutoff / max(size)
        both = k[-1] != 0 and 2 * k[-1] != size[-1]
        z = (a[at] + 1j * b[at]) * (math.sqrt(2) if both else 1)
        spectrum[k] += z / max(f * max(size), 1) ** decay
    expected = np.fft.ifftn(spectrum).real * math.prod(size)
    grey = fourier.grey(seed, index, size, "paper", decay, cutoff)[0].numpy()
    assert np.abs(grey - expected).max() <= 1e-9 * max(1, np.abs(expected).max())
    if cutoff == math.inf:  # Every pair k, -k of the whole spectrum occurs once.
        folded = {tuple(i % n for i, n in zip(k, size, strict=True)) for k in itertools.product(*along)}
        mirrored = {tuple(-i % n for i, n in zip(k, size, strict=True)) for k in folded}
        assert folded | mirrored == set(itertools.product(*map(range, size)))
        assert all(k in folded for k in folded & mirrored if k[-1] in (0, size[-1] / 2))


def test_noise_is_of_the_frequency():
    """Whatever the size, the cut-off and the variant; independent from mask to mask; and standard normal."""
    seed = torch.tensor(11)
    small, large = (fourier.frequencies((n, n), "paper", cutoff) for n, cutoff in ((24, math.inf), (40, 5)))
    a, b = fourier.noise(seed, torch.arange(3), small)
    c, d = fourier.noise(seed, torch.arange(3), large)
    for ky, kx in itertools.product(range(-5, 6), range(6)):
        here, there = (slice(None), ky - small[0].start, kx), (slice(None), ky - large[0].start, kx)
        assert torch.equal(a[here], c[there])
        assert torch.equal(b[here], d[there])
    many = torch.cat([n.flatten() for n in fourier.noise(seed, torch.arange(400), small)])
    assert stats.kstest(many.numpy(), "norm").pvalue > 1e-3
    assert many.unique().numel() > 0.99 * many.numel()
    high, low, _, _ = words(seed, torch.tensor(2), Stream.NOISE, (3 << 16) + 7)
    u, turn = (2 * (int(high) >> 9) + 1) * 2.0**-24, (int(low) >> 8) * 2.0**-24
    radius = math.sqrt(-2 * math.log(u))
    at = (2, 3 - small[0].start, 7)
    assert a[at].item() == pytest.approx(radius * math.cos(2 * math.pi * turn), rel=1e-12, abs=1e-12)
    assert b[at].item() == pytest.approx(radius * math.sin(2 * math.pi * turn), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("soft", [False, True])
def test_equal_values_are_ranked_by_their_place(soft):
    grey = torch.tensor([[0.5, 0.25, 0.5, 0.5, 0.25, 1.0]])
    level = fourier.levels(grey, torch.tensor([3]), torch.tensor([int(soft)]))
    # Pixel 5 comes first, then 0, 2, 3, then 1, 4.
    assert level.tolist() == [[65535, 0, 65535, 0, 0, 65535]]
    level = fourier.levels(grey, torch.tensor([3]), torch.tensor([2]))
    assert level.tolist() == [[65535, 0, 43690, 21845, 0, 65535]]


def test_bits_and_levels_are_unpacked():
    ones = torch.rand(3, 77) < 0.5
    words_ = fourier.pack(ones)
    assert words_.shape == (3, fourier.words_per_mask((7, 11))) == (3, 3)
    assert torch.equal(unpack(words_, (7, 11)), ones.float().reshape(3, 7, 11))
    for q in (0, 31, 32, 76):
        assert bool(words_[1, q // 32].item() >> (q % 32) & 1) == ones[1, q]
    levels = torch.tensor([[0, 1, 32767, 32768, 65535]])
    expected = levels.float() / 65535
    assert torch.equal(unpack(levels.to(torch.int16), (5,)), expected)
