"""Fourier masks: grey images of a seed, and of their pixels the largest; bits or levels."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fusedmix as fm
from batches import FMIXES
from conftest import TRITON_DEVICE
from fusedmix import fourier
from fusedmix.backends import reference
from fusedmix.masks.family import WORDS, OneMask, packed, record
from fusedmix.masks.fourier import unpack
from fusedmix.methods import Kind, Method, Per
from fusedmix.spec import spec_row
from operators.on_shim import FOURIERS, orders

GREY = "the grey images of FMix"  # as the host program calls them
MIB = 1 << 20

VOLUMES = ((3, 5, 7), (8, 9, 6), (1, 1, 5), (20, 1, 6))
FMIX_SIZES = ((1,), (7,), (300,), (5, 7), (1, 9), (9, 1), (16, 16), (37, 61), *VOLUMES)
# Near the most that a block can make, and more: pixels, or tiles along x or along y.
FULL_FMIX_SIZES = ((224, 224), (225, 223), (90, 500), (500, 90))
LARGE_FMIX_SIZES = ((230, 250), (2700,), (3, 2700), (2800, 3))


def fmix_plan(size, n=3, seed=5, **options):
    """What `fourier` takes up to the seed, and the reference's pixels."""
    mix = fm.FMix(sampling="device", backend="reference", **{"per": "sample", **options})
    plan = mix.sample(n, size, seed=seed)
    return (mix._request(n, size, None, None)[0], plan.masks), plan


def assert_bits(out, plan):
    """As many ones as the plan says, all but .01 % of them where the reference has them; no bits beyond the pixels."""
    ones, expected = (unpack(pixels, plan.size).flatten(1) for pixels in (out, plan.pixels))
    assert torch.equal(ones.sum(1).long(), plan.geometry[: len(out), 0].long())
    assert (ones != expected).sum() <= 1e-4 * ones.numel()
    assert torch.equal(fourier.pack(ones.bool()), out)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("size", [*FMIX_SIZES, *FULL_FMIX_SIZES, *LARGE_FMIX_SIZES], ids=str)
def test_fourier(shim, size, variant):
    if size == (2800, 3) and variant == "released":
        pytest.skip("its rows differ by less than float32 holds")
    whole = (len(size) < 3 or size[0] == 1) and size not in LARGE_FMIX_SIZES
    for decay, n in ((3.0, 3), (1.5, 1)) if math.prod(size) < 4000 else ((3.0, 1),):
        request, plan = fmix_plan(size, n, variant=variant, decay_power=decay)
        for seed in (5, torch.tensor(5), torch.tensor([5])):
            out = shim.fourier(*request, seed, size, Per.SAMPLE, Per.SAMPLE, False)
            assert_bits(out, plan)
        turned = ["turn"] if len(size) == 3 else []
        assert shim.kernels() == ["noise", *turned, "rows", *(["whole"] if whole else ["synthesis", "select"])]
        reads, writes = shim.counts("pixels", out)
        assert (writes == 1).all()
        assert not reads.any()


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("size", FMIX_SIZES, ids=str)
def test_soft_fourier(shim, size, variant):
    """The ranks of a few pixels may be one another's."""
    for soft in (0.1, 0.5):
        request, plan = fmix_plan(size, variant=variant, max_soft=soft)
        out = shim.fourier(*request, 5, size, Per.SAMPLE, Per.SAMPLE, True)
        levels, expected = ((t.int() & 0xFFFF).sort(1).values for t in (out, plan.pixels))
        assert torch.equal(levels, expected)
        assert (out != plan.pixels).float().mean() <= 2e-3
        assert (shim.counts("pixels", out)[1] == 1).all()


@pytest.mark.parametrize("soft", [0.0, 0.25])
@pytest.mark.parametrize(
    ("size", "cutoff"), [((45, 39), 0.5), ((64, 8), 1.0), ((5000,), 0.5), ((6, 64, 8), 1.0), ((40, 3), 9.0)]
)
def test_of_equal_pixels_the_first_are_ones(shim, size, cutoff, soft):
    """One wave along the longest side, or none: rows, or the whole image, are of one value."""
    spec = spec_row(Method.FMIX_PAPER, decay=3.0, soft=soft, cutoff=cutoff)
    pixels = math.prod(size)
    number = torch.tensor([0, 1, 31, 33, pixels // 2, pixels - 1, pixels])
    edge = torch.minimum(torch.minimum(number, pixels - number), torch.tensor(int(soft * pixels)))
    geometry = torch.stack([number, edge, *[number * 0] * 4], 1).int()
    value = torch.tensor([[3.0, cutoff]]).repeat(len(number), 1)
    records = packed(torch.full((len(number),), int(Kind.FOURIER)), geometry, value)
    arguments = (spec, records, torch.tensor(9), size, Per.SAMPLE, Per.SAMPLE, soft > 0)
    out = shim.fourier(*arguments)
    if cutoff <= 1:
        assert torch.equal(out, reference.fourier(*arguments))
    if soft == 0:
        ones = unpack(out, size).flatten(1)
        assert torch.equal(ones.sum(1).long(), number)
        if cutoff < 1:
            assert torch.equal(ones, (torch.arange(pixels) < number[:, None]).float())


@pytest.mark.parametrize("per", list(Per))
def test_fourier_draws(shim, per):
    """How many masks there are, and whose noise each has; in one go or a few at a time."""
    size = (16, 24)
    request, plan = fmix_plan(size, 7, per=per.name.lower(), pairing="flip")
    expected = reference.fourier(*request, torch.tensor(5), size, int(per), int(per), False)
    assert torch.equal(plan.pixels, expected)
    calls = set()
    for most in (0, 10000, 2**20):
        out = shim.fourier(*request, 5, size, per, per, False, most_scratch=most)
        assert torch.equal(out, expected)
        calls.add(len(shim.kernels()))
        assert len(shim.module.counts(GREY)[0]) <= max(most, 10000)
    assert calls == ({3} if per == Per.BATCH else {3, 6, 12} if per == Per.PAIR else {3, 12, 21})
    # One draw, but a number of ones for each sample: the same noise.
    records = request[1].clone()
    records[:, 1] = torch.arange(7) * 50
    arguments = (request[0], records, torch.tensor(5), size, Per.SAMPLE, per, False)
    assert torch.equal(shim.fourier(*arguments), reference.fourier(*arguments))


@pytest.mark.parametrize("soft", [0.0, 0.2])
def test_fourier_rows_of_other_kinds(shim, soft):
    """Several variants in one batch, each with waves of its own; rows of boxes and constants are 0."""
    methods = [fm.FMix(max_soft=soft), fm.CutMix(), fm.FMix(variant="released"), fm.FMix(decay_power=1.0), fm.MixUp()]
    mix = fm.RandomMix(methods, per="sample", sampling="device", backend="reference")
    plan = mix.sample(24, (12, 20), seed=1)
    spec = mix._request(24, (12, 20), None, None)[0]
    assert len(plan.kind.unique()) == 4
    tensors = (spec, plan.masks)
    out = shim.fourier(*tensors, 1, (12, 20), Per.SAMPLE, Per.SAMPLE, soft > 0)
    assert torch.equal(out, plan.pixels)
    assert not out[~torch.isin(plan.kind, FOURIERS)].any()
    none = shim.fourier(spec[1:2], *tensors[1:], 1, (12, 20), Per.SAMPLE, Per.SAMPLE, soft > 0)
    assert not none.any()
    assert shim.kernels() == ["soften" if soft else "whole"]


def test_fourier_of_nothing(shim):
    request, _ = fmix_plan((4, 4), 0)
    assert shim.fourier(*request, 5, (4, 4), Per.SAMPLE, Per.SAMPLE, False).shape == (0, 1)
    assert shim.kernels() == []


@pytest.mark.parametrize("soft", [0.0, 0.3])
def test_fourier_in_any_order_of_threads(shim, soft):
    """Histograms, scans and sorts: no order shows a race, and all give the same bits. Half of the pixels are equal."""
    request, _ = fmix_plan((40, 8), 2, cutoff=1, max_soft=soft)
    results = set()
    for _ in orders(shim, 3, (0.0, 1 / 32, 0.5)):
        out = shim.fourier(*request, 5, (40, 8), Per.SAMPLE, Per.SAMPLE, soft > 0)
        results.add(out.numpy().tobytes())
    assert len(results) == 1


def test_fourier_stays_within_shared_memory(shim):
    """More frequencies along both axes than shared memory holds at a time."""
    request, plan = fmix_plan((150, 140), 1, decay_power=0.5)
    assert_bits(shim.fourier(*request, 5, (150, 140), Per.SAMPLE, Per.SAMPLE, False), plan)
    assert all(launch["shared_bytes"] <= 48 * 1024 for _, launch in shim.launches())


NOISES = (
    {},
    {"variant": "released"},
    {"cutoff": 3, "decay_power": 2.0},
    {"decay_power": 0.0, "max_soft": 0.2},
    {"decay_power": 1.3, "max_soft": 0.5, "variant": "released"},
)


@pytest.mark.parametrize("size", [(1,), (37,), (1, 1), (1, 7), (2, 2), (9, 1), (24, 17), (2, 1, 2), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_fmix_masks(of_triton, size, noise):
    """As many ones as the plan says, and where the reference has them."""
    per, seed = (("sample", 2**63 - 5), ("pair", -7))[NOISES.index(noise) % 2]
    mix = fm.FMix(per=per, p=0.8, sampling="device", backend="reference", **noise)
    plan = mix.sample(4, size, seed=seed)
    found = of_triton.fourier_of(mix, plan, seed, TRITON_DEVICE)
    assert found.dtype == plan.pixels.dtype
    assert torch.equal(found, plan.pixels)


def test_fmix_of_images(of_triton):
    """At most .01 % of the pixels differ from those of float64; as many are 1, and equal ones are the first."""
    mix = fm.FMix(per="batch", sampling="device", backend="reference")
    plan = mix.sample(1, (112, 112), lam=0.4, seed=3)
    found = unpack(of_triton.fourier_of(mix, plan, 3, TRITON_DEVICE), plan.size)
    assert found.sum() == plan.geometry[0, 0]
    assert (found != unpack(plan.pixels, plan.size)).sum() <= 1e-4 * 112 * 112


@pytest.mark.parametrize("size", [(29,), (12, 30), (6, 5, 4)], ids=str)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_grey_images(monkeypatch, interpreted, size, variant):
    """To 10^-5 of their deviation, whatever bits of the seed are set; and in chunks, whose scratch is bounded."""
    seed, n = -(2**63) + 2**40 + 12345, 5
    mix = fm.FMix(variant=variant, decay_power=1.5, cutoff=None, per="sample", sampling="device")
    plan = mix.sample(n, size, seed=0)
    images, wanted = [], fourier.grey(torch.tensor(seed), torch.arange(n), size, variant, 1.5, math.inf)
    kernels = interpreted.fourier_launch
    select = kernels.select
    monkeypatch.setattr(kernels, "select", lambda out, field, *rest: images.append(field) or select(out, field, *rest))
    with interpreted.logged() as launches:
        whole = interpreted.fourier_of(mix, plan, seed)
    (image,) = images
    assert (image - wanted.flatten(1)).abs().max() <= 1e-5 * wanted.std()
    sums = [of.arguments for of in launches if of.kernel == "sum_kernel"]
    each = max(of["coefficients"].nbytes + of["out"].nbytes for of in sums) // n
    monkeypatch.setattr(kernels, "_SCRATCH", sums[0]["waves"].nbytes + 3 * each - 1)
    assert torch.equal(interpreted.fourier_of(mix, plan, seed), whole)
    assert [len(of) for of in images[1:]] == [2, 2, 1]


class Requested(TorchDispatchMode):
    """Bytes of tensors that were made and are alive, and the most there were of them at a time."""

    # What torch's stable sort on a GPU asks for by itself, for each element of 4 bytes: two arrays of (row, index), the
    # values in order, and both once more (ATen/native/cuda/SortStable.cu, radix sorts of 2 to 127 long rows).
    SORTING = 8 + 8 + 4 + 4 + 8

    def __init__(self):
        super().__init__()
        self.alive, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        out = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(out) if torch.is_tensor(t)):
            if storage._cdata not in {*given, *self.alive}:
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata)
        within = args[0].numel() * self.SORTING if func is torch.ops.aten.sort.stable else 0
        self.most = max(self.most, sum(self.alive.values()) + within)
        return out


@pytest.mark.parametrize(
    ("n", "size", "options"),
    [
        (256, (224, 224), [{}]),
        (256, (224, 224), [{"max_soft": 0.2}]),
        (256, (224, 224), [{"variant": "released"}, {"decay_power": 1.5}, {"decay_power": 4.0}]),
        (40, (64, 64, 64), [{}, {"variant": "released", "max_soft": 0.1}]),
        (200, (1 << 16,), [{"decay_power": 1.0}, {"decay_power": 0.5}]),
    ],
    ids=str,
)
def test_memory_while_masks_are_made(monkeypatch, interpreted, n, size, options):
    """At most 24 MiB beside the masks themselves, as is written in fourier_kernel.py and asked of a GPU (test_gpu.py);
    most of it is used. The memory is only asked for: nothing is launched."""
    mix = fm.RandomMix([fm.FMix(**of) for of in options], per="sample", sampling="device")
    monkeypatch.setattr(interpreted.launch.Kernel, "__call__", lambda *_: None)
    masks = torch.empty(n, WORDS, dtype=torch.int32, device="meta")
    seed, soft = torch.empty((), dtype=torch.int64, device="meta"), any("max_soft" in of for of in options)
    with Requested() as requested:
        out = interpreted.fourier_launch.masks(mix._spec, masks, seed, size, Per.SAMPLE, Per.SAMPLE, soft)
    assert list(requested.alive.values()) == [out.nbytes]
    assert 12 * MIB <= requested.most - out.nbytes <= 24 * MIB


FIELDS = {
    "constant": lambda n: torch.full((1, n), -2.5),
    "zeros": lambda n: torch.tensor([0.0, -0.0]).repeat(n)[None, :n],
    "integers": lambda n: torch.randint(-2, 3, (1, n)).float(),
    "bytes": lambda n: torch.randint(0, 2, (1, n)) * 2.0**-140 - torch.randint(0, 2, (1, n)) * 2.0**-149,
    "normal": lambda n: torch.randn(1, n),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_the_largest_pixels(of_triton, kind):
    """Of equal ones the first; across words, blocks, and numbers that end everywhere."""
    for n in (1, 31, 33, 4096, 9000):
        numbers = sorted({0, 1, n // 3, n - 1, n})
        field = FIELDS[kind](n).expand(len(numbers), n).contiguous()
        number = torch.tensor(numbers, dtype=torch.int32)
        masks = [record(OneMask(Kind.FOURIER, [of, *[0] * 5], (3.0, math.inf), math.nan)) for of in numbers]
        image = torch.cat(masks).to(TRITON_DEVICE), 3.0, math.inf, 0, int(Kind.FOURIER)
        out = torch.zeros((len(numbers), fourier.words_per_mask((n,))), dtype=torch.int32, device=TRITON_DEVICE)
        of_triton.fourier_launch.select(out, field.to(TRITON_DEVICE), *image)
        expected = fourier.pack(fourier.levels(field, number, number * 0) == fourier.LEVELS)
        assert torch.equal(out.cpu(), expected), n


@pytest.mark.parametrize("name", FMIXES)
def test_noise_is_shared_by_none(interpreted, name):
    """No program of a launch reads or writes what another one writes; all that is read later has been written."""
    mix = FMIXES[name](per="sample", sampling="device", backend="reference")
    plan = mix.sample(3, (9, 40), seed=1)
    with interpreted.logged() as launches:
        interpreted.fourier_of(mix, plan, 1)
    kinds = {of.kernel for of in launches}
    assert kinds == {f"{of}_kernel" for of in ("waves", "coefficients", "sum", "level" if "soft" in name else "select")}
    written = np.empty(0, np.int64)
    for of in launches:
        assert len(of.races()) == 0
        made = [t for at, t in of.arguments.items() if at == "out" or (at == "waves" and of.kernel == "waves_kernel")]
        given = [t for at, t in of.arguments.items() if torch.is_tensor(t) and all(t is not o for o in made)]
        assert len(of.outside(given, made)) == 0
        assert (of.counts(made[0])[1] <= 1).all()
        written = np.union1d(written, of.written[0])
        for at in ("waves", "coefficients", "field"):
            if at in of.arguments and of.kernel != "waves_kernel":
                assert np.isin(np.intersect1d(of.read[0], interpreted.bytes_of(of.arguments[at])), written).all()
