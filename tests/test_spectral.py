"""SpectralMix: the fields against their spectra, the masks against the fields, and what is mixed by them."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import fusedmix as fm
from conftest import NO_CPP, NO_CUDA, NO_TRITON, TRITON_DEVICE, TRITON_MARKS
from fusedmix import analysis
from fusedmix.spectra import Field

LEVEL = 1 / 131070  # half of one of 65535 levels
K = 4
BACKENDS = [
    "reference",
    pytest.param("cpp", marks=pytest.mark.skipif(NO_CPP is not None, reason=str(NO_CPP))),
    pytest.param("cuda", marks=pytest.mark.skipif(NO_CUDA is not None, reason=str(NO_CUDA))),
    pytest.param("triton", marks=[*TRITON_MARKS, pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))]),
]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8]


def device_of(backend):
    return {"cuda": "cuda", "triton": TRITON_DEVICE}.get(backend, "cpu")


def powers(*period):
    """Positive numbers for all frequencies, of which k and -k differ."""
    return torch.rand(period, generator=torch.Generator().manual_seed(math.prod(period)))


def covariance(spectrum, size, offset):
    """What the covariance of two pixels has to be, from the definition: the mean of cos 2πkd/period over all
    frequencies k, weighted by their power."""
    period = tuple(spectrum.shape) if isinstance(spectrum, torch.Tensor) else size
    grid = np.meshgrid(*(np.fft.fftfreq(n) for n in period), indexing="ij")  # cycles per pixel
    f = np.sqrt(sum(k**2 for k in grid))
    if isinstance(spectrum, torch.Tensor):
        power = spectrum.double().numpy()
    elif callable(spectrum):
        power = np.where(f > 0, spectrum(torch.tensor(np.where(f > 0, f, 1.0))).numpy(), 0.0)
    else:
        power = np.where(f > 0, np.where(f > 0, f, 1.0) ** (-2.0 * spectrum), 0.0)
    phase = 2 * np.pi * sum(k * d for k, d in zip(grid, offset, strict=True))
    return float((power * np.cos(phase)).sum() / power.sum())


SPECTRA = {
    "smooth": (3.0, (24, 18), [(0, 0), (2, 0), (0, 5), (-3, 4), (12, 9)]),
    "pink": (1.0, (15, 16), [(0, 0), (1, 0), (0, 1), (-7, 3)]),
    "white": (0.0, (9, 7), [(0, 0), (1, 0), (2, -1)]),
    "callable": (lambda f: torch.exp(-40 * (f - 0.1).square()), (17, 20), [(0, 0), (5, 0), (0, 5), (3, 4)]),
    "all powers": (powers(8, 9), (8, 9), [(0, 0), (1, 1), (-1, 1), (0, 4)]),
    "part of a period": (powers(14, 11), (8, 11), [(0, 0), (7, 0), (-2, 5)]),
    "the constant alone": (torch.eye(4)[:1] * torch.eye(1, 4), (1, 3), [(0, 0), (0, 2)]),
    "signals": (1.5, (40,), [(0,), (3,), (-20,)]),
    "parts of signals": (powers(31), (20,), [(0,), (19,)]),
    "volumes": (2.0, (6, 7, 8), [(0, 0, 0), (1, 0, 0), (0, -2, 0), (2, 3, 4)]),
    "powers of volumes": (powers(5, 4, 6), (4, 4, 5), [(0, 0, 0), (1, -1, 2), (3, 0, 0)]),
}
each_spectrum = pytest.mark.parametrize("name", SPECTRA)


@each_spectrum
def test_moments(name):
    """a(d) = (1-λ)² + σ²ρ(d) by Monte Carlo from the kernels, with ρ from the definition; and exactly."""
    spectrum, size, offsets = SPECTRA[name]
    mix, lam = fm.SpectralMix(spectrum=spectrum, contrast=0.8, clamp=False, per="sample"), 0.3
    wanted = [(1 - lam) ** 2 + 0.8**2 * lam * (1 - lam) * covariance(spectrum, size, d) for d in offsets]
    found = analysis.coefficients(mix, size, lam=lam, offsets=offsets, masks=3000, seed=3)
    distance = (found.mean - torch.tensor(wanted)).abs()
    assert (distance <= 4 * found.standard_error + 1e-5).all(), distance / found.standard_error
    assert abs(found.mask_mean - lam) <= 4 * found.mask_mean_error + 1e-6
    exact = analysis.exact(mix, size, lam=lam, offsets=offsets)
    torch.testing.assert_close(exact, torch.tensor(wanted, dtype=torch.float64), atol=1e-7, rtol=0)
    assert analysis.exact_mask_mean(mix, size, lam=lam) == pytest.approx(lam)


@pytest.mark.parametrize(("decay", "most"), [(3.0, 32), (2.5, 100)])
def test_cutoff(decay, most):
    """Of a power law the frequencies of FMix are drawn, and no others."""
    drawn = Field(decay).draw(torch.tensor(0), torch.arange(4), (200,))
    waves = torch.fft.rfft(drawn.double()).abs()
    assert waves[:, 1 : most + 1].mean(0).min() > 1e-4
    assert waves[:, most + 1 :].sum() < 1e-3
    assert waves[:, 0].max() < 1e-4


def test_fields_are_normal():
    mix = fm.SpectralMix(spectrum=powers(7, 6), contrast=1.0, clamp=False, per="sample")
    g = (mix.sample(4000, (7, 6), lam=0.5, seed=1).mask()[:, 3, 2].double() - 0.5) * 2
    for moment, wanted, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(g.pow(moment).mean() - wanted) <= 4 * math.sqrt(variance / 4000)


# ---- masks -----------------------------------------------------------------------------------------------------------


@each_spectrum
@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
def test_masks_are_what_they_should_be(name, per):
    """λ + σG, clamped or not, within the half of a level; of a batch, of pairs and of samples."""
    spectrum, size, _ = SPECTRA[name]
    clamped, free = (
        fm.SpectralMix(spectrum=spectrum, contrast=0.9, clamp=c, per=per, sampling="device") for c in (True, False)
    )
    a, b = (mix.sample(5, size, seed=11) for mix in (clamped, free))
    wide = b.mask().double()
    step = (b.span[:, 1] - b.span[:, 0]).double() * LEVEL + 1e-6
    of_lam = b.lam.double().reshape(-1, *[1] * len(size))
    twice = fm.SpectralMix(spectrum=spectrum, contrast=1.8, clamp=False, per=per, sampling="device")
    twice = twice.sample(5, size, seed=11).mask()
    # M is linear in the contrast, around λ.
    assert ((twice - of_lam - 2 * (wide - of_lam)).abs().flatten(1).amax(1) <= 4 * step).all()
    assert ((a.mask() - wide.clamp(0, 1)).abs().flatten(1).amax(1) <= step + LEVEL).all()
    assert a.span is None
    for plan in (a, b):
        assert torch.equal(plan.lam, fm.MixUp(per=per, sampling="device").sample(5, size, seed=11).lam)
        torch.testing.assert_close(plan.weight, plan.mask().double().flatten(1).mean(1), atol=1e-6, rtol=0)
        groups = {"batch": [0] * 5, "pair": [0, 1, 2, 1, 0], "sample": range(5)}[per]
        masks = plan.mask()
        for i, j in itertools.combinations(range(5), 2):
            assert torch.equal(masks[i], masks[j]) == (groups[i] == groups[j])
        assert plan.pixels.shape[0] == len(set(groups))


def test_label_weights():
    """Without the frequency 0 the mean of a mask is λ; of a clamped one it is what it is."""
    lam = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    for clamp in (True, False):
        mix = fm.SpectralMix(spectrum=1.0, contrast=0.8, clamp=clamp, per="sample")
        weight = mix.sample(5, (12, 10), lam=lam, seed=2).weight
        near = torch.isclose(weight, lam.double(), atol=1e-5)
        assert near.tolist() == ([True, False, False, False, True] if clamp else [True] * 5)


@pytest.mark.parametrize("clamp", [True, False])
@each_backend
def test_left_as_they_are(backend, clamp):
    device = device_of(backend)
    x, y = torch.rand(4, 3, 5, 6, device=device), torch.arange(4, device=device)
    for options in ({"p": 0.0}, {"training_only": True}):
        mix = fm.SpectralMix(clamp=clamp, num_classes=K, backend=backend, **options).eval()
        plan = mix.sample(4, (5, 6), device=device)
        assert (plan.weight == 1).all()
        assert torch.equal(fm.mix(x, plan, backend=backend), x)
    mix.train()
    mix.enabled = False
    images, targets = mix(x, y)
    assert torch.equal(images, x)
    assert torch.equal(targets, torch.eye(K, device=device))


def test_some_are_left_as_they_are():
    plan = fm.SpectralMix(p=0.5, per="sample").sample(64, (4, 4), seed=0)
    kept = plan.lam == 1
    assert 16 < kept.sum() < 48
    assert torch.equal((plan.mask() == 1).flatten(1).all(1), kept)


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_seeds(sampling):
    mix = fm.SpectralMix(per="sample", sampling=sampling, pairing="random")
    same = [mix.sample(6, (9, 8), seed=5) for _ in range(2)]
    assert torch.equal(same[0].pixels, same[1].pixels)
    assert torch.equal(same[0].partner, same[1].partner)
    assert not torch.equal(same[0].pixels, mix.sample(6, (9, 8), seed=6).pixels)
    if sampling == "device":  # A mask is that of its sample, whatever else there is.
        torch.testing.assert_close(mix.sample(3, (9, 8), seed=5).mask(), same[0].mask()[:3], atol=2 * LEVEL, rtol=0)
    torch.manual_seed(1)
    first = mix.sample(6, (9, 8))
    second = mix.sample(6, (9, 8))
    torch.manual_seed(1)
    assert torch.equal(mix.sample(6, (9, 8)).pixels, first.pixels)
    assert not torch.equal(first.pixels, second.pixels)


@pytest.mark.skipif(NO_CUDA is not None, reason="needs a GPU")
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_a_gpu_is_not_waited_for(per):
    modules = (
        fm.SpectralMix(per=per, sampling="device"),
        fm.SpectralMix(spectrum=powers(20, 20), clamp=False, per=per, sampling="device"),
        fm.MixUp(lam_law=("normal", 0.5, 0.5), per=per, sampling="device"),
    )
    for mix in modules:
        mix.sample(4, (16, 17), device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            plan = mix.sample(4, (16, 17), device="cuda")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert plan.device.type == "cuda"


# ---- batches ---------------------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_batches(backend, clamp, dtype):
    """x̃ = M ⊙ x + (1-M) ⊙ x[partner], of a module and of its plan."""
    device = device_of(backend)
    mix = fm.SpectralMix(
        spectrum=1.0, contrast=1.0, clamp=clamp, per="sample", pairing="random", num_classes=K, backend=backend
    )
    plan = mix.sample(5, (6, 7), seed=4, device=device)
    whole = dtype == torch.uint8
    x = torch.rand(5, 2, 6, 7, device=device)
    x = (x * 255).round().to(dtype) if whole else x.to(dtype)
    m = plan.mask().double().unsqueeze(1)
    wanted = m * x + (1 - m) * x[plan.partner]
    wanted = wanted.round().clamp(0, 255) if whole else wanted
    bound = 1.0 if whole else max(4 * torch.finfo(dtype).eps, 1e-6)
    found = fm.mix(x, plan, backend=backend)
    assert found.dtype == dtype
    distance = (found.double() - wanted).abs()
    assert distance.max() <= bound * max(1.0, float(wanted.abs().max()) * (not whole))
    if whole:  # only ties of the exact values may fall on either side
        assert (distance > 0).double().mean() < 0.02
    torch.manual_seed(7)
    images, targets = mix(x, torch.arange(5, device=device) % K)
    torch.manual_seed(7)
    plan = mix.sample(5, (6, 7), device=device)
    assert torch.equal(images, fm.mix(x, plan, backend=backend))
    assert torch.equal(targets, fm.mix_labels(torch.arange(5, device=device) % K, plan, num_classes=K))


@pytest.mark.parametrize("clamp", [True, False])
def test_gradients(clamp):
    plan = fm.SpectralMix(contrast=1.0, clamp=clamp, per="sample", pairing="random").sample(3, (2, 3), seed=1)
    x = torch.rand(3, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: fm.mix(x, plan), x)
    torch.autograd.gradgradcheck(lambda x: fm.mix(x, plan).square(), x)


@pytest.mark.parametrize("clamp", [True, False])
def test_other_batches(clamp):
    plan = fm.SpectralMix(contrast=1.0, clamp=clamp, per="sample").sample(4, (5, 6), seed=1)
    x, other = torch.rand(2, 4, 3, 5, 6)
    m = plan.mask().unsqueeze(1)
    torch.testing.assert_close(fm.mix(x, plan, other=other), m * x + (1 - m) * other[plan.partner])


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (fm.SpectralMix, {}),
        (fm.SpectralMix, {"clamp": False}),
        (fm.MixUp, {"lam_law": ("normal", 0.5, 1.0)}),
    ],
)
def test_modules_on_other_batches(make, options):
    mix = make(num_classes=K, per="sample", **options)
    x, y, other, labels = torch.rand(4, 3, 5, 6), torch.arange(4), torch.rand(7, 3, 5, 6), torch.arange(7) % K
    torch.manual_seed(2)
    images, targets = mix(x, y, other=(other, labels))
    torch.manual_seed(2)
    plan = mix.sample(4, (5, 6), other_size=7)
    torch.testing.assert_close(images, fm.mix(x, plan, other=other))
    torch.testing.assert_close(targets, fm.mix_labels(y, plan, other=labels, num_classes=K))


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
def test_no_samples(per, clamp):
    plan = fm.SpectralMix(clamp=clamp, per=per).sample(0, (5, 6))
    assert fm.mix(torch.rand(0, 3, 5, 6), plan).shape == (0, 3, 5, 6)
    assert plan.mask().shape == (0, 5, 6)
    assert plan.weight.shape == (0,)


def test_in_place():
    plans = [fm.SpectralMix(contrast=1.0, clamp=clamp).sample(4, (5, 6), seed=1) for clamp in (True, False)]
    x = torch.rand(4, 3, 5, 6)
    wanted, before = fm.mix(x, plans[0]), x.clone()
    with pytest.raises(fm.InplaceError, match=r"outside \[0, 1\]"):
        fm.mix_(x, plans[1])
    assert torch.equal(x, before)
    torch.testing.assert_close(fm.mix_(x, plans[0]), wanted)


# ---- the module ------------------------------------------------------------------------------------------------------


def test_compiled():
    torch._dynamo.reset()
    spectrum, size, _ = SPECTRA["all powers"]
    mix = fm.SpectralMix(spectrum=spectrum, contrast=1.0, clamp=False, per="sample", num_classes=K)
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    x, y = torch.rand(5, 2, *size), torch.arange(5) % K
    torch.manual_seed(1)
    found = compiled(x, y)
    torch.manual_seed(1)
    for ours, theirs in zip(found, mix(x, y), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_copies():
    mix = fm.SpectralMix(spectrum=powers(6, 6), contrast=0.7, clamp=False, alpha=0.4)
    plan = mix.sample(4, (5, 5), seed=3)
    for copied in (copy.deepcopy(mix), pickle.loads(pickle.dumps(mix))):
        assert torch.equal(copied.sample(4, (5, 5), seed=3).pixels, plan.pixels)
        assert repr(copied) == repr(mix)
    moved = plan.to("cpu", non_blocking=True)
    assert torch.equal(moved.mask(), plan.mask())


def test_set_later():
    mix, twin = fm.SpectralMix(), fm.SpectralMix(contrast=0.9, clamp=False)
    mix.contrast, mix.clamp = 0.9, False
    assert (mix.contrast, mix.clamp, mix.spectrum) == (0.9, False, 3.0)
    assert repr(mix) == repr(twin)
    a, b = (m.sample(3, (4, 5), seed=1) for m in (mix, twin))
    assert torch.equal(a.mask(), b.mask())


def test_a_spectrum_is_copied():
    mine = powers(6, 6)
    mix = fm.SpectralMix(spectrum=mine)
    kept, plan = mine.clone(), mix.sample(2, (6, 6), seed=0)
    mine.zero_()
    mix.spectrum.zero_()
    assert torch.equal(mix.spectrum, kept.double())
    assert torch.equal(mix.sample(2, (6, 6), seed=0).pixels, plan.pixels)


def test_segmentation():
    """Clamped masks make soft targets, as those of HMix do."""
    mix = fm.SpectralMix(contrast=1.0, per="sample")
    plan = mix.sample(3, (4, 5), seed=1)
    maps = torch.randint(0, K, (3, 4, 5))
    m, hot = plan.mask().unsqueeze(1), nn.functional.one_hot(maps, K).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(fm.mix_masks(maps, plan, num_classes=K), m * hot + (1 - m) * hot[plan.partner])
