"""The CUDA kernels' own source, run on the CPU by csrc/shim, against the reference.

The shim logs every byte that is read and written, and raises where a block touches what another one wrote without a
launch in between, where memory is touched that is nobody's, or read before it is written. So each call below is also a
test of that; what is asserted of the log on top is said where it is.

A result is expected to the last bit: masks are the kernels' own (compared with the reference's in a test of their own),
the difference of two samples is rounded to the compute type, and w·difference + partner is rounded once.
"""

from __future__ import annotations

import itertools
import math
import mmap
from random import Random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedmix as fm
from conftest import INTEGERS, METHODS
from fusedmix import fourier, partners
from fusedmix.arguments import MaskArguments
from fusedmix.backends import reference
from fusedmix.draws import Request, Source
from fusedmix.masks.family import kind as kind_of
from fusedmix.masks.family import packed
from fusedmix.masks.family import value as value_of
from fusedmix.masks.fourier import unpack
from fusedmix.methods import Families, Kind, Method, Pairing, Per
from fusedmix.spec import spec_row

shim_build = pytest.importorskip("shim_build")  # fcntl: not on Windows
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(shim_build.missing() is not None, reason=str(shim_build.missing())),
]

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8)
FLOATS = DTYPES[:-1]
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Masks that are stored: bits, levels, and rows of other kinds among them.
STORED = {
    "FMix": fm.FMix,
    "FMix-released": lambda **kw: fm.FMix(variant="released", **kw),
    "FMix-soft": lambda **kw: fm.FMix(max_soft=0.3, **kw),
    "FMix-among": lambda **kw: fm.RandomMix(
        [fm.FMix(), fm.CutMix(), fm.MixUp(), fm.GMix(), fm.FMix(variant="released")], **kw
    ),
}
MASKS = METHODS | STORED
# λ ~ Beta(α+1, α): swapped with a chance.
SAMPLED = MASKS | {"FMix-reformulate": lambda **kw: fm.FMix(reformulate=True, **kw)}
FOURIERS = torch.tensor([Kind.FOURIER_RELEASED, Kind.FOURIER])
CURVES = torch.tensor([kind for kind in Kind if kind not in (Kind.CONSTANT, Kind.BOX, *FOURIERS.tolist())])
FORMULAS = Families.CONSTANTS | Families.BOXES | Families.GAUSSIANS
DRAWS = [*itertools.product(("batch", "sample"), (p.name.lower() for p in Pairing)), ("pair", "flip")]
MIB = 1 << 20
H200 = 132  # multiprocessors
RACE = "race between blocks"
# What the host program calls its memory.
PART, GREY, ROWS_OF_A_SPEC = "a part of the images", "the grey images of FMix", "the rows of a spec"
# Of csrc/cuda/shape.cpp: threads of the blocks that have columns, how many samples each may have; the least bytes of a
# sample in a column, and the most bytes of a part.
ROLL_THREADS, TILE_THREADS, TILE_SAMPLES, COLUMN_BYTES, SLICE_BYTES = 256, 512, 32, 32, 16 * MIB
SHARED = 99 * 1024  # bytes that a block may have where that is least


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)


@pytest.fixture(scope="module")
def built():
    from shim_backend import Shim

    return Shim()


@pytest.fixture
def shim(built):
    """The kernels on a chip of two multiprocessors, with the order of threads that every test begins with."""
    built.multiprocessors, built.shared_bytes = 2, SHARED
    built.module.seed(0)
    built.module.set_yield_probability(1 / 32)
    yield built
    built.shared_bytes = SHARED
    built.forget()
    built.module.set_yield_probability(1 / 32)


# ---- what is expected -----------------------------------------------------------------------------------------------


def two_sum(p, q):
    """p + q, and what its rounding lost (Knuth)."""
    s = p + q
    t = s - p
    return s, (p - (s - t)) + (q - t)


def sum_to_odd(p, q):
    """p + q of float64, rounded to odd: what is rounded once more, to 51 bits or less, is as if it were exact."""
    s, lost = two_sum(p, q)
    even = s.view(torch.int64) % 2 == 0
    toward = torch.where(lost > 0, math.inf, -math.inf).to(torch.float64)
    return torch.where((lost != 0) & even, torch.nextafter(s, toward), s)


def round_product_sum(w, d, b, dtype):
    """w·d + b of float32 values as if exact, then rounded to float32, or to the nearest integer for uint8."""
    exact = sum_to_odd(w.double() * d.double(), b.double())
    return exact.round().clamp(0, 255).to(dtype) if dtype == torch.uint8 else exact.float().to(dtype)


def halves(x):
    """float64 as a sum of two numbers of at most 27 bits."""
    high = (x.view(torch.int64) >> 27 << 27).view(torch.float64)
    return high, x - high


def assert_product_sum(out, w, d, b):
    """`out` is within half a unit in the last place of w·d + b, all of float64."""
    total = lost = torch.zeros_like(out)
    for part in (*(p * q for p in halves(w) for q in halves(d)), b):
        total, error = two_sum(total, part)
        lost = lost + error
    unit = torch.nextafter(out.abs(), torch.tensor(math.inf, dtype=out.dtype)) - out.abs()
    assert (((total - out) + lost).abs() <= unit / 2 * (1 + 2.0**-40)).all()


def alike(a, b):
    """Whether two tensors are equal bit for bit, NaN and -0 included."""
    return torch.equal(*(t.contiguous().view(BITS[t.element_size()]) for t in (a, b)))


def weights_of(shim, x, masks):
    """The weight of every element of x, from the kernels' own masks."""
    _, records, families, ndim, _, per, *pixels = masks
    size = tuple(x.shape[x.ndim - ndim :])
    m = shim.mask(records, families, size, per, *pixels) if ndim else value_of(records)[:, 0]
    m = m[:1] if per == Per.BATCH else m
    return m.reshape(-1, *[1] * (x.ndim - 1 - ndim), *size).expand(x.shape)


def assert_mixed(out, x, w, partner):
    a, b = x, x[partner]
    if x.dtype == torch.float64:
        blended, d = (w != 0) & (w != 1) & (a != b), a - b
        assert_product_sum(out[blended], w[blended].double(), d[blended], b[blended])
        mixed = out
    else:
        mixed = round_product_sum(w, a.float() - b.float(), b, x.dtype)
    expected = torch.where(w == 0, b, torch.where((w == 1) | (a == b), a, mixed))
    assert alike(out, expected)


def assert_near_reference(out, reference_out, x, masks):
    """Within the last places of its own type, which the reference rounds to as well; and what masks may differ by."""
    curved = bool(torch.isin(kind_of(masks[1]), CURVES).any())
    error = (out.double() - reference_out.double()).abs()
    if x.dtype == torch.uint8:
        assert error.max() <= curved
        return
    size = x.double().abs() + x[masks[0]].double().abs()
    allowed = 2 * torch.finfo(x.dtype).eps + (4 * 2.0**-24 if curved else 0)
    assert (error <= allowed * size).all()


def assert_adjoint(out, grad, w, partner):
    """The sum of two products in float64, to the bit."""
    back = partner.argsort()
    lent = 1 - w[back].double()
    kept = torch.where(w == 0, 0, w.double() * grad.double())
    given = torch.where(lent == 0, 0, lent * grad[back].double())
    compute = torch.float64 if grad.dtype == torch.float64 else torch.float32
    assert alike(out, (kept + given).to(compute).to(grad.dtype))


# ---- what is swept --------------------------------------------------------------------------------------------------


def values(shape, dtype, seed=0):
    """Values that agree in two samples now and then."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, shape, generator=generator)
    if dtype == torch.uint8:
        return x.to(dtype)
    return ((x - 100) * (1 + torch.rand(shape, generator=generator) * (x % 7))).to(dtype)


def contiguous(x):
    return x.clone()


def channels_last(x):
    return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


def stepped(x):
    """Every second element of every dim of a larger tensor."""
    large = x.new_full([2 * n + 1 for n in x.shape], 99)
    return large[(slice(1, None, 2),) * x.ndim].copy_(x)


def cropped(x):
    """The middle of a larger tensor that itself begins at no multiple of anything."""
    sides = [n + 3 for n in x.shape]
    large = x.new_full([1 + math.prod(sides)], 99)[1:].view(sides)
    return large[tuple(slice(1, 1 + n) for n in x.shape)].copy_(x)


def shifted(x):
    """Contiguous, from one element past an aligned address."""
    return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)


def transposed(x):
    """The first spatial dim is the innermost in memory."""
    turned = (0, 1, *reversed(range(2, x.ndim)))
    return x.permute(turned).clone(memory_format=torch.contiguous_format).permute(turned)


def every_second_sample(x):
    large = x.new_full([2 * x.shape[0], *x.shape[1:]], 99)
    return large[::2].copy_(x)


def batch_innermost(x):
    return x.movedim(0, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 0)


LAYOUTS = (
    contiguous,
    channels_last,
    stepped,
    cropped,
    shifted,
    transposed,
    every_second_sample,
    batch_innermost,
)
# (B, C, *S), and how many of the dims are spatial
SHAPES = (
    ((3, 3, 5, 7), 2),
    ((2, 3, 16, 16), 2),
    ((1, 2, 4, 8), 2),
    ((7, 5, 31), 1),
    ((131, 2, 3), 1),
    ((5, 2, 3, 5, 8), 3),
    ((4, 2, 3, 6, 4), 2),  # a video: time is not a dim of the mask
    ((33, 3, 4, 4), 2),
    ((2, 1, 1, 1), 2),
    ((6, 3, 37, 61), 2),
    ((13, 16, 1, 16), 2),
)


def plan_for(make, shape, spatial, per, pairing, seed=0, **options):
    """The reference's plan as `mix` takes it."""
    mix = make(per=per, pairing=pairing, sampling="device", **options)
    labels = torch.arange(shape[0]) % 3 if "class" in pairing else None
    size = shape[len(shape) - spatial :]
    plan = mix.sample(shape[0], size, seed=seed, labels=labels)
    ndim = 0 if plan.constant else spatial
    return plan.partner, plan.masks, int(plan.families), ndim, plan.pairing, plan.per, plan.pixels


def other_shapes(shim, x, pairing, in_place=True):
    """What may be otherwise in the shape of the last call: how wide columns are, and ways that serve the partners."""
    way, shape, n = shim.module.Way, shim.shape, len(x)
    if shape.way == way.NONE:
        return [{}]
    if not in_place:
        return [{"way": way.EACH, "by_tile": by_tile, "log_column": c} for by_tile in (True, False) for c in (0, 5, 8)]
    column = n * shape.width * x.element_size()
    logs = [c for c in range(10) if shape.columns >> c <= 50 or c >= 8]  # more blocks, or launches, take long here
    fits = [c for c in logs if column << c <= shim.shared_bytes and n <= TILE_SAMPLES * (TILE_THREADS >> c)]
    slices = {1 + shape.columns // 20: 2, 1 + shape.columns // 3: 8, shape.columns: 5}
    return [
        *({"way": way.ROLL, "log_column": c} for c in logs if c < 9 and pairing == Pairing.ROLL),
        *({"way": way.TILE, "log_column": c} for c in fits),
        *({"way": way.SLICES, "slice": s, "by_tile": True, "log_column": c} for s, c in slices.items()),
    ]


@pytest.mark.parametrize(("per", "pairing"), DRAWS)
@pytest.mark.parametrize("name", MASKS)
def test_every_dtype_and_layout(shim, name, per, pairing):
    """Out of place, in place and adjoint. Sizes, chips, ways and how the plan travels alternate."""
    turn = itertools.count(DRAWS.index((per, pairing)) + 3 * list(MASKS).index(name))
    for dtype, layout in itertools.product(DTYPES, LAYOUTS):
        i = next(turn)
        shape, spatial = SHAPES[i % len(SHAPES)]
        shim.multiprocessors = (1, 2, H200)[i % 3]
        shim.shared_bytes = (SHARED, 2048, 1)[i // 3 % 3]  # for columns of any width, narrow ones, and none
        shim.module.seed(i)
        masks = plan_for(MASKS[name], shape, spatial, per, pairing, seed=i)
        x = layout(values(shape, dtype, seed=i))
        w = weights_of(shim, x, masks)
        how = {"on_host": i % 2 == 0 and shape[0] < 60}
        out = shim.mix(x, *masks, **how)
        assert out.stride() == torch.empty_like(x).stride()
        assert_mixed(out, x, w, masks[0])
        assert_near_reference(out, reference.mix(x, MaskArguments(*masks)), x, masks)
        if dtype in FLOATS:
            assert_adjoint(shim.mix_adjoint(x, *masks, **how), x, w, masks[0])
        again = layout(x)
        shim.mix_(x, *masks, **how)
        assert alike(x, out)
        others = other_shapes(shim, x, masks[4])
        shim.mix_(again, *masks, **how, shape=others[i % len(others)])
        assert alike(again, out)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 32, 513])
@pytest.mark.parametrize("pairing", ["roll", "flip", "random", "cross_class"])
@pytest.mark.parametrize("name", ["MixUp", "CutMix", "HMix-paper", "GMix-released", "RandomMix", "FMix"])
def test_sizes_of_a_batch(shim, name, pairing, n):
    """Of tiny images, by every kernel that is compiled for a set of families."""
    for dtype, (dim, width) in zip(DTYPES, ((1, 8), (2, 8), (1, 24), (2, 2), (2, 16)), strict=True):
        shape = (n, 1, dim, width)
        masks = plan_for(MASKS[name], shape, 2, "sample", pairing, seed=n)
        before = values(shape, dtype)
        w = weights_of(shim, before, masks) if n else before
        for on_chip in (SHARED, 1):
            shim.shared_bytes = on_chip
            out = shim.mix(before, *masks)
            x = before.clone()
            shim.mix_(x, *masks)
            if n == 0:
                assert shim.kernels() == []
                continue
            assert_mixed(out, before, w, masks[0])
            assert alike(x, out)
            assert_traffic(shim, x, w, masks)
            if dtype in FLOATS and on_chip == SHARED:
                assert_adjoint(shim.mix_adjoint(before, *masks), before, w, masks[0])


@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
def test_large_batches(shim, pairing):
    """More samples than a block has threads, and so many that no column of them fits a block."""
    for i, (n, name) in enumerate(itertools.product((1500, 8192, 20_000), ("CutMix", "MixUp"))):
        shape = (n, 1, 2, 4) if n < 9000 else (n, 1, 1, 4)
        masks = plan_for(MASKS[name], shape, 2, "sample", pairing, seed=i)
        before = values(shape, torch.float32)
        w = weights_of(shim, before, masks)
        x = before.clone()
        shim.mix_(x, *masks)
        assert_mixed(x, before, w, masks[0])
        if pairing == "random":
            assert shim.shape.way == (shim.module.Way.TILE if n < 3000 else shim.module.Way.SLICES)
        if n == 1500:
            assert_adjoint(shim.mix_adjoint(before, *masks), before, w, masks[0])


def test_uint8_of_every_pair(shim):
    """All 65536 pairs of bytes, by weights that are simple, next to a half and drawn: as if exact, ties to even."""
    grid = torch.arange(256, dtype=torch.uint8).expand(256, 256)
    half = torch.tensor(0.5)
    around = [half, *(torch.nextafter(half, torch.tensor(side)) for side in (0.0, 1.0))]
    drawn = torch.rand(20, generator=torch.Generator().manual_seed(0))
    simple = torch.tensor([0.0, 1.0, 2.0**-24, 1 - 2.0**-24, 1 / 3, *(k / 16 for k in range(1, 16))])
    weight = torch.cat([torch.stack(around), simple, drawn])
    n = 2 * len(weight)
    x = torch.stack([grid, grid.T]).repeat(len(weight), 1, 1)[:, None].contiguous()
    partner = torch.arange(n).view(-1, 2).flip(1).flatten()
    value = torch.stack([weight.repeat_interleave(2), torch.zeros(n)], 1)
    records = packed(torch.zeros(n).int(), torch.zeros(n, 6).int(), value)
    for families, ndim in ((Families.CONSTANTS, 0), (FORMULAS, 2)):  # a kernel of constants, and one of everything
        masks = partner, records, families, ndim, Pairing.RANDOM, Per.SAMPLE
        w = value[:, :1, None, None].expand(x.shape)
        assert_mixed(shim.mix(x, *masks), x, w, partner)


@each_dtype
@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
def test_expanded_input(shim, dtype, pairing):
    """Memory that several elements share is read only: out of place, and not by the samples (expand the channels)."""
    masks = plan_for(METHODS["HMix-paper"], (5, 3, 6, 8), 2, "sample", pairing)
    for x in (values((5, 1, 6, 8), dtype).expand(5, 3, 6, 8), values((1, 3, 6, 8), dtype).expand(5, 3, 6, 8)):
        w = weights_of(shim, x, masks)
        assert_mixed(shim.mix(x, *masks), x, w, masks[0])


@each_dtype
def test_outputs_of_other_strides(shim, dtype):
    """Source and destination need not lie alike in memory."""
    masks = plan_for(METHODS["CutMix"], (5, 3, 6, 8), 2, "sample", "random")
    x = values((5, 3, 6, 8), dtype)
    w = weights_of(shim, x, masks)
    for source, target in itertools.product(LAYOUTS, repeat=2):
        out = target(torch.zeros_like(x))
        shim.mix_into(out, source(x), *masks)
        assert_mixed(out, x, w, masks[0])


@each_dtype
@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("name", ["CutMix", "FMix"])
def test_copies_are_copies(shim, name, dtype, per, pairing):
    """Whatever the bits: where weights are 0 and 1 a NaN, infinity or -0 is copied, and reaches nobody else.

    In 16 bits a NaN stays one, but keeps its bits only in vectors that are copied, and where CutMix has its own kernel.
    """
    for layout, width in itertools.product((contiguous, channels_last), (16, 18, 15)):
        shape = (7, 3, 6, width)
        bits = torch.randint(0, 256, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8)
        before = bits.view(dtype).view(shape)
        masks = plan_for(MASKS[name], shape, 2, per, pairing, seed=5)
        w = weights_of(shim, before, masks)
        expected = torch.where(w == 0, before[masks[0]], before)
        x = layout(before)
        out = shim.mix(x, *masks)
        shim.mix_(x, *masks)
        whole = shim.shape.width * dtype.itemsize == 16
        for mixed in (out, x):
            if dtype.itemsize == 2 and not (name == "CutMix" and whole):
                assert torch.equal(mixed.isnan(), expected.isnan())
                number = ~expected.isnan()
                assert alike(mixed[number], expected[number])
            else:
                assert alike(mixed, expected)


def test_empty_batches(shim):
    for shape in ((0, 3, 4, 4), (3, 0, 4, 4)):
        x = torch.zeros(shape)
        masks = plan_for(METHODS["CutMix"], (shape[0], 3, 4, 4), 2, "sample", "random")
        assert shim.mix(x, *masks).shape == shape
        shim.mix_(x, *masks)
        assert shim.kernels() == []


# ---- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1,), (5000,), (7, 9), (3, 4500), (224, 224), (5, 3, 11)], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_masks(shim, name, size):
    for per in ("sample", "pair"):
        plan = MASKS[name](per=per, pairing="flip").sample(1 if math.prod(size) > 9999 else 40, size, seed=3)
        assert_masks(shim, plan, size)


def assert_masks(shim, plan, size):
    masks = plan.masks, int(plan.families), size, plan.per, plan.pixels
    out, expected = shim.mask(*masks), reference.mask(*masks)
    curved = torch.isin(plan.kind, CURVES).reshape([-1] + [1] * len(size))
    assert (torch.where(curved, 0.0, out) == torch.where(curved, 0.0, expected)).all()
    assert (out - expected).abs().max() <= 4 * 2.0**-24


def test_every_level(shim):
    """Of soft masks that are stored: the quotient by 65535, rounded once."""
    level = torch.arange(2**16)
    pixels = torch.where(level < 2**15, level, level - 2**16).to(torch.int16)[None]  # by their bits
    records = packed(torch.tensor([int(Kind.FOURIER)]).int(), torch.zeros(1, 6).int(), torch.zeros(1, 2))
    out = shim.mask(records, Families.LEVELS, (2**16,), Per.SAMPLE, pixels)
    assert torch.equal(out[0], level.float() / 65535)


# ---- Fourier masks --------------------------------------------------------------------------------------------------

FMIX_SIZES = (
    (1,),
    (7,),
    (300,),
    (5, 7),
    (1, 9),
    (9, 1),
    (16, 16),
    (37, 61),
    (3, 5, 7),
    (8, 9, 6),
    (1, 1, 5),
    (20, 1, 6),
)
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
    for seed, p in itertools.product(range(3), (0.0, 1 / 32, 0.5)):
        shim.module.seed(seed)
        shim.module.set_yield_probability(p)
        out = shim.fourier(*request, 5, (40, 8), Per.SAMPLE, Per.SAMPLE, soft > 0)
        results.add(out.numpy().tobytes())
    assert len(results) == 1


def test_fourier_stays_within_shared_memory(shim):
    """More frequencies along both axes than shared memory holds at a time."""
    request, plan = fmix_plan((150, 140), 1, decay_power=0.5)
    assert_bits(shim.fourier(*request, 5, (150, 140), Per.SAMPLE, Per.SAMPLE, False), plan)
    assert all(launch["shared_bytes"] <= 48 * 1024 for _, launch in shim.launches())


# ---- how wide accesses are ------------------------------------------------------------------------------------------


def widths(shim, buffers=("x", "out", PART)):
    """The bytes of the accesses to images in the last call."""
    found = set()
    for _, launch in shim.launches():
        for name in buffers:
            use = launch["buffers"].get(name, {"read_widths": {}, "write_widths": {}})
            found |= {*use["read_widths"], *use["write_widths"]}
    return found


def row_of(dtype, nbytes, skip, gap):
    """(9, 3, 4, W) with W of so many bytes, `skip` bytes past an aligned address, and a gap after each row."""
    width, start, between = (n // dtype.itemsize for n in (nbytes, skip, gap))
    large = torch.zeros(start + 9 * 3 * 4 * (width + between) + 16, dtype=dtype)
    aligned = -large.data_ptr() % 16 // dtype.itemsize
    rows = large[aligned + start :][: 9 * 3 * 4 * (width + between)]
    x = rows.view(9, 3, 4, width + between)[..., :width]
    return x.copy_(values(x.shape, dtype))


ROWS = (
    # bytes of a row, bytes before the first, bytes between rows; bytes that are moved at a time
    ((32, 0, 0), 16),
    ((48, 0, 16), 16),
    ((32, 16, 0), 16),
    ((40, 0, 0), 4),
    ((32, 8, 0), 4),
    ((32, 0, 8), 4),
    ((32, 4, 0), 4),
    ((36, 0, 0), 4),
    ((32, 2, 0), 1),
    ((34, 0, 0), 1),
    ((32, 0, 2), 1),
    ((33, 0, 0), 1),
)
WIDTHS = [
    (dtype, row, max(expected, dtype.itemsize))
    for dtype, (row, expected) in itertools.product(DTYPES, ROWS)
    if not any(n % dtype.itemsize for n in row)
]


@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
@pytest.mark.parametrize(("dtype", "row", "expected"), WIDTHS, ids=str)
def test_width(shim, dtype, pairing, row, expected):
    """16 bytes where every row of every sample allows it, else 4, else an element."""
    x = row_of(dtype, *row)
    for name in ("HMix-paper", "GMix-released"):
        masks = plan_for(METHODS[name], x.shape, 2, "sample", pairing)
        w = weights_of(shim, x, masks)
        out = torch.empty_like(x)
        for aligned in (True, False):
            if not aligned:  # of source and destination the less aligned one decides
                out = shifted(out)  # by one element
            shim.mix_into(out, x, *masks)
            assert widths(shim) == {expected if aligned else dtype.itemsize}
            assert widths(shim) == {shim.shape.width * dtype.itemsize}
            assert_mixed(out, x, w, masks[0])
        for on_chip in (SHARED, 1):
            shim.shared_bytes = on_chip
            x = row_of(dtype, *row)
            shim.mix_(x, *masks)
            assert widths(shim) == {expected}
            assert alike(x, out)
        shim.shared_bytes = SHARED
        x = row_of(dtype, *row)


@each_dtype
def test_width_of_layouts(shim, dtype):
    """Masks that vary along rows need whole rows; channels_last rows are the channels of all pixels in them."""
    n = 16 // dtype.itemsize
    box, constant = (plan_for(METHODS[m], (9, 3, 7, 16), 2, "sample", "roll") for m in ("HMix-paper", "MixUp"))
    x = values((9, 3, 7, 16), dtype)
    for layout, masks, expected in [
        (contiguous, box, n),
        (contiguous, constant, n),
        (channels_last, box, n),
        (stepped, box, 1),
        (shifted, constant, 1),
        (every_second_sample, box, n),
        (batch_innermost, constant, 1),
    ]:
        shim.mix(layout(x), *masks)
        assert shim.shape.width == expected
    # 3·7·7 elements of a sample are no multiple of 16 bytes, those of 16·7·7 are; of their rows none is.
    x = values((9, 16, 7, 7), dtype)
    box, constant = (plan_for(METHODS[m], x.shape, 2, "sample", "roll") for m in ("HMix-paper", "MixUp"))
    for layout, masks, expected in [
        (contiguous, box, 1),
        (contiguous, constant, n),
        (channels_last, box, n),
        (transposed, box, 1),
    ]:
        shim.mix_(layout(x), *masks)
        assert shim.shape.width == expected


# ---- one pass -------------------------------------------------------------------------------------------------------

KEEP, TAKE, BLEND = range(3)


def leaves_out(x, shape, families):
    """Whether the kernel leaves out what masks make needless. For whole vectors there are kernels for some sets of
    families, and of these only that of CutMix does."""
    whole = shape.width * x.element_size() == 16 and x.element_size() < 8
    sets = (Families.CUTS | Families.BOXES | Families.CONSTANTS, Families.GAUSSIANS | Families.CONSTANTS)
    return not whole or families == Families.CUTS or not any(families & ~held == 0 for held in sets)


def reaches(x, w, masks, shape):
    """What the mask does to each vector of a contiguous sample, as far as the kernel asks: KEEP and TAKE are copies.

    Levels of stored masks are not looked at before they are used."""
    _, records, families, _, _, per, *pixels = masks
    kind = kind_of(records)
    kind = kind[:1].expand(len(x)) if per == Per.BATCH else kind
    bits = any(p is not None and p.dtype == torch.int32 for p in pixels)
    v = w.reshape(len(x), -1, shape.width)
    exact = (~torch.isin(kind, CURVES) & (~torch.isin(kind, FOURIERS) | bits))[:, None]
    found = torch.full(v.shape[:2], BLEND)
    if leaves_out(x, shape, families):
        found[(v == 1).all(2) & exact] = KEEP
        found[(v == 0).all(2) & exact] = TAKE
    return found


def last_of_spans(n, shape):
    """The samples that a thread of a column begins with, which the next thread always reads as its last partner."""
    span = -(-n // (ROLL_THREADS >> shape.log_column))
    last = torch.zeros(n, dtype=torch.bool)
    last[span - 1 :: span] = True
    last[-1] = True
    return last[:, None]


def expected_traffic(way, x, w, masks, shape, in_place, adjoint=False):
    """How often each element of x is read, and how often each of the result written: mix_kernel.h, in tensors."""
    partner, n = masks[0], len(x)
    reach = reaches(x, w, masks, shape)
    keeps, takes, blends = (reach == r for r in (KEEP, TAKE, BLEND))
    once = torch.ones_like(reach)
    lent = torch.zeros_like(reach).index_add(0, partner, (~keeps).long())  # as somebody's partner
    if shape.way == way.NONE:
        reads = writes = 0 * once
    elif adjoint:  # by itself what it kept, and by its partner what was not its own
        reads, writes = (~takes).long() + (~keeps).long(), once
    elif shape.way in (way.EACH, way.SLICES):
        reads, writes = (~takes).long() + lent, once
    elif shape.way == way.PAIRS:
        itself = blends if in_place else ~takes
        reads = (itself | ~keeps.flip(0)).long()  # by the thread that has both
        writes = (~keeps).long() if in_place else once
        if n % 2 == 1:  # the middle: who is his own partner
            reads[n // 2] *= 0 if in_place else 2
            writes[n // 2] *= not in_place
    elif shape.way == way.ROLL:
        wanted = ~keeps.roll(-1, 0) | blends
        reads = torch.where(last_of_spans(n, shape), 1 + blends.long(), wanted.long())
        writes = (~keeps).long()
    else:
        skips = leaves_out(x, shape, masks[2])
        reads = blends.long() + lent if skips else once
        writes = (~keeps).long()
    return tuple(t[..., None].expand(n, -1, shape.width).reshape(x.shape) for t in (reads, writes))


def assert_part(shim, x):
    """A part of the images aside: packed, written once and read once, part after part."""
    shape = shim.shape
    for k, (name, launch) in enumerate(shim.launches()):
        vectors = min(shape.slice, shape.columns - k // 2 * shape.slice)
        use, nbytes = launch["buffers"][PART], len(x) * vectors * shape.width * x.element_size()
        written, read = (nbytes, 0) if name == "mix" else (0, nbytes)
        assert use["written_bytes"] == use["distinct_written_bytes"] == written
        assert use["read_bytes"] == use["distinct_read_bytes"] == read


def kernels_of(shim, masks, adjoint=False):
    way, shape = shim.module.Way, shim.shape
    if shape.way == way.SLICES:
        return ["mix", "back"] * -(-shape.columns // shape.slice)
    loaded = adjoint and not Pairing(masks[4]).is_formula
    return [] if shape.way == way.NONE else ["invert", "mix"] if loaded else ["mix"]


def assert_traffic(shim, x, w, masks, adjoint=False):
    """What was counted in the last call is what was expected: x in place, or from x to a buffer `out` like it."""
    assert shim.kernels() == kernels_of(shim, masks, adjoint)
    way, launches = shim.module.Way, shim.launches()
    in_place = shim.shape.way == way.NONE or "out" not in launches[-1][1]["buffers"]
    reads, writes = expected_traffic(way, x, w, masks, shim.shape, in_place, adjoint)
    counted_reads, counted_writes = shim.counts("x", x)
    assert torch.equal(counted_reads, reads)
    assert torch.equal(counted_writes if in_place else shim.counts("out", x)[1], writes)
    threads = {way.ROLL: ROLL_THREADS, way.TILE: TILE_THREADS}.get(shim.shape.way)
    assert threads in (None, *(launch["threads"] for _, launch in launches))
    if in_place:
        assert reads.max() <= 2
        assert writes.max() <= 1
    else:
        assert not counted_writes.any()
        assert not shim.counts("out", x)[0].any()
    if shim.shape.way == way.SLICES:
        assert_part(shim, x)
    return reads, writes


TRAFFIC = ("MixUp", "CutMix", "HMix-paper", "GMix-released", *STORED)


@pytest.mark.parametrize(("per", "pairing"), DRAWS)
@pytest.mark.parametrize("name", TRAFFIC)
def test_one_pass(shim, name, per, pairing):
    """In place every element is written once and read at most twice, and kernels that look where masks reach touch
    nothing else; out of place every element is written once, and read for its sample and for that it is lent to."""
    for i, (shape, dtype) in enumerate(itertools.product(((11, 3, 8, 16), (6, 2, 7, 5), (2, 3, 4, 16)), DTYPES)):
        masks = plan_for(MASKS[name], shape, 2, per, pairing, seed=i)
        before = values(shape, dtype, seed=i)
        w = weights_of(shim, before, masks)
        shim.mix(before, *masks)
        assert_traffic(shim, before, w, masks)
        for other in other_shapes(shim, before, pairing, in_place=False):
            shim.mix(before, *masks, shape=other)
            assert_traffic(shim, before, w, masks)
        if dtype in FLOATS:
            shim.mix_adjoint(before, *masks)
            assert_traffic(shim, before, w, masks, adjoint=True)
        x = before.clone()
        shim.mix_(x, *masks)
        chosen, (_, writes) = shim.shape, assert_traffic(shim, x, w, masks)
        # What expected_traffic says where that needs no arithmetic.
        moved = (masks[0] != torch.arange(shape[0])).view(-1, 1, 1, 1).expand(shape)
        vectors = w.reshape(shape[0], -1, chosen.width)
        if name == "GMix-released":
            assert torch.equal(writes, torch.ones_like(writes) if pairing != "flip" else moved.long())
        elif name == "CutMix":
            touched = (vectors == 0).any(2, keepdim=True).expand(vectors.shape).reshape(shape)
            assert torch.equal(writes, (touched & moved if pairing == "flip" else touched).long())
        for other in other_shapes(shim, x, masks[4])[:: 1 + i % 3]:
            again = before.clone()
            shim.mix_(again, *masks, shape=other)
            assert_traffic(shim, again, w, masks)
            assert alike(again, x)


@each_dtype
@pytest.mark.parametrize("layout", [contiguous, channels_last, transposed])
@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
def test_stored_masks_are_read_word_by_word(shim, dtype, layout, pairing):
    """One load of a word for every vector of every sample, where its elements are pixels in a row; of channels that lie
    together at most one more. Images still move 16 bytes at a time."""
    masks = plan_for(fm.FMix, (6, 3, 32, 48), 2, "sample", pairing, seed=2)
    x = layout(values((6, 3, 32, 48), dtype))
    w = weights_of(shim, x, masks)
    for in_place in (False, True):
        out = x.clone() if in_place else torch.empty_like(x)
        shim.mix_into(out, out if in_place else x, *masks)
        ((_, launch),) = shim.launches()
        assert widths(shim) == {16}
        use = launch["buffers"]["pixels"]
        assert use["read_widths"].keys() == {4}
        vectors = x.numel() * dtype.itemsize // 16
        assert alike(out, torch.where(w == 0, x[masks[0]], x))
        if layout is not transposed:
            assert vectors <= use["read_widths"][4] <= (1 if layout is contiguous else 3) * vectors


def test_pixels_of_no_stored_mask_do_not_matter(shim):
    """A plan that might have stored masks, but drew none: as the same plan without pixels."""
    masks = plan_for(METHODS["RandomMix"], (9, 3, 8, 16), 2, "sample", "roll")
    x = values((9, 3, 8, 16), torch.float32)
    pixels = torch.randint(-(2**31), 2**31, (9, 4)).int()
    partner, records, families, *rest, _ = masks
    assert alike(shim.mix(x, partner, records, families | Families.STORED, *rest, pixels), shim.mix(x, *masks))


@each_dtype
@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_cutmix_touches_only_the_box(shim, dtype, per, pairing):
    """In place, in whole vectors: those that a box touches are written once, and what they are made of is read; by roll
    the samples where spans meet as well."""
    n, way = 12, shim.module.Way
    for seed in range(6):
        masks = plan_for(METHODS["CutMix"], (n, 3, 24, 32), 2, per, pairing, seed=seed)
        x = values((n, 3, 24, 32), dtype)
        w = weights_of(shim, x, masks)
        shim.mix_(x, *masks, shape={"way": way.ROLL, "log_column": 8} if pairing == "roll" else None)
        width = shim.shape.width
        touched = (w == 0).reshape(n, -1, width).any(2)
        ((_, launch),) = shim.launches()
        use, nbytes = launch["buffers"]["x"], width * x.element_size()
        assert use["written_bytes"] == use["distinct_written_bytes"] == int(touched.sum()) * nbytes
        needed = touched | touched[masks[0].argsort()]
        met = 1 if pairing == "roll" else 0  # spans
        assert use["distinct_read_bytes"] <= (int(needed.sum()) + met * touched.shape[1]) * nbytes
        assert use["read_bytes"] <= 2 * (int(touched.sum()) + met * touched.shape[1]) * nbytes
        assert use["max_reads"] <= 2


def test_what_moves_nothing(shim):
    """λ = 1: no bit changes, and kernels that look touch nothing, roll where spans meet excepted. Samples that are
    their own partners stay as they are."""
    n = 9
    ones = packed(torch.zeros(n).int(), torch.zeros(n, 6).int(), torch.tensor([[1.0, 0.0]]).repeat(n, 1))
    for dtype, width in ((torch.float32, 4), (torch.float32, 5), (torch.uint8, 16), (torch.float64, 4)):
        before = torch.randint(0, 256, (n, 3, 4, width * dtype.itemsize), dtype=torch.uint8).view(dtype)
        for name, pairing in itertools.product(("MixUp", "CutMix", "GMix-released"), ("roll", "flip", "random")):
            partner, records, families, *rest = plan_for(METHODS[name], before.shape, 2, "sample", pairing)
            x = before.clone()
            shim.mix_(x, partner, ones, families, *rest)
            assert alike(x, before)
            if leaves_out(x, shim.shape, families) and shim.shape.way != shim.module.Way.ROLL:
                assert not any(counts.any() for counts in shim.counts("x", x))
            if pairing == "random":
                shim.mix_(x, torch.arange(n), records, families, *rest)
                assert torch.equal(x.nan_to_num(), before.nan_to_num())


def test_counts_can_be_wrong(shim):
    """A second launch is seen, as is a different mask, and a different way: the tests above can fail."""
    before = values((6, 3, 4, 4), torch.float32)
    masks = plan_for(METHODS["CutMix"], before.shape, 2, "sample", "random", seed=1)
    w = weights_of(shim, before, masks)
    way = shim.module.Way
    for other in (None, {"way": way.SLICES, "slice": 5}):
        x = before.clone()
        shim.mix_(x, *masks, shape=other)
        assert_traffic(shim, x, w, masks)
        with pytest.raises(AssertionError):
            assert_traffic(shim, x, 1 - w, masks)
        taken = shim.shape.way
        shim.shape.way, shim.shape.slice = way.TILE if other else way.SLICES, 5
        with pytest.raises(AssertionError):
            assert_traffic(shim, x, w, masks)
        shim.shape.way = taken
    shim.mix_(x, *masks)
    shim.mix_(x, *masks, fresh=False, on_host=True)
    counted = shim.counts("x", x)[1]
    assert torch.equal(counted, 2 * expected_traffic(way, x, w, masks, shim.shape, True)[1])


# ---- partners -------------------------------------------------------------------------------------------------------


def from_cycles(*cycles):
    """The permutation in which each sample's partner is the next of its cycle."""
    partner = torch.arange(sum(map(len, cycles)))
    for cycle in cycles:
        for i, j in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            partner[i] = j
    return partner


PERMUTATIONS = {
    "identity": from_cycles(*([i] for i in range(12))),
    "pairs": from_cycles(*([i, i + 6] for i in range(6))),
    "one cycle": from_cycles(range(12)),
    "backwards": from_cycles(range(11, -1, -1)),
    "two cycles": from_cycles([0, 4, 8, 1, 2, 3], [5, 6, 7, 9, 10, 11]),
    "many cycles": from_cycles([1, 2, 4, 5], [7, 8], [10], [11, 0, 3], [6, 9]),
    "cycles and one alone": from_cycles([11, 1, 10, 2, 9, 3], [7, 5, 6], [8, 0], [4]),
    "cycles within others": from_cycles([0, 3, 6, 9], [1, 2], [4, 5], [7, 8], [10, 11]),
    "three alone": from_cycles([1, 5, 9], [2, 10], [3, 7, 11, 6], [0], [4], [8]),
}


def masks_by_hand(partner, per="sample", pairing="random"):
    """Boxes, constants and Gaussians by turns, in images of 3 × 8."""
    n = partner.shape[0]
    index = torch.arange(n)
    kind = (index % 4).int()
    box = torch.stack([index * 0, index % 2, index % 5, index * 0 + 1, index * 0 + 3, index % 5 + 3], 1)
    value = torch.stack([torch.where(kind == Kind.BOX, 1.0, 0.01 * (1 + index % 90)), index * 0.0], 1).float()
    return partner, packed(kind, box, value), FORMULAS, 2, Pairing[pairing.upper()], Per[per.upper()]


def in_every_shape(shim, before, w, masks, **how):
    """Whatever the width of columns, the way and the part aside: each element is touched as mix_kernel.h says."""
    x = before.clone()
    shim.mix_(x, *masks, **how)
    assert_traffic(shim, x, w, masks)
    assert_mixed(x, before, w, masks[0])
    for shape in other_shapes(shim, before, masks[4]):
        again = before.clone()
        shim.mix_(again, *masks, **how, shape=shape)
        assert_traffic(shim, again, w, masks)
        assert alike(again, x)


@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_permutations(shim, permutation):
    partner = PERMUTATIONS[permutation]
    masks = masks_by_hand(partner)
    before = values((12, 2, 3, 8), torch.float32)
    w = weights_of(shim, before, masks)
    for on_host in (True, False):
        for shape in (None, *({"by_tile": by_tile} for by_tile in (True, False))):
            out = shim.mix(before, *masks, on_host=on_host, shape=shape)
            assert_traffic(shim, before, w, masks)
            assert_mixed(out, before, w, partner)
        assert_adjoint(shim.mix_adjoint(before, *masks, on_host=on_host), before, w, partner)
        assert_traffic(shim, before, w, masks, adjoint=True)
        in_every_shape(shim, before, w, masks, on_host=on_host)


@pytest.mark.parametrize("pairing", ["roll", "flip"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 13, 127, 128, 129, 255, 256, 257])
def test_formula_pairings(shim, pairing, n):
    """As many samples as a column has threads, and one more or less."""
    partner = partners.formula(Pairing[pairing.upper()], n, CPU)
    masks = masks_by_hand(partner, pairing=pairing)
    for dtype in (torch.uint8, torch.float32):
        before = values((n, 1, 3, 8), dtype)
        in_every_shape(shim, before, weights_of(shim, before, masks), masks)


def random_permutation(random, n, cycles):
    """With about so many cycles."""
    order = random.sample(range(n), n)
    cuts = sorted({0, n, *(random.randrange(n) for _ in range(cycles - 1))})
    return from_cycles(*(order[a:b] for a, b in itertools.pairwise(cuts)))


@settings(max_examples=150, deadline=None)
@given(
    random=st.randoms(use_true_random=False),
    n=st.one_of(st.integers(1, 20), st.integers(100, 300)),
    cycles=st.integers(1, 12),
    on_chip=st.sampled_from([SHARED, 8192, 1]),
    other=st.integers(0, 100),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    per=st.sampled_from(["batch", "sample"]),
    order=st.tuples(st.integers(0, 2**63), st.sampled_from([0.0, 0.01, 0.3])),
)
def test_any_permutation(built, random, n, cycles, on_chip, other, layout, dtype, per, order):
    """Whatever the permutation, the shape, the layout and the order in which threads run."""
    built.shared_bytes = on_chip
    built.module.seed(order[0])
    built.module.set_yield_probability(order[1])
    masks = masks_by_hand(random_permutation(random, n, cycles), per)
    before = values((n, 2, 3, 8), dtype, seed=n)
    w = weights_of(built, before, masks)
    out = built.mix(layout(before), *masks)
    assert_mixed(out, before, w, masks[0])
    shape = None
    for _ in range(2):
        x = layout(before)
        built.mix_(x, *masks, shape=shape)
        assert alike(x, out)
        if layout is contiguous:
            assert_traffic(built, x, w, masks)
        others = other_shapes(built, x, masks[4])
        shape = others[other % len(others)]
    built.module.set_yield_probability(1 / 32)


@pytest.mark.parametrize("pairing", ["roll", "flip", "random", "cross_class"])
def test_any_order_of_threads(shim, pairing):
    """Results do not depend on it, and no order shows a race: sampling, images and targets."""
    labels = torch.arange(40) % 5
    mix = fm.RandomMix([fm.MixUp(), fm.CutMix(), fm.GMix()], per="sample", pairing=pairing, num_classes=5)
    request = mix._request(40, (5, 8), None, labels)
    before = values((40, 2, 5, 8), torch.float32)
    results = []
    for seed, p in itertools.product(range(12), (0.0, 1 / 32, 1.0)):
        shim.module.seed(seed)
        shim.module.set_yield_probability(p)
        x = before.clone()
        results.append((x, *shim.mix_batch_(x, labels, request, torch.tensor(7), 5, 0.1)))
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert alike(a, b)


NO_PERMUTATIONS = {
    "one for all": torch.zeros(12).long(),
    "some twice": torch.tensor([1, 2, 3, 1, 4, 4, 7, 6, 11, 11, 11, 0]),
    "beyond the batch": torch.tensor([12, -1, 2**62, -(2**63), 2**32, 11, 10, 9, 8, 3, 3, 3]),
}


@pytest.mark.parametrize("partners_given", NO_PERMUTATIONS)
def test_partners_that_are_no_permutation(shim, partners_given):
    """On the device nobody can refuse them. Nothing beyond the batch is touched, nothing races, and numbers that are
    nobody's stand for the sample itself. Of the adjoint there is no right result: whose partner a sample is, one of
    several says last."""
    given = NO_PERMUTATIONS[partners_given]
    inside = torch.where((given >= 0) & (given < 12), given, torch.arange(12))
    before = values((12, 2, 3, 8), torch.float32)
    for name in ("MixUp", "CutMix", "GMix-released"):
        masks = plan_for(METHODS[name], before.shape, 2, "sample", "random", seed=3)[1:]
        w = weights_of(shim, before, (inside, *masks))
        for seed, p in itertools.product(range(4), (0.0, 1 / 32, 1.0)):
            shim.module.seed(seed)
            shim.module.set_yield_probability(p)
            assert_mixed(shim.mix(before, given, *masks), before, w, inside)
            x = before.clone()
            shim.mix_(x, given, *masks)
            for shape in (None, *other_shapes(shim, before, Pairing.RANDOM)):
                x = before.clone()
                shim.mix_(x, given, *masks, shape=shape)
                assert_mixed(x, before, w, inside)
        with pytest.raises(shim.module.ShimError, match=r"^race within a block: .* of 'the inverse of the partners'"):
            shim.mix_adjoint(before, given, *masks)


# ---- the tests can fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairing", ["roll", "random"])
def test_a_column_must_have_one_block(shim, pairing):
    """What columns are for: without them a block reads what another block, or a thread of its own, has overwritten, and
    the shim says so."""
    masks = masks_by_hand(from_cycles(range(11, -1, -1)), pairing=pairing)
    x = values((12, 2, 3, 8), torch.float32)
    for seed, p in itertools.product(range(8), (0.0, 1 / 32, 1.0)):
        shim.module.seed(seed)
        shim.module.set_yield_probability(p)
        each = {"way": shim.module.Way.EACH, "log_column": 8}
        with pytest.raises(shim.module.ShimError, match=f"^({RACE}|exchange: )"):
            shim.mix_(x, *masks, shape=each)
        shim.mix(x, *masks, shape=each)  # out of place nobody overwrites what is read


def test_ways_must_suit_the_partners(shim):
    """A kernel of one pairing gives another pairing wrong results."""
    before = values((12, 2, 3, 8), torch.float32)
    way = shim.module.Way
    for wrong, pairing in ((way.ROLL, "random"), (way.PAIRS, "random"), (way.PAIRS, "roll"), (way.ROLL, "flip")):
        masks = plan_for(METHODS["MixUp"], before.shape, 2, "sample", pairing)
        x = before.clone()
        shim.mix_(x, *masks, shape={"way": wrong})
        with pytest.raises(AssertionError):
            assert_mixed(x, before, weights_of(shim, before, masks), masks[0])


def test_columns_must_fit_shared_memory(shim):
    """One byte less than a column has, and more bytes than there are for a block."""
    masks = masks_by_hand(from_cycles(range(12)))
    x = values((12, 2, 3, 8), torch.float32)
    tile = {"way": shim.module.Way.TILE, "log_column": 3}
    with pytest.raises(shim.module.ShimError, match=r"^out of bounds: .* of shared 'shared'"):
        shim.mix_(x, *masks, shape=tile | {"shared_bytes": 12 * 8 * 16 - 1})
    with pytest.raises(shim.module.ShimError, match=r"^too much shared memory: "):
        shim.mix_(x, *masks, shape=tile | {"shared_bytes": SHARED + 1})
    shim.mix_(x, *masks, shape=tile)


def test_columns_must_not_overlap(shim):
    """Parts of more vectors than a sample has: what is beyond the last is nobody's."""
    masks = masks_by_hand(from_cycles(range(12)))
    x = values((12, 2, 3, 8), torch.float32)
    for way in (shim.module.Way.SLICES, shim.module.Way.TILE):
        changes = {"way": way, "columns": 2 * 3 * 2 + 1, "slice": 13, "log_column": 0}
        with pytest.raises(shim.module.ShimError, match=r"^(out of bounds|race|exchange)"):
            shim.mix_(x, *masks, shape=changes)


def test_memory_of_others(shim):
    """One byte less is watched than the images have."""
    masks = masks_by_hand(from_cycles(range(12)), per="batch", pairing="roll")
    x = values((12, 2, 3, 8), torch.uint8)
    for shape in (None, {"way": shim.module.Way.TILE, "log_column": 2}, {"way": shim.module.Way.SLICES, "slice": 4}):
        shim.forget()
        shim.module.watch(x.data_ptr(), x.numel() - 1, "x")
        with pytest.raises(shim.module.ShimError, match=r"^out of bounds: .* of 'x', which has 575"):
            shim.mix_(x, *masks, shape=shape, fresh=False)


# ---- how a plan travels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairing", ["roll", "random"])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_plans_in_the_arguments(shim, per, pairing):
    """Same images; and nothing of the plan is read from memory. 56 bytes a sample: 50 samples fill the arguments."""
    n = 50
    assert n * 56 <= shim.module.INLINE_BYTES < (n + 1) * 56
    masks = plan_for(METHODS["RandomMix"], (n, 1, 4, 8), 2, per, pairing)
    x = values((n, 1, 4, 8), torch.float32)
    there = shim.mix(x, *masks)
    ((_, launch),) = shim.launches()
    assert launch["buffers"]["masks"]["read_widths"].keys() == {16}
    inside = shim.mix(x, *masks, on_host=True)
    ((_, launch),) = shim.launches()
    assert launch["buffers"].keys() == {"x", "out", "arguments"}
    assert alike(inside, there)


def test_plans_that_do_not_fit_the_arguments(shim):
    """In one upload, and another one for pixels."""
    for name, pieces in (("CutMix", {"a plan"}), ("FMix-among", {"a plan", "the pixels of a plan"})):
        masks = plan_for(MASKS[name], (51, 1, 4, 8), 2, "sample", "random")
        x = values((51, 1, 4, 8), torch.float32)
        there = shim.mix(x, *masks)
        inside = shim.mix(x, *masks, on_host=True)
        ((_, launch),) = shim.launches()
        assert launch["buffers"].keys() == {"x", "out", "arguments", *pieces}
        assert alike(inside, there)


def test_a_plan_is_on_one_device(shim):
    masks = plan_for(METHODS["CutMix"], (4, 1, 4, 8), 2, "sample", "random")
    x = values((4, 1, 4, 8), torch.float32)
    shim.forget()
    plan = shim.plan({"partner": masks[0], "masks": masks[1]}, (4, 8), pairing=masks[4])
    plan["on_host"] = {"masks"}
    with pytest.raises(ValueError, match="must be on one device"):
        shim.module.apply(shim.memory, (x, x, 2, False), plan, True)


def test_one_draw_is_one_row(shim):
    """Per batch nothing but row 0 of a plan is read."""
    masks = plan_for(METHODS["HMix-paper"], (20, 3, 4, 8), 2, "batch", "random")
    shim.mix(values((20, 3, 4, 8), torch.float32), *masks)
    ((_, launch),) = shim.launches()
    assert launch["buffers"]["masks"]["distinct_read_bytes"] == 48
    assert launch["buffers"]["partner"]["distinct_read_bytes"] == 160


def test_formulas_are_not_loaded(shim):
    for pairing in ("roll", "flip"):
        masks = plan_for(METHODS["CutMix"], (20, 3, 4, 8), 2, "sample", pairing)
        shim.mix(values((20, 3, 4, 8), torch.float32), *masks)
        ((_, launch),) = shim.launches()
        assert launch["buffers"]["partner"]["read_bytes"] == 0


# ---- targets --------------------------------------------------------------------------------------------------------


def dense(labels, partner, weight, classes, smoothing):
    """reference.mix_labels, but for classes out of range: their rows have no one."""
    if labels.ndim == 1:
        labels = (labels.to(torch.int64)[:, None] == torch.arange(classes)).float()
    return reference.mix_labels(labels, partner, weight, classes, smoothing)


def weights_and_partners(n, seed=0):
    plan = fm.MixUp(per="sample", pairing="random").sample(n, (1,), seed=seed)
    weight = plan.weight.clone()
    weight[::3] = torch.linspace(0, 1, len(weight[::3]), dtype=torch.float64)
    return plan.partner, weight


def assert_targets(shim, out, expected):
    """And every byte of them is written once."""
    assert alike(out, expected)
    reads, writes = shim.counts("targets", out)
    assert (writes == 1).all()
    assert not reads.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool], ids=name_of)
def test_class_labels(shim, dtype, smoothing):
    """Any integer type, any stride, and numbers of classes around the 512 targets of a block."""
    for n, classes, step in itertools.product((1, 7, 33), (1, 2, 10, 127, 129, 1000), (1, 3)):
        labels = (torch.arange(n * step) * 11 % (2 if dtype == torch.bool else 120)).to(dtype)[::step]
        partner, weight = weights_and_partners(n)
        out = shim.mix_labels(labels, partner, weight, classes, smoothing, on_host=n < 20)
        assert_targets(shim, out, dense(labels, partner, weight, classes, smoothing))


@pytest.mark.parametrize("dtype", INTEGERS, ids=name_of)
def test_classes_out_of_range(shim, dtype):
    """Rows without a one: the lowest and the highest number of a type, and one that is 3 in its lower 32 bits."""
    info = torch.iinfo(dtype)
    odd = [3, 4, 5, 9, 10, 100, info.min, *([2**32 + 3] if info.max > 2**32 else [])]
    # torch has no uint64 arithmetic on every value: the largest by its bits.
    labels = torch.cat([torch.tensor(odd).to(dtype), torch.full((8,), 255, dtype=torch.uint8).view(dtype)[:1]])
    partner, weight = weights_and_partners(len(labels))
    for smoothing in (0.0, 0.2):
        out = shim.mix_labels(labels, partner, weight, 10, smoothing)
        assert_targets(shim, out, dense(labels, partner, weight, 10, smoothing))
    assert not dense(labels, torch.arange(len(labels)), weight, 10, 0.0)[-1].any()


def soft(dtype, n, classes):
    x = torch.rand(n, classes, generator=torch.Generator().manual_seed(n))
    return x.to(dtype) if dtype.is_floating_point else (x * 9).to(dtype)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.bool], ids=name_of)
def test_soft_labels(shim, dtype, smoothing):
    """In their own type; integers become float32. Contiguous, transposed, a slice in both dims, one row for all."""
    for n, classes in ((1, 1), (5, 3), (9, 130)):
        partner, weight = weights_and_partners(n)
        for labels in (
            soft(dtype, n, classes),
            soft(dtype, classes, n).t(),
            soft(dtype, 2 * n, 3 * classes)[1::2, ::3],
            soft(dtype, 1, classes).expand(n, classes),
        ):
            out = shim.mix_labels(labels, partner, weight, classes, smoothing, on_host=n < 6)
            assert out.dtype == (dtype if dtype.is_floating_point else torch.float32)
            assert_targets(shim, out, dense(labels, partner, weight, classes, smoothing))


# ---- sampling -------------------------------------------------------------------------------------------------------


def assert_sampled(shim, request, seed=11, by_number=False):
    """The reference's plan: equal, but weights of Gaussian masks to 1e-13. Every number is written once."""
    expected = reference.sample(
        Request(*request[:3], Pairing(request[3]), Per(request[4]), *request[5:]),
        Source(torch.tensor(seed), None, None),
        CPU,
    )
    made = shim.sample(*request, seed if by_number else torch.tensor(seed))
    for name, a, b in zip(fm.plan._TENSORS[:4], made, expected, strict=True):
        assert a.dtype == b.dtype
        if name == "weight":
            assert (a - b).abs().max() <= 1e-13
        else:
            assert torch.equal(a, b), name
        assert (shim.counts(name, a)[1] == 1).all()
    assert shim.kernels() == ["sample"]
    return made


@pytest.mark.parametrize(("per", "pairing"), DRAWS)
@pytest.mark.parametrize("name", SAMPLED)
def test_sampling(shim, name, per, pairing):
    for i, (n, size) in enumerate([(1, (4, 4)), (2, (31,)), (17, (7, 20)), (130, (3, 6, 5)), (3, (37, 6))]):
        mix = SAMPLED[name](per=per, pairing=pairing, p=(1.0, 0.6)[i % 2], sampling="device")
        labels = torch.arange(n) * 7 % 5 if "class" in pairing else None
        assert_sampled(shim, mix._request(n, size, None, labels), seed=i)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32, 2**63 - 1, -(2**63), 12345678901234567])
@pytest.mark.parametrize("pairing", ["random", "cross_class", "same_class"])
def test_seeds(shim, seed, pairing):
    """From memory, and as a number in the arguments."""
    mix = METHODS["RandomMix"](per="sample", pairing=pairing)
    request = mix._request(40, (16, 16), None, torch.arange(40) % 3)
    for by_number in (False, True):
        assert_sampled(shim, request, seed, by_number)


CLASSES = {
    "one class": lambda n: torch.zeros(n),
    "all distinct": lambda n: torch.arange(n),
    "two halves": lambda n: torch.arange(n) % 2,
    "more than half": lambda n: torch.arange(n) * (torch.arange(n) % 3 == 0),
    "all but one": lambda n: torch.arange(n) == n // 2,
    "negative": lambda n: torch.arange(n) % 7 - 3,
    "of any size": lambda n: (torch.arange(n) % 5 - 2) * (2**62 - 1),
    "ten": lambda n: torch.arange(n) * torch.arange(n) % 10,
}


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("pairing", ["cross_class", "same_class"])
def test_partners_by_class(shim, pairing, classes):
    for n in (1, 2, 3, 15, 16, 17, 64, 127, 128, 129, 300):
        labels = CLASSES[classes](n).to(torch.int64)
        mix = fm.MixUp(pairing=pairing, sampling="device")
        partner, *_ = assert_sampled(shim, mix._request(n, (4,), None, labels), seed=n)
        assert torch.equal(partner.sort().values, torch.arange(n))
        largest = int(labels.unique(return_counts=True)[1].max())
        if pairing == "same_class":
            assert torch.equal(labels[partner], labels)
        else:
            assert int((labels[partner] == labels).sum()) == max(0, 2 * largest - n)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 127, 128, 129, 255, 300])
def test_random_partners(shim, n):
    mix = fm.MixUp(pairing="random", sampling="device")
    for seed in range(3):
        partner, *_ = assert_sampled(shim, mix._request(n, (4,), None, None), seed=seed)
        assert torch.equal(partner.sort().values, torch.arange(n))


@pytest.mark.parametrize("methods", [1, 2, 16, 17, 40])
def test_many_methods(shim, methods):
    """Up to 16 rows travel in the arguments; more are read where they are."""
    forms = [fm.MixUp, fm.CutMix, fm.HMix, fm.GMix, fm.SamplePairing]
    chosen = [forms[i % 5](p=(1.0, 0.5)[i % 3 == 1]) for i in range(methods)]
    mix = fm.RandomMix(chosen, weights=[1 + i % 4 for i in range(methods)], per="sample", p=0.8)
    assert_sampled(shim, mix._request(200, (9, 11), None, None))
    assert (ROWS_OF_A_SPEC in shim.launches()[0][1]["buffers"]) == (methods > 16)


@pytest.mark.parametrize(("per", "pairing"), DRAWS)
@pytest.mark.parametrize("p", [1.0, 0.5])
def test_given_lam(shim, per, pairing, p):
    """One for all, or one each; not clamped."""
    mix = fm.RandomMix(
        [fm.MixUp(lam_range=(0.4, 0.6)), fm.GMix(), fm.CutMix()], per=per, pairing=pairing, p=p, sampling="device"
    )
    each = torch.linspace(0, 1, 33)
    for lam in (torch.tensor(0.3), torch.tensor(0.0), torch.tensor(1.0), each):
        assert_sampled(shim, mix._request(33, (8, 9), lam, torch.arange(33) % 4))


def test_ranges_and_fixed_lam(shim):
    """λ is clamped where it is drawn; a fixed one, and the 1 of α = 0, are not."""
    rows = [
        spec_row(Method.MIXUP, lam_range=(0.3, 0.7)),
        spec_row(Method.MIXUP, lam=0.9, lam_range=(0.3, 0.7)),
        spec_row(Method.MIXUP, alpha=0.0, lam_range=(0.3, 0.7)),
        spec_row(Method.CUTMIX, alpha=0.01),
        spec_row(Method.HMIX_PAPER, alpha=50.0, ratio=0.25),
    ]
    spec = torch.cat(rows)
    spec[:, 1] = 0.2
    _, lam, *_ = assert_sampled(shim, (spec, 300, (30, 20), Pairing.ROLL, Per.SAMPLE, 1.0, None, None))
    assert {0.9, 1.0} <= {round(v, 6) for v in lam.tolist()}


# ---- a whole step ---------------------------------------------------------------------------------------------------


def step_for(name, n, shape, per, pairing, lam=None):
    classes = 7
    labels = torch.arange(n) * 5 % classes
    mix = METHODS[name](per=per, pairing=pairing, num_classes=classes, sampling="device")
    return mix._request(n, shape[-2:], lam, labels if "class" in pairing else None), labels, classes


def masks_of(request, made):
    return reference._masks(Request(*request[:3], Pairing(request[3]), Per(request[4]), *request[5:]), made)


def dependent(shim):
    """Which launches of the last call may begin before the one before has ended."""
    return [(name, launch["dependent"]) for name, launch in shim.launches()]


@pytest.mark.parametrize(("per", "pairing"), DRAWS)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_two_launches(shim, name, per, pairing):
    """The plan; then images and targets, by a launch that may begin before the plan is there, and waits for it."""
    shape, dtype = (14, 3, 6, 16), DTYPES[list(METHODS).index(name) % 5]
    for lam in (None, torch.linspace(0, 1, 14)):
        request, labels, classes = step_for(name, 14, shape, per, pairing, lam)
        before = values(shape, dtype)
        out, *others = shim.mix_batch(before, labels, request, torch.tensor(3), classes, 0.1)
        assert dependent(shim) == [("sample", False), ("mix", True)]
        x = before.clone()
        targets, *made = shim.mix_batch_(x, labels, request, torch.tensor(3), classes, 0.1)
        assert dependent(shim) == [("sample", False), ("mix", True)]
        (_, sampled), (_, mixed) = shim.launches()
        assert sampled["buffers"]["x"]["read_bytes"] == sampled["buffers"]["x"]["written_bytes"] == 0
        assert mixed["buffers"]["x"]["max_reads"] <= 2
        assert mixed["buffers"]["x"]["max_writes"] <= 1
        assert_targets(shim, targets, dense(labels, made[0], made[2], classes, 0.1))
        for a, b in zip((x, targets, *made), (out, *others), strict=True):
            assert alike(a, b)
        masks = masks_of(request, made)
        assert_mixed(x, before, weights_of(shim, before, masks), made[0])


@pytest.mark.parametrize("on_host", [True, False], ids=["on the host", "on the device"])
@pytest.mark.parametrize(("per", "pairing"), DRAWS)
def test_a_step_drawn_on_the_host_is_one_launch(shim, per, pairing, on_host):
    for name, shape in itertools.product(("MixUp", "CutMix", "GMix-released"), ((14, 3, 6, 16), (3, 3, 5, 5))):
        n = shape[0]
        request, labels, classes = step_for(name, n, shape, per, pairing)
        made = reference.sample(
            Request(*request[:3], Pairing(request[3]), Per(request[4]), *request[5:]),
            Source(torch.tensor(5), None, None),
            CPU,
        )
        masks = masks_of(request, made)
        before = values(shape, torch.float32)
        w = weights_of(shim, before, masks)
        expected = dense(labels, made[0], made[2], classes, 0.0)
        out, x = torch.empty_like(before), before.clone()
        targets, *_ = shim.step(out, before, labels, request, classes, 0.0, made=made, on_host=on_host)
        assert dependent(shim) == [("mix", False)]
        assert_targets(shim, targets, expected)
        targets, *_ = shim.step(x, x, labels, request, classes, 0.0, made=made, on_host=on_host)
        assert dependent(shim) == [("mix", False)]
        assert_targets(shim, targets, expected)
        assert alike(x, out)
        assert_mixed(x, before, w, made[0])


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32, torch.int32], ids=name_of
)
def test_other_targets_are_a_launch(shim, dtype):
    """Of every type, whatever the images are: what is not made of classes, or not float32."""
    for (n, classes), images in itertools.product(((5, 3), (6, 900)), DTYPES):
        request, _, _ = step_for("CutMix", n, (n, 3, 8, 8), "sample", "random")
        labels, before = soft(dtype, n, classes), values((n, 3, 8, 8), images)
        x = before.clone()
        targets, *made = shim.mix_batch_(x, labels, request, torch.tensor(1), classes, 0.0)
        assert dependent(shim) == [("sample", False), ("mix", True), ("target", False)]
        assert_targets(shim, targets, dense(labels, made[0], made[2], classes, 0.0))
        assert_mixed(x, before, weights_of(shim, before, masks_of(request, made)), made[0])


def test_only_what_follows_the_sampler_begins_early(shim):
    """Not what brings a slice back to where it belongs, nor targets where there are no images to mix."""
    shim.shared_bytes = 8192
    request, labels, classes = step_for("MixUp", 300, (300, 1, 4, 8), "sample", "random")
    before = values((300, 1, 4, 8), torch.float32)
    x = before.clone()
    _, *made = shim.mix_batch_(x, labels, request, torch.tensor(3), classes, 0.0)
    assert shim.shape.way == shim.module.Way.SLICES
    assert dependent(shim) == [("sample", False), ("mix", True), ("back", False)]
    assert_mixed(x, before, weights_of(shim, before, masks_of(request, made)), made[0])
    request, labels, classes = step_for("MixUp", 1, (1, 3, 8, 16), "sample", "roll")
    shim.mix_batch_(values((1, 3, 8, 16), torch.float32), labels, request, torch.tensor(3), classes, 0.0)
    assert dependent(shim) == [("sample", False), ("target", False)]


def mixed_with_classes(shim, x, labels, classes, smoothing, pairing="random", in_place=True, weight=None):
    """A step by a plan of MixUp that was made on the host, and what its targets should be."""
    n = len(x)
    mix = fm.MixUp(per="sample", pairing=pairing, num_classes=classes, sampling="device")
    request = mix._request(n, tuple(x.shape[2:]), None, None)
    drawn = Request(*request[:3], Pairing(request[3]), Per(request[4]), *request[5:])
    partner, lam, drawn_weight, masks = reference.sample(drawn, Source(torch.tensor(n), None, None), CPU)
    weight = drawn_weight if weight is None else weight
    out = x if in_place else torch.empty_like(x)
    made = partner, lam, weight, masks
    targets, *_ = shim.step(out, x, labels, request, classes, smoothing, made=made, on_host=n < 20)
    return targets, dense(labels, partner, weight, classes, smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool], ids=name_of)
def test_classes_beside_images(shim, dtype, smoothing):
    """Any integer type, any stride, more blocks of the one than of the other, and classes that there are not."""
    for n, classes, step in itertools.product((2, 7, 33), (1, 10, 1000), (1, 3)):
        labels = (torch.arange(n * step) * 11 % (2 if dtype == torch.bool else 120)).to(dtype)[::step]
        _, weight = weights_and_partners(n)
        made = mixed_with_classes(shim, values((n, 1, 4, 8), torch.float32), labels, classes, smoothing, weight=weight)
        assert shim.kernels() == ["mix"]
        assert_targets(shim, *made)
    if dtype != torch.bool:
        info = torch.iinfo(dtype)
        odd = [3, 9, 10, 100, info.min, *([2**32 + 3] if info.max > 2**32 else [])]
        labels = torch.cat([torch.tensor(odd).to(dtype), torch.full((8,), 255, dtype=torch.uint8).view(dtype)[:1]])
        x = values((len(labels), 1, 4, 8), torch.float32)
        assert_targets(shim, *mixed_with_classes(shim, x, labels, 10, smoothing))


@each_dtype
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_classes_beside_images_whatever_the_way(shim, dtype, n):
    """Once, by every kernel that may have them to write; where there is nothing to mix by a launch of their own."""
    labels, way, taken = torch.arange(n) * 7 % 10, shim.module.Way, set()
    for pairing, in_place, on_chip, shape in itertools.product(
        ("roll", "flip", "random"), (True, False), (SHARED, 1), ((n, 2, 4, 16), (n, 1, 3, 5))
    ):
        shim.shared_bytes = on_chip
        made = mixed_with_classes(shim, values(shape, dtype), labels, 10, 0.1, pairing, in_place)
        assert_targets(shim, *made)
        taken.add(shim.shape.way)
        kernels = {way.SLICES: ["mix", "back"], way.NONE: ["target"]}
        assert shim.kernels() == kernels.get(shim.shape.way, ["mix"])
    others = {way.ROLL, way.TILE, way.SLICES} if n > 1 else {way.NONE}
    assert taken == {way.EACH, way.PAIRS, *others}


# ---- how much, and how many -----------------------------------------------------------------------------------------


def addresses(shape, dtype, in_place=True):
    """Contiguous images at addresses that nothing is at, for what only computes."""

    def at(address):
        strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
        return SimpleNamespace(data_ptr=lambda: address, stride=lambda: strides, shape=shape, dtype=dtype)

    return at(1 << 20), at(1 << (20 if in_place else 40)), 2, False


BATCHES = (
    *itertools.product((1, 2, 3, 7, 8, 32, 128, 256, 512, 1000, 4096), ((3, 32, 32), (3, 224, 224))),
    (64, (3, 384, 384)),
    (512, (1, 28, 28)),
    (60_000, (1, 28, 28)),
    (2**31 - 1, (1, 1, 1)),
    (2**20, (3, 64, 64)),
    (64, (3, 8192, 8192)),
    (3, (3, 2**16, 2**16)),
    (2, (1, 1, 2**40)),
)


def shape_of(shim, images, pairing, families, multiprocessors, on_chip):
    shim.multiprocessors, shim.shared_bytes = multiprocessors, on_chip
    return shim.shape_of(images, pairing, families)


@pytest.mark.parametrize("on_chip", [SHARED, 163 * 1024, 227 * 1024, 2048])
@pytest.mark.parametrize("multiprocessors", [1, 20, H200, 1000])
@pytest.mark.parametrize("pairing", Pairing, ids=lambda pairing: pairing.name.lower())
def test_shapes_cover_the_batch(shim, pairing, multiprocessors, on_chip):
    """Within the memory that there is, and what a thread can have, whatever the size."""
    way = shim.module.Way
    both = Families.BOXES, Families.CUTS
    for (n, shape), dtype, in_place, families in itertools.product(BATCHES, DTYPES, (True, False), both):
        elements, size = math.prod(shape), dtype.itemsize
        images = addresses((n, *shape), dtype, in_place)
        if elements * size // min(16, shape[-1] * size) > 2**31 - 1:
            with pytest.raises(ValueError, match=r"more than 2\^31 (vectors|elements)"):
                shape_of(shim, images, pairing, families, multiprocessors, on_chip)
            continue
        chosen = shape_of(shim, images, pairing, families, multiprocessors, on_chip)
        vector = chosen.width * size
        assert chosen.columns * chosen.width == elements
        assert vector == 16 or chosen.width in (1, 4 // size)
        if chosen.way in (way.EACH, way.SLICES):
            assert 2 <= chosen.log_column <= 8  # of the 256 threads of a block
        if in_place and n == 1:
            assert chosen.way == way.NONE
        elif pairing == Pairing.FLIP:
            assert chosen.way == way.PAIRS
        elif not in_place:
            assert chosen.way == way.EACH
        elif chosen.way == way.ROLL:
            assert pairing == Pairing.ROLL
            assert 1 << chosen.log_column <= ROLL_THREADS
        elif chosen.way == way.TILE:
            assert chosen.shared_bytes == n * vector << chosen.log_column
            assert chosen.shared_bytes <= on_chip
            assert n <= TILE_SAMPLES * (TILE_THREADS >> chosen.log_column)
            assert 1 << chosen.log_column <= TILE_THREADS
        else:
            assert chosen.way == way.SLICES
            assert 1 <= chosen.slice <= chosen.columns
            assert chosen.slice * n * vector <= SLICE_BYTES or chosen.slice == 1
            # The narrowest column of every sample does not fit, or not every thread could have its samples.
            least = max(1, COLUMN_BYTES // vector)
            assert n * least * vector > on_chip or n * least > TILE_SAMPLES * TILE_THREADS


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("pairing", Pairing, ids=lambda pairing: pairing.name.lower())
@pytest.mark.parametrize("shape", [(512, 3, 32, 32), (256, 3, 224, 224), (128, 3, 32, 32), (64, 3, 384, 384)], ids=str)
@pytest.mark.parametrize("families", [Families.BOXES, Families.CUTS], ids=["boxes", "cuts"])
def test_shapes_fill_the_chip(shim, families, shape, pairing, dtype):
    """A block on each multiprocessor of an H200 at least, where there are that many columns of 64 bytes."""
    n, way = shape[0], shim.module.Way
    for in_place in (True, False):
        chosen = shape_of(shim, addresses(shape, dtype, in_place), pairing, families, H200, 227 * 1024)
        if chosen.way in (way.ROLL, way.TILE):
            blocks = -(-chosen.columns >> chosen.log_column)
            assert blocks >= min(H200, chosen.columns * chosen.width * dtype.itemsize // 64)
            threads = ROLL_THREADS if chosen.way == way.ROLL else TILE_THREADS
            assert threads >> chosen.log_column <= n  # no thread is idle
        else:
            assert chosen.way == (way.PAIRS if pairing == Pairing.FLIP else way.EACH)


def test_batches_that_no_launch_can_address(shim):
    for pairing, in_place in itertools.product(Pairing, (True, False)):
        for shape, message in (
            ((2**31, 1, 1, 1), r"more than 2\^31 samples"),
            ((2, 1, 1, 2**31), r"a row of more than 2\^31 elements"),
            ((2, 2**31, 1, 3), r"a sample of more than 2\^31 vectors"),
        ):
            images = addresses(shape, torch.uint8, in_place)
            with pytest.raises(ValueError, match=message):
                shim.shape_of(images, pairing, Families.BOXES)
            shim.forget()
            plan = shim.plan({"partner": torch.zeros(1, dtype=torch.int64)}, pairing=pairing)
            with pytest.raises(ValueError, match=message):
                shim.module.apply(shim.memory, images, plan, False)
            assert shim.kernels() == []
    images = addresses((2**31 - 1, 2**31 - 1, 1, 1), torch.uint8, in_place=False)
    shim.forget()
    plan = shim.plan({"partner": torch.zeros(1, dtype=torch.int64)}, pairing=Pairing.ROLL)
    with pytest.raises(ValueError, match="more blocks than one launch can have"):
        shim.module.apply(shim.memory, images, plan, False)
    assert shim.kernels() == []


def far_apart(shape, strides, dtype):
    """A tensor in memory that is mostly not there."""
    elements = 1 + sum(stride * (n - 1) for n, stride in zip(shape, strides, strict=True))
    size = -(-elements * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    try:
        memory = mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        pytest.skip(f"{size >> 30} GiB of addresses are not to be had: {error}")
    return torch.frombuffer(memory, dtype=dtype, count=elements).as_strided(shape, strides)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=name_of)
@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
def test_elements_beyond_31_bits(shim, dtype, pairing):
    """Samples, channels and rows further apart than 2³¹ elements: some pages of memory in up to 40 GiB of addresses."""
    far = 2**31 + 16
    for strides in ((far, 32, 8, 1), (64, far, 8, 1), (far, 2**30, 8, 1), (16, 4096, far // 2, 1)):
        shape = (3, 2, 2, 8)
        x = far_apart(shape, strides, dtype)
        before = values(shape, dtype)
        x.copy_(before)
        masks = plan_for(METHODS["HMix-paper"], shape, 2, "sample", pairing)
        w = weights_of(shim, before, masks)
        for in_place in (False, True):
            shim.forget()
            out = x if in_place else torch.empty_like(before)
            # A row each: the shim's record of what lies between them would be larger than the memory here.
            for i, j, k in itertools.product(range(3), range(2), range(2)):
                shim.watch(f"x {i} {j} {k}", x[i, j, k], writable=in_place)
            if not in_place:
                shim.watch("out", out, initialised=False)
            shim.mix_into(out, x, *masks, fresh=False)
            assert_mixed(out.clone(), before, w, masks[0])


# ---- and whatever else ----------------------------------------------------------------------------------------------


def test_random_batches(shim):
    """Whatever shape_of chooses for sizes, types and chips drawn at random: every way."""
    random, taken = Random(0), set()
    for seed in range(120):
        shape = (random.randint(1, 40), random.randint(1, 6), random.randint(1, 12), random.randint(1, 40))
        name, (per, pairing) = random.choice(list(METHODS)), random.choice(DRAWS)
        dtype, layout = random.choice(DTYPES), random.choice(LAYOUTS)
        shim.multiprocessors, shim.shared_bytes = random.choice((1, 3, 8, H200)), random.choice((SHARED, 4096, 256))
        masks = plan_for(METHODS[name], shape, 2, per, pairing, seed=seed)
        before = values(shape, dtype, seed=seed)
        x, w = layout(before), weights_of(shim, before, masks)
        shim.mix_(x, *masks)
        taken.add(shim.shape.way)
        assert_mixed(x.clone(), before, w, masks[0])
        if layout is contiguous:
            assert_traffic(shim, x, w, masks)
    way = shim.module.Way
    assert taken >= {way.PAIRS, way.ROLL, way.TILE, way.SLICES}
