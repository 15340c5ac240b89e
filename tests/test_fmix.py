"""FMix: the masks of every backend, what is mixed by them, and the module.

What is expected comes from the formulas (METHODS) and from the statistics of an independent implementation at 224x224
(4000 masks, decay 3, λ = ½), which METHODS lists. What the masks are made of is asked in test_grey_images.py.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch.utils._python_dispatch import TorchDispatchMode

import fusedmix as fm
from conftest import NO_CPP, NO_CUDA, NO_TRITON, TRITON_DEVICE, TRITON_MARKS
from fusedmix import backends, fourier
from fusedmix.backends import reference
from fusedmix.draws import Request, Source
from fusedmix.masks.fourier import unpack
from fusedmix.methods import Kind, Pairing, Per

VARIANTS = ("paper", "released")
SIZES = [
    *((1,), (2,), (9,), (1000,)),
    *((1, 1), (1, 6), (2, 2), (7, 2), (32, 32), (33, 70), (64, 17)),
    *((1, 2, 3), (5, 4, 7), (8, 9, 10)),
]
BACKENDS = [
    "reference",
    pytest.param("cpp", marks=pytest.mark.skipif(NO_CPP is not None, reason=str(NO_CPP))),
    pytest.param("cuda", marks=pytest.mark.skipif(NO_CUDA is not None, reason=str(NO_CUDA))),
    pytest.param("triton", marks=[*TRITON_MARKS, pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))]),
]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def device_of(backend):
    return {"cuda": "cuda", "triton": TRITON_DEVICE}.get(backend, "cpu")


def interpreted(backend):
    """Whether each launch takes a tenth of a second or more."""
    return backend == "triton" and TRITON_DEVICE == "cpu"


def masks_by(backend, module, batch_size, size, **given):
    """A plan, and its masks (B, *size), both by one backend."""
    module.backend = backend
    module.sampling = "device"
    plan = module.sample(batch_size, size, device=device_of(backend), **given)
    operators = backends.operators(device_of(backend), backend)
    masks = operators.mask(plan.masks, int(plan.families), plan.size, int(plan.per), plan.pixels)
    return plan, masks.cpu()


# ---- statistics ----

# Statistic: value and standard error of "released", then of "paper" (METHODS).
REFERENCE = {
    "components": ((2.089, 0.012), (2.147, 0.014)),
    "vertical": ((1.318, 0.010), (1.636, 0.008)),
    "horizontal": ((1.937, 0.003), (1.648, 0.008)),
    "calm rows": ((1.0, 0.0), (0.973, 0.001)),
    "energy above kx=1": ((0.0, 0.0), (0.0277, 0.0004)),
    "energy at kx=0": ((0.116, 0.002), (0.409, 0.004)),
    "slope": ((-6.978, 0.002), (-5.965, 0.0004)),
}


def of_masks(masks):
    """Statistics of binary masks (n, 224, 224), each (n,)."""
    m = masks.bool().numpy()
    turns = (m != np.roll(m, 1, axis=2)).sum(2)
    return {
        "components": [ndimage.label(one)[1] for one in m],
        "vertical": (m[:, 1:] != m[:, :-1]).sum((1, 2)) / 224,
        "horizontal": (m[:, :, 1:] != m[:, :, :-1]).sum((1, 2)) / 224,
        "calm rows": (turns <= 2).mean(1),
    }


def of_grey(grey):
    """Statistics of the spectra of grey images (n, 224, 224), without the mean."""
    power = np.abs(np.fft.fft2(grey)) ** 2
    power[:, 0, 0] = 0
    kx = np.abs(np.fft.fftfreq(224, 1 / 224))
    total = power.sum((1, 2))
    radius = np.round(np.hypot(kx[:, None], kx)).astype(int)
    mean = np.stack([power[:, radius == k].mean(1) for k in range(2, 112)], 1)
    logs = np.log(np.arange(2, 112))
    slopes = ((logs - logs.mean()) * np.log(np.maximum(mean, 1e-300))).sum(1) / ((logs - logs.mean()) ** 2).sum()
    return {
        "energy above kx=1": power[:, :, kx >= 2].sum((1, 2)) / total,
        "energy at kx=0": power[:, :, 0].sum(1) / total,
        "slope": slopes,
    }


def assert_as_referenced(found, variant):
    for name, values in found.items():
        values = np.asarray(values, dtype=float)
        expected, error = REFERENCE[name][VARIANTS.index(variant) == 0]
        tolerance = 4 * math.hypot(error, values.std() / math.sqrt(len(values)))
        assert abs(values.mean() - expected) <= tolerance + 1e-12, (name, values.mean(), expected, tolerance)


@each_backend
@pytest.mark.parametrize("variant", VARIANTS)
def test_statistics_of_masks(backend, variant):
    if interpreted(backend):
        pytest.skip("a minute a mask in the interpreter: there pixels are compared with those of the reference")
    n = 100 if backend == "reference" else 4000
    plan, masks = masks_by(backend, fm.FMix(per="sample", variant=variant), n, (224, 224), lam=0.5, seed=2)
    assert torch.equal(masks.sum((1, 2)), torch.full((n,), 224 * 112.0))
    assert (plan.weight == 0.5).all()
    assert_as_referenced(of_masks(masks), variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_statistics_of_grey_images(variant):
    """The slope holds for the whole spectrum."""
    n = 60
    grey = torch.cat(
        [fourier.grey(torch.tensor(4), torch.tensor([i]), (224, 224), variant, 3.0, math.inf) for i in range(n)]
    ).numpy()
    found = of_grey(grey)
    if variant == "released":  # All power is at kx = 0 and 1, of which the rings are means.
        assert found["energy above kx=1"].max() < 1e-20
        del found["slope"], found["energy above kx=1"]
    assert_as_referenced(found, variant)
    cut = fourier.grey(torch.tensor(4), torch.tensor([0]), (224, 224), "paper", 3.0, 32.0)
    above = np.abs(np.fft.fftfreq(224, 1 / 224)) > 32
    power = np.abs(np.fft.fft2(cut[0].numpy()))
    assert power[above].max() < 1e-8 * power.max()
    assert power[:, above].max() < 1e-8 * power.max()


@pytest.mark.parametrize(("height", "width", "lam"), [(48, 96, 0.3), (61, 61, 0.8), (33, 20, 0.5)])
def test_masks_are_distributed_as_those_of_the_transform(height, width, lam):
    """NumPy's pipeline in METHODS' words, against ours: lengths of the boundary, and whether two pixels agree."""
    generator, n = np.random.default_rng(3), 1500
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    z = generator.standard_normal((n, height, width)) + 1j * generator.standard_normal((n, height, width))
    grey = np.fft.ifft2(z / np.maximum(f, 1 / max(height, width)) ** 3.0).real.reshape(n, -1)
    number = math.floor(lam * height * width)
    ones = number + generator.integers(0, 2, (n, 1)) * (number < lam * height * width)
    theirs = (np.argsort(np.argsort(-grey, axis=1), axis=1) < ones).reshape(n, height, width)
    module = fm.FMix(per="sample", sampling="device")
    ours = module.sample(n, (height, width), lam=lam, seed=9).mask().bool().numpy()
    assert set(np.unique(ours.sum((1, 2)))) <= {number, number + 1}
    for statistic in (
        lambda m: (m[:, 1:] != m[:, :-1]).sum((1, 2)),
        lambda m: (m[:, :, 1:] != m[:, :, :-1]).sum((1, 2)),
        lambda m: (m[:, : height // 2] & m[:, -(height // 2) :]).sum((1, 2)),
        lambda m: (m[:, :, : width // 2] & m[:, :, -(width // 2) :]).sum((1, 2)),
    ):
        assert stats.ks_2samp(statistic(theirs), statistic(ours)).pvalue > 1e-3


# ---- masks ----


@each_backend
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("soft", [0.0, 0.2, 0.5])
def test_masks_of_every_size(backend, variant, soft):
    """As many ones as λ says, or a ramp; and the reference's pixels."""
    flips = pixels = 0
    for i, (size, per) in enumerate(itertools.product(SIZES, ("batch", "pair", "sample"))):
        if (interpreted(backend) and i % 11) or (backend == "reference" and i % 2):
            continue
        count, batch_size = math.prod(size), 4
        given = {} if i % 3 else {"lam": torch.tensor([0.0, 1.0, 0.3, 0.99])}
        module = fm.FMix(per=per, variant=variant, max_soft=soft, decay_power=(3.0, 1.2)[i % 2])
        plan, masks = masks_by(backend, module, batch_size, size, seed=i, **given)
        expected, pictured = masks_by("reference", module, batch_size, size, seed=i, **given)
        assert all(
            torch.equal(getattr(plan, name).cpu(), getattr(expected, name))
            for name in ("partner", "lam", "weight", "masks")
        )
        assert plan.pixels.shape == expected.pixels.shape
        assert plan.pixels.dtype == expected.pixels.dtype == (torch.int16 if soft else torch.int32)
        assert set(plan.kind.tolist()) == {Kind.FOURIER if variant == "paper" else Kind.FOURIER_RELEASED}
        shares = plan.lam.cpu().double() * count
        number = plan.geometry[:, 0].cpu()
        assert ((number == shares.floor()) | (number == shares.ceil())).all()
        assert torch.equal(plan.weight.cpu(), number.double() / count)
        flat = masks.reshape(batch_size, -1)
        assert ((flat.double().mean(1) - plan.weight.cpu()).abs() <= 1e-7).all()
        for one, lam, ones in zip(flat, plan.lam.tolist(), number.tolist(), strict=True):
            half = min(int(count * min(soft, lam, 1 - lam)), ones, count - ones)
            ramp = np.linspace(1, 0, 2 * half)
            steps = np.concatenate((np.ones(ones - half), ramp, np.zeros(count - ones - half)))
            assert np.abs(one.sort(descending=True).values.numpy() - steps).max() <= 0.5 / fourier.LEVELS + 1e-7
        flips += int((masks != pictured).sum()) if not soft else 0
        pixels += masks.numel()
    assert flips <= 1e-4 * pixels


@each_backend
def test_rows_of_the_released_masks_turn_twice_at_most(backend):
    size = (12, 16) if interpreted(backend) else (40, 52)
    _, masks = masks_by(
        backend, fm.FMix(per="sample", variant="released"), 4 if interpreted(backend) else 50, size, seed=6
    )
    assert ((masks != masks.roll(1, 2)).sum(2) <= 2).all()


@each_backend
def test_ties_do_not_change_the_count(backend):
    """A steep decay leaves one wave along an axis: columns of equal pixels, and waves too small for float32."""
    size = (16, 12)
    module = fm.FMix(per="sample", decay_power=60.0)
    plan, masks = masks_by(backend, module, 12, size, lam=torch.linspace(0, 1, 12), seed=3)
    assert torch.equal(masks.sum((1, 2)).long(), plan.geometry[:, 0].long().cpu())


class DividesAsOnAGpu(TorchDispatchMode):
    """There torch divides by a number, or by a tensor on the CPU, as a product with its reciprocal."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.div.Tensor:
            x, divisor = args
            if not isinstance(divisor, torch.Tensor) or divisor.device != x.device:
                return x * torch.as_tensor(divisor, dtype=x.dtype).reciprocal()
        return function(*args, **(kwargs or {}))


def test_a_level_is_divided_as_the_kernels_do():
    """The float32 nearest to the quotient, however torch divides by numbers."""
    levels = torch.arange(fourier.LEVELS + 1)
    expected = (levels.double() / fourier.LEVELS).float()  # No float64 here is a tie of float32.
    with DividesAsOnAGpu():
        assert not torch.equal(levels.float() / fourier.LEVELS, expected)  # A reciprocal gives other numbers.
        found = unpack(levels.to(torch.int16).unsqueeze(0), levels.shape)
    assert torch.equal(found[0], expected)


def test_plans_do_not_depend_on_how_torch_divides(method):
    mix = method(per="sample")
    for size in ((3000,), (33, 57), (12, 20, 18)):
        request = Request(mix._current_spec(), 200, size, Pairing.ROLL, Per.SAMPLE, 1.0, None, None)
        asked = request, Source(torch.tensor(4), None, None), torch.device("cpu")
        expected = reference.sample(*asked)  # The operator is not asked, because no mode looks into it.
        with DividesAsOnAGpu():
            found = reference.sample(*asked)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_masks_of_no_samples(per, monkeypatch):
    monkeypatch.setenv("FUSEDMIX_BACKEND", "reference")
    for mix in (
        fm.FMix(per=per),
        fm.FMix(per=per, max_soft=0.2),
        fm.RandomMix([fm.FMix(), fm.GridMix(cells=(12, 12))]),
    ):
        assert mix.sample(0, (16, 16), seed=1).mask().shape == (0, 16, 16)


# ---- mixing ----


def laid_out(x, layout):
    if layout == "channels_last" and x.ndim > 3:
        return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    if layout == "transposed" and x.ndim > 3:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        return torch.cat((x, x), -1)[..., 1 : 1 + x.shape[-1]]
    return x


@each_backend
@pytest.mark.parametrize("soft", [0.0, 0.3])
def test_mixing_by_stored_masks(backend, soft):
    """Images, in place too, and gradients are the reference's, whatever their type and layout."""
    device = device_of(backend)
    operators, reference = (backends.operators(d, b) for d, b in ((device, backend), ("cpu", "reference")))
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8)
    draws = [("batch", "roll"), ("batch", "random"), ("pair", "flip"), ("sample", "flip"), ("sample", "random")]
    layouts = ("contiguous", "channels_last", "transposed", "sliced")
    cases = itertools.product([(13,), (9, 16), (33, 40), (3, 4, 5)], draws, dtypes, layouts)
    for i, (size, (per, pairing), dtype, layout) in enumerate(cases):
        if interpreted(backend) and i % 23:
            continue
        options = {"per": per, "pairing": pairing, "sampling": "device"}
        fmix = fm.FMix(max_soft=soft, variant=VARIANTS[i % 2])
        module = fm.RandomMix([fmix, fm.CutMix(), fm.MixUp()], **options) if i % 3 == 0 else None
        module = module or fm.FMix(max_soft=soft, variant=VARIANTS[i % 2], **options)
        plan = module.sample(5, size, seed=i)
        x = laid_out((200 * torch.rand(5, 3, *size, dtype=torch.float64)).to(dtype), layout)
        masks = (plan.partner, plan.masks, int(plan.families), len(size), int(plan.pairing), int(plan.per))
        expected = reference.mix(x, *masks, plan.pixels)
        there = [t.to(device) if isinstance(t, torch.Tensor) else t for t in (*masks, plan.pixels)]
        where = (size, per, pairing, dtype, layout)
        bound = {"rtol": 0.0, "atol": 0.0}
        if dtype == torch.float64:  # PyTorch has no fma of float64: the reference rounds its product.
            bound = {"rtol": 2.0**-51, "atol": 200 * 2.0**-52}
        elif interpreted(backend) and dtype == torch.bfloat16:  # The interpreter truncates where others round.
            bound = {"rtol": 2.0**-7, "atol": 1e-6}
        x_there = x.to(device)
        out = operators.mix(x_there, *there)
        torch.testing.assert_close(out.cpu(), expected, **bound, msg=str(where))
        assert out.stride() == torch.empty_like(x_there).stride()
        if dtype != torch.uint8:
            adjoint = reference.mix_adjoint(x, *masks, plan.pixels)
            torch.testing.assert_close(operators.mix_adjoint(x_there, *there).cpu(), adjoint, **bound, msg=str(where))
        memory = x_there if x_there._base is None else x_there._base
        beside = memory.clone()
        before = x_there.clone()
        operators.mix_(x_there, *there)
        assert torch.equal(x_there, out), where
        x_there.copy_(before)
        assert torch.equal(memory, beside), where  # Nothing else was written.


@each_backend
def test_gradients(backend):
    if interpreted(backend):
        pytest.skip("a minute; the adjoint is asked for above")
    plan = fm.FMix(per="sample", pairing="random", max_soft=0.3).sample(3, (4, 5), seed=5)
    x = torch.rand(3, 1, 4, 5, dtype=torch.float64, device=device_of(backend), requires_grad=True)
    mix = lambda x: fm.mix(x, plan, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(mix, x)
    assert torch.autograd.gradgradcheck(mix, x)


@each_backend
def test_the_pixels_must_fit(backend):
    if backend in ("reference", "triton"):
        pytest.skip("Python raises where shapes do not fit")
    operators = backends.operators(device_of(backend), backend)
    plan = fm.FMix(per="sample").sample(3, (4, 5), seed=5)
    masks = (plan.partner, plan.masks, int(plan.families), 2, int(plan.pairing), int(plan.per))
    x = torch.rand(3, 1, 4, 5, device=device_of(backend))
    for pixels in (None, plan.pixels[:2], plan.pixels[:, :0], plan.pixels.long()):
        with pytest.raises((RuntimeError, ValueError), match="pixels"):
            operators.mix(x, *masks, pixels)


# ---- the module ----


def test_lam_of_the_reformulated_loss():
    """Beta(α+1, α), by both samplers, and the first label only."""
    for sampling, alpha in itertools.product(("host", "device"), (1.0, 0.3)):
        module = fm.FMix(alpha=alpha, reformulate=True, per="sample", sampling=sampling, num_classes=3)
        plan = module.sample(20000, (1, 1), seed=4)
        assert (plan.weight == 1).all()
        assert stats.kstest(plan.lam.numpy(), stats.beta(alpha + 1, alpha).cdf).pvalue > 1e-3
        one_by_one = fm.FMix(alpha=alpha, reformulate=True, sampling=sampling)
        lams = np.array([one_by_one.sample(1, (1, 1), seed=i).lam.item() for i in range(300)])
        assert stats.kstest(lams, stats.beta(alpha + 1, alpha).cdf).pvalue > 1e-3
        _, targets = module(torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 1]))
        assert torch.equal(targets, torch.eye(3)[[0, 1, 2, 1]])


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize(("per", "pairing"), [("batch", "roll"), ("pair", "flip"), ("sample", "random")])
def test_a_batch(sampling, per, pairing):
    """The module does what its plan says, and one seed gives one batch, in place too."""
    x, y = torch.rand(6, 3, 11, 20), torch.arange(6)
    options = {"per": per, "pairing": pairing, "sampling": sampling, "num_classes": 6, "max_soft": 0.1}
    module = fm.FMix(**options, generator=torch.Generator().manual_seed(5))
    again = fm.FMix(**options, generator=torch.Generator().manual_seed(5))
    plan = again.sample(6, (11, 20))
    images, targets = module(x, y)
    assert torch.equal(images, fm.mix(x, plan))
    assert torch.equal(targets, fm.mix_labels(y, plan, num_classes=6))
    m = plan.mask()[:, None]
    assert torch.allclose(images, m * x + (1 - m) * x[plan.partner], atol=1e-6)
    distinct = {"batch": 1, "pair": 3, "sample": 6}[per]
    assert plan.pixels.shape == (distinct, 11 * 20)
    assert len({tuple(row.tolist()) for row in plan.mask().flatten(1)}) == distinct
    here = x.clone()
    inplace = fm.FMix(**options, inplace=True, generator=torch.Generator().manual_seed(5))
    assert inplace(here, y)[0] is here
    assert torch.equal(here, images)


@pytest.mark.thorough
def test_half_of_the_masks_round_up():
    plan = fm.FMix(per="sample", sampling="device").sample(4000, (3, 3), lam=0.5, seed=1)
    assert stats.binomtest(int((plan.geometry[:, 0] == 5).sum()), 4000).pvalue > 1e-3
    host = fm.FMix(per="sample", sampling="host").sample(4000, (3, 3), lam=0.5, seed=1)
    assert set(host.geometry[:, 0].tolist()) == {4, 5}
    assert stats.binomtest(int((host.geometry[:, 0] == 5).sum()), 4000).pvalue > 1e-3


def test_one_lam_for_each_sample_of_a_batch():
    """One grey image: the masks of larger λ hold those of smaller."""
    lam = torch.linspace(0, 1, 7)
    masks = fm.FMix(sampling="device").sample(7, (20, 30), lam=lam, seed=2).mask()
    assert (masks[1:] >= masks[:-1]).all()
    assert masks[0].sum() == 0
    assert masks[-1].min() == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_among_other_methods(variant):
    """In a RandomMix each sample has the mask of its method; of FMix with other parameters too."""
    methods = [
        fm.CutMix(),
        fm.FMix(variant=variant),
        fm.MixUp(),
        fm.FMix(variant=variant, decay_power=1.0, max_soft=0.5),
    ]
    module = fm.RandomMix(methods, per="sample", pairing="random", num_classes=40)
    plan = module.sample(40, (24, 31), seed=7)
    masks = plan.mask()
    kinds = set(plan.kind.tolist())
    assert len(kinds) == 3
    for i in range(40):
        levels = masks[i].unique().numel()
        if plan.kind[i] == Kind.BOX:
            assert levels <= 2
        elif plan.kind[i] == Kind.CONSTANT:
            assert levels == 1
        else:
            assert (levels <= 2) == (plan.value[i, 0] == 3.0)
        assert masks[i].double().mean().item() == pytest.approx(plan.weight[i].item(), abs=1e-6)
    per_batch = fm.RandomMix(methods)
    seen = set()
    for i in range(40):
        plan = per_batch.sample(3, (6, 5), seed=i)
        masks = plan.mask()
        seen.add(int(plan.kind[0]))
        assert torch.equal(masks[1:], masks[:1].expand_as(masks[1:]))
    assert seen == kinds


def test_label_maps_take_the_same_pixels():
    plan = fm.FMix(per="sample").sample(4, (9, 12), seed=3)
    labels = torch.randint(0, 50, (4, 9, 12))
    mixed = fm.mix_masks(labels, plan)
    own = plan.mask() == 1
    assert torch.equal(mixed, torch.where(own, labels, labels[plan.partner]))
    assert plan.binary
    soft = fm.FMix(per="sample", max_soft=0.2).sample(4, (9, 12), seed=3)
    assert not soft.binary
    with pytest.raises(ValueError, match="label maps"):
        fm.mix_masks(labels, soft)


@pytest.mark.parametrize("soft", [0.0, 0.3])
def test_a_plan_is_carried_about(soft):
    """As a pytree, to another device and back, pickled, and under torch.compile."""
    import pickle

    from torch.utils import _pytree as pytree

    plan = fm.FMix(per="sample", max_soft=soft).sample(5, (6, 7), seed=1)
    leaves, spec = pytree.tree_flatten(plan)
    assert any(leaf is plan.pixels for leaf in leaves)
    assert pytree.tree_unflatten(leaves, spec).pixels is plan.pixels
    assert torch.equal(pickle.loads(pickle.dumps(plan)).mask(), plan.mask())
    assert plan.to("cpu") is plan
    assert plan.to("meta").pixels.device.type == "meta"


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_compiled_equals_eager(sampling):
    x, y = torch.rand(4, 2, 8, 9), torch.arange(4)
    module = fm.FMix(num_classes=4, per="sample", sampling=sampling)
    torch.manual_seed(3)
    expected = module(x, y)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    mixed = compiled(x, y)
    assert torch.equal(mixed[0], expected[0])
    assert torch.equal(mixed[1], expected[1])


@pytest.mark.parametrize(
    ("keyword", "value", "allowed"),
    [
        ("decay_power", -1.0, "finite and >= 0|in"),
        ("decay_power", "3", "number"),
        ("max_soft", 0.6, r"\[0, 0.5\]"),
        ("max_soft", -0.1, r"\[0, 0.5\]"),
        ("cutoff", 0, ">= 1"),
        ("cutoff", 2.5, "int"),
        ("reformulate", 1, "bool"),
        ("variant", "original", "paper"),
        ("alpha", 0.0, "alpha"),
    ],
)
def test_bad_arguments_are_named(keyword, value, allowed):
    with pytest.raises((TypeError, ValueError), match=keyword) as caught:
        fm.FMix(**{keyword: value})
    assert caught.match(allowed)


def test_what_it_is_called_with():
    module = fm.FMix(decay_power=2.0, max_soft=0.25, reformulate=True, cutoff=8)
    assert (module.decay_power, module.max_soft, module.reformulate, module.cutoff) == (2.0, 0.25, True, 8)
    assert "decay_power=2.0, max_soft=0.25, reformulate=True, cutoff=8" in repr(module)
    assert fm.FMix().cutoff == 32
    assert fm.FMix(decay_power=2.0).cutoff == 256
    assert fm.FMix().variant == "paper"
    assert "cutoff" not in repr(fm.FMix())


def test_the_cut_off_leaves_out_what_hardly_matters():
    """METHODS: .018 % of the pixels at 224 and decay 3."""
    whole, cut = (
        fm.FMix(per="sample", cutoff=cutoff).sample(150, (224, 224), lam=0.5, seed=5).mask() for cutoff in (10**9, None)
    )
    share = (whole != cut).double().mean().item()
    assert 0.5e-4 < share < 4e-4
