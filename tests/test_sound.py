"""Between-class learning: levels of sounds and how sounds are mixed, held against the paper's formulas."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fusedmix as fm
from callers import CPP

B, K, RATE, SAMPLES = 6, 4, 16000, 5000
Y = torch.tensor([0, 1, 2, 3, 1, 0])


def sounds(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Noise, each of another loudness."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape or (B, SAMPLES), generator=generator)
    return (x * 10.0 ** (-torch.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1)) / 4)).to(dtype)


def tone(frequency: float, rate: int, seconds: float = 1.0) -> torch.Tensor:
    return torch.sin(2 * torch.pi * frequency * torch.arange(int(seconds * rate), dtype=torch.float64) / rate)[None]


def a_weighting(f):
    """IEC 61672-1, annex E: in dB, 0 at 1 kHz, where the quotient is 1/10^(2/20) but for .0000x dB."""
    r = 12194**2 * f**4
    r = r / ((f**2 + 20.6**2) * (f**2 + 12194**2) * np.sqrt((f**2 + 107.7**2) * (f**2 + 737.9**2)))
    return 20 * np.log10(r) + 2.0


def level(sound, rate, window, weighting="A"):
    """Of one sound of one channel, window by window."""
    found = []
    for first in range(0, len(sound) - window + 1, window // 2):
        part = sound[first : first + window]
        if weighting == "none":
            found.append(np.mean(part**2))
            continue
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        power = np.abs(np.fft.rfft(hann * part)) ** 2
        f = np.arange(window // 2 + 1) * rate / window
        f[0] = 1.0
        found.append(np.sum(power * 10 ** (np.maximum(a_weighting(f), -80) / 10)))
    return 10 * np.log10(max(*found, 1e-8))


@pytest.mark.parametrize("weighting", ["A", "none"])
@pytest.mark.parametrize(("rate", "window"), [(16000, 2048), (44100, 4096), (8000, 1024), (22050, 2048), (48000, 4096)])
def test_levels(rate, window, weighting):
    x = sounds(4, 11000)
    x[:, 4000:9000] *= 5.0  # not at the beginning
    found = fm.sound_levels(x, rate, weighting=weighting)
    expected = [level(sound, rate, window, weighting) for sound in x.double().numpy()]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(fm.sound_levels(x, rate, weighting=weighting, window=window), found)


@pytest.mark.parametrize(
    ("frequency", "decibels"), [(100, -19.1), (500, -3.2), (2000, 1.2), (4000, 1.0), (10000, -2.5)]
)
def test_levels_of_tones_have_the_weights_of_the_norm(frequency, decibels):
    """The table of IEC 61672-1, to a tenth of a decibel."""
    heard = fm.sound_levels(tone(frequency, 44100), 44100) - fm.sound_levels(tone(1000, 44100), 44100)
    assert abs(float(heard) - decibels) < 0.1


def test_a_louder_sound_is_as_many_decibels_louder():
    x = sounds(3, SAMPLES, dtype=torch.float64)
    torch.testing.assert_close(fm.sound_levels(x * 10.0, RATE), fm.sound_levels(x, RATE) + 20.0, rtol=0, atol=1e-4)


def test_levels_of_other_shapes():
    x = sounds()
    stereo = torch.stack((x, torch.zeros_like(x)), dim=1)
    half_the_power = fm.sound_levels(x, RATE) + 10 * np.log10(0.5)
    torch.testing.assert_close(fm.sound_levels(stereo, RATE), half_the_power, rtol=0, atol=1e-4)
    torch.testing.assert_close(fm.sound_levels(x.half(), RATE), fm.sound_levels(x, RATE), rtol=0, atol=0.05)
    short, longer = x[:, :700], F.pad(x[:, :700], (0, 2048 - 700))
    torch.testing.assert_close(fm.sound_levels(short, RATE), fm.sound_levels(longer, RATE))
    assert fm.sound_levels(torch.zeros(2, SAMPLES), RATE).tolist() == [-80.0, -80.0]
    assert fm.sound_levels(x[:0], RATE).shape == (0,)
    assert not fm.sound_levels(x.requires_grad_(), RATE).requires_grad


def coefficients(r, level, lent):
    """Equations 2 and 3."""
    p = 1 / (1 + 10 ** ((level - lent) / 20) * (1 - r) / r)
    return p / np.sqrt(p**2 + (1 - p) ** 2), (1 - p) / np.sqrt(p**2 + (1 - p) ** 2)


def drawn_twice(mix, *batch, **more):
    torch.manual_seed(5)
    x, targets = mix(*batch, **more)
    torch.manual_seed(5)
    levels = more.get("levels", fm.sound_levels(batch[0], RATE))
    size = batch[0].shape[-1:]
    return x, targets, mix.sample(len(batch[0]), size, levels=levels, labels=batch[1]), levels.double().numpy()


@pytest.mark.parametrize("backend", ["reference", CPP])
@pytest.mark.parametrize("shape", [(B, SAMPLES), (B, 2, SAMPLES)], ids=["mono", "stereo"])
@pytest.mark.parametrize("pairing", ["roll", "flip", "random", "cross_class"])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_sounds_are_mixed_by_the_equations(per, pairing, shape, backend):
    x = sounds(*shape)
    mix = fm.BetweenClassMix(sample_rate=RATE, num_classes=K, per=per, pairing=pairing, backend=backend)
    out, targets, plan, levels = drawn_twice(mix, x, Y)
    r, partner = plan.lam.double().numpy(), plan.partner.numpy()
    own, lent = coefficients(r, levels, levels[partner])
    np.testing.assert_allclose(plan.gains, np.stack((own, lent), 1), rtol=0, atol=1e-6)
    wide = x.double().numpy()
    shaped = (-1, *[1] * (x.ndim - 1))
    expected = own.reshape(shaped) * wide + lent.reshape(shaped) * wide[partner]
    assert np.abs(out.numpy() - expected).max() < 1e-5
    y = np.eye(K)[Y]
    np.testing.assert_allclose(targets, r[:, None] * y + (1 - r[:, None]) * y[partner], rtol=0, atol=1e-6)
    if pairing == "cross_class":
        assert (Y[plan.partner] != Y).all()


def test_sounds_are_heard_in_the_ratio_of_their_labels():
    """What the equations are for: the amplitudes of both, at their levels, are as r to 1-r; and of two sounds that have
    nothing to do with each other and one level the mix has that level, too."""
    x = sounds()
    levels = fm.sound_levels(x, RATE).double()
    plan = fm.BetweenClassMix(sample_rate=RATE, per="sample").sample(B, (SAMPLES,), levels=levels, seed=1)
    own, lent = (plan.gains.double() * 10.0 ** (torch.stack((levels, levels[plan.partner]), 1) / 20)).unbind(1)
    torch.testing.assert_close(own / (own + lent), plan.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        plan.gains.double().square().sum(1), torch.ones(B, dtype=torch.float64), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_sound_alone_is_itself(lam):
    x = sounds()
    plan = fm.BetweenClassMix(sample_rate=RATE).sample(B, (SAMPLES,), lam=lam, levels=fm.sound_levels(x, RATE))
    assert torch.equal(fm.mix(x, plan), x if lam else x[plan.partner])
    x[0] = torch.nan
    assert not fm.mix(x, plan)[2:].isnan().any()


def test_levels_that_are_given():
    x, levels = sounds(), torch.linspace(-60, 0, B)
    out, _, plan, _ = drawn_twice(fm.BetweenClassMix(sample_rate=RATE, num_classes=K), x, Y, levels=levels)
    own, lent = coefficients(plan.lam.double().numpy(), levels.double().numpy(), levels[plan.partner].double().numpy())
    np.testing.assert_allclose(plan.gains, np.stack((own, lent), 1), rtol=0, atol=1e-6)
    assert torch.equal(out, fm.mix(x, plan))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["reference", CPP])
def test_dtypes(backend, dtype):
    x = sounds(dtype=dtype)
    plan = fm.BetweenClassMix(sample_rate=RATE, per="sample").sample(B, (SAMPLES,), levels=torch.zeros(B), seed=0)
    own, lent = plan.gains.double().unsqueeze(2).unbind(1)
    out = fm.mix(x, plan, backend=backend)
    assert out.dtype == dtype
    torch.testing.assert_close(
        out, (own * x.double() + lent * x.double()[plan.partner]).to(dtype), rtol=0.02, atol=1e-3
    )


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(n):
    mix = fm.BetweenClassMix(sample_rate=RATE, num_classes=K)
    x, targets = mix(sounds()[:n], Y[:n])
    assert x.shape == (n, SAMPLES)
    assert targets.shape == (n, K)


def test_slices_and_gradients():
    whole = sounds(B, 2 * SAMPLES, dtype=torch.float64)
    x = whole[:, ::2].requires_grad_()
    mix = fm.BetweenClassMix(sample_rate=RATE, num_classes=K)
    plan = mix.sample(B, (SAMPLES,), levels=fm.sound_levels(x, RATE), seed=0)
    weights = torch.randn(B, SAMPLES, dtype=torch.float64)
    (found,) = torch.autograd.grad((fm.mix(x, plan) * weights).sum(), x)
    own, lent = plan.gains.double().unsqueeze(2).unbind(1)
    expected = own * weights
    expected[plan.partner] += lent * weights
    torch.testing.assert_close(found, expected)


def test_losses_take_the_label_weights():
    plan = fm.BetweenClassMix(sample_rate=RATE, per="sample").sample(B, (SAMPLES,), levels=torch.zeros(B), seed=0)
    logits = torch.randn(B, K)
    dense = F.cross_entropy(logits, fm.mix_labels(Y, plan, num_classes=K))
    torch.testing.assert_close(fm.mix_cross_entropy(logits, Y, plan), dense)


def test_a_module_and_its_plan_are_pickled():
    mix = fm.BetweenClassMix(sample_rate=RATE, window=1024, alpha=2.0)
    assert repr(pickle.loads(pickle.dumps(mix))) == repr(mix)
    assert "sample_rate=16000" in repr(mix)
    assert (mix.sample_rate, mix.window, mix.alpha) == (RATE, 1024, 2.0)
    plan = mix.sample(B, (SAMPLES,), levels=torch.zeros(B), seed=0)
    assert torch.equal(pickle.loads(pickle.dumps(plan)).gains, plan.gains)
    assert torch.equal(plan.to("cpu").gains, plan.gains)


def test_levels_serve_several_sounds():
    """Of any lengths: the levels of the first, or those that are given, are for all."""
    first, second = torch.randn(4, 1600), torch.randn(4, 800)
    mixer = fm.BetweenClassMix(
        sample_rate=16000,
        num_classes=4,
        images_getter=lambda batch: [batch["near"], batch["far"]],
        labels_getter=lambda batch: batch["labels"],
    )
    batch = {"near": first, "far": second, "labels": torch.arange(4)}
    levels = fm.sound_levels(first, 16000)
    torch.manual_seed(0)
    found = mixer(batch)
    torch.manual_seed(0)
    given = mixer(batch, levels=levels)
    assert given["far"].shape == second.shape
    assert all(torch.equal(given[key], found[key]) for key in batch)
