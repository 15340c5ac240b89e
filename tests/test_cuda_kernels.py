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
from fusedmix.backends import reference
from fusedmix.draws import Request, Source
from fusedmix.masks.family import kind as kind_of
from fusedmix.masks.family import packed
from fusedmix.masks.family import value as value_of
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
HEADS, GREY, ROWS_OF_A_SPEC = "the heads of a batch", "the grey images of FMix", "the rows of a spec"


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
    built.multiprocessors = 2
    built.module.seed(0)
    built.module.set_yield_probability(1 / 32)
    yield built
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


@pytest.mark.parametrize(("per", "pairing"), DRAWS)
@pytest.mark.parametrize("name", MASKS)
def test_every_dtype_and_layout(shim, name, per, pairing):
    """Out of place, in place and adjoint. Shapes, walks and how the plan travels alternate."""
    turn = itertools.count(DRAWS.index((per, pairing)) + 3 * list(MASKS).index(name))
    for dtype, layout in itertools.product(DTYPES, LAYOUTS):
        i = next(turn)
        shape, spatial = SHAPES[i % len(SHAPES)]
        shim.multiprocessors = (1, 2, H200)[i % 3]
        shim.module.seed(i)
        masks = plan_for(MASKS[name], shape, spatial, per, pairing, seed=i)
        x = layout(values(shape, dtype, seed=i))
        w = weights_of(shim, x, masks)
        how = {"on_host": i % 2 == 0 and shape[0] < 60}
        if i % 5 == 0:
            how |= {"span": 1 + i % (shape[0] + 2), "heads": i % 2 == 0}
        out = shim.mix(x, *masks, **how)
        assert out.stride() == torch.empty_like(x).stride()
        assert_mixed(out, x, w, masks[0])
        assert_near_reference(out, reference.mix(x, *masks), x, masks)
        if dtype in FLOATS:
            assert_adjoint(shim.mix_adjoint(x, *masks, **how), x, w, masks[0])
        shim.mix_(x, *masks, **how)
        assert alike(x, out)


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
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_copies_are_copies(shim, dtype, per):
    """Whatever the bits: where weights are 0 and 1 a NaN, infinity or -0 is copied, and reaches nobody else."""
    x = torch.randint(0, 256, (7, 3 * 6 * 16 * dtype.itemsize), dtype=torch.uint8).view(dtype).view(7, 3, 6, 16)
    masks = plan_for(METHODS["CutMix"], x.shape, 2, per, "random", seed=5)
    w = weights_of(shim, x, masks)
    out = shim.mix(x, *masks)
    assert alike(out, torch.where(w == 0, x[masks[0]], x))
    shim.mix_(x, *masks)
    assert alike(x, out)


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


def fmix_plan(size, n=3, seed=5, **options):
    """What `fourier` takes up to the seed, and the reference's pixels."""
    mix = fm.FMix(sampling="device", backend="reference", **{"per": "sample", **options})
    plan = mix.sample(n, size, seed=seed)
    return (mix._request(n, size, None, None)[0], plan.masks), plan


def assert_bits(out, plan):
    """As many ones as the plan says, all but .01 % of them where the reference has them; no bits beyond the pixels."""
    ones, expected = (fourier.unpack(pixels, plan.size).flatten(1) for pixels in (out, plan.pixels))
    assert torch.equal(ones.sum(1).long(), plan.geometry[: len(out), 0].long())
    assert (ones != expected).sum() <= 1e-4 * ones.numel()
    assert torch.equal(fourier.pack(ones.bool()), out)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("size", [*FMIX_SIZES, (224, 224)], ids=str)
def test_fourier(shim, size, variant):
    for decay, n in ((3.0, 3), (1.5, 1)) if size != (224, 224) else ((3.0, 1),):
        request, plan = fmix_plan(size, n, variant=variant, decay_power=decay)
        for seed in (5, torch.tensor(5), torch.tensor([5])):
            out = shim.fourier(*request, seed, size, Per.SAMPLE, Per.SAMPLE, False)
            assert_bits(out, plan)
        assert shim.kernels() == ["noise", *(["turn"] if len(size) == 3 else []), "synthesis", "select"]
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
        ones = fourier.unpack(out, size).flatten(1)
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
    assert shim.kernels() == ["soften" if soft else "select"]


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


def widths(shim, buffers=("x", "out", HEADS)):
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
            assert widths(shim) == {shim.walk.width * dtype.itemsize}
            assert_mixed(out, x, w, masks[0])
        shim.mix_(x, *masks)
        assert widths(shim) == {expected}
        assert alike(x, out)


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
        assert shim.walk.width == expected
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
        assert shim.walk.width == expected


# ---- one pass -------------------------------------------------------------------------------------------------------

KEEP, TAKE, SELECT, BLEND = range(4)


def reaches(w, kind, value, width, bits):
    """What the mask does to each vector of a contiguous sample: KEEP and TAKE are copies, SELECT is lane by lane.

    `bits`: whether stored masks are; levels are not looked at before they are used."""
    v = w.reshape(w.shape[0], -1, width)
    found = torch.full(v.shape[:2], BLEND)
    selects = (kind == Kind.BOX) & (value[:, 0] == 1) & (value[:, 1] == 0)
    stored = torch.isin(kind, FOURIERS)
    selects |= stored & bits
    found[((v == 0) | (v == 1)).all(2) & selects[:, None]] = SELECT
    exact = (~torch.isin(kind, CURVES) & (~stored | bits))[:, None]
    found[(v == 1).all(2) & exact] = KEEP
    found[(v == 0).all(2) & exact] = TAKE
    return found


def first_of_walks(partner, pairing, walk):
    """Where walks begin: at the heads, and at the smallest sample of each cycle without one."""
    n = partner.shape[0]
    begins = torch.zeros(n, dtype=torch.bool)
    if walk.heads:
        begins[:: walk.span] = True
    for start in range(n):
        cycle = [start]
        while (j := int(partner[cycle[-1]])) != start:
            cycle.append(j)
        if start == min(cycle) and not begins[cycle].any():
            begins[start] = True
    return begins


def expected_traffic(x, w, masks, walk, in_place):
    """How often `mix` reads each element of x, reads it staged and writes it: walk.h, in tensors."""
    partner, records, _, _, pairing, per, *pixels = masks
    kind, value = kind_of(records), value_of(records)
    n, width = x.shape[0], walk.width
    if per == Per.BATCH:
        kind, value = kind[:1].expand(n), value[:1].expand(n, 2)
    bits = any(p is not None and p.dtype == torch.int32 for p in pixels)
    reach = reaches(w, kind, value, width, bits)
    begins = first_of_walks(partner, pairing, walk)[:, None]
    head = torch.zeros_like(begins)
    if walk.heads:
        head[:: walk.span] = True
    fixed = (partner == torch.arange(n))[:, None]
    lent = (reach != KEEP)[partner.argsort()]  # the one before needs it as its partner
    itself = (reach == BLEND) if in_place else (reach != TAKE)
    first = (itself | (reach != KEEP)) if in_place else itself  # kept for the last of the cycle, which may need it
    reads = torch.where(begins, first, itself).long()
    reads = torch.where(head, reads + lent, (reads + lent).clamp_max(1))  # what a walk finds at a head it loads anew
    lanes = (w.reshape(n, -1, width) == 0) if in_place else torch.ones(n, reach.shape[1], width, dtype=torch.bool)
    writes = torch.where((reach == SELECT)[..., None], lanes, True)
    staged = torch.where(head, lent, False)
    if in_place:
        moves = ~fixed
        reads = torch.where(head, first, reads) * moves
        staged = staged & moves
        writes = writes & (reach != KEEP)[..., None] & moves[..., None]
    each = [t[..., None].expand(n, -1, width) for t in (reads, staged)]
    return tuple(t.reshape(x.shape).long() for t in (*each, writes))


def assert_traffic(shim, x, w, masks, adjoint=False):
    """What was counted in the last call is what was expected: x in place, or from x to a buffer `out` like it."""
    in_place = "out" not in shim.launches()[-1][1]["buffers"]
    heads = shim.walk.heads
    expected = expected_traffic(x, w, masks, shim.walk, in_place)
    if adjoint:
        reads = torch.ones_like(expected[0])
        reads[:: shim.walk.span] += heads
        expected = reads, torch.zeros_like(reads), torch.ones_like(reads)
    reads, staged_reads, writes = expected
    if in_place and heads:
        staging = torch.zeros_like(reads)
        staging[:: shim.walk.span] = 1
        reads = reads + staging
        counted = shim.counts(HEADS, torch.empty(shim.walk.units, x[0].numel(), dtype=x.dtype))
        assert torch.equal(counted[0].flatten(), staged_reads[:: shim.walk.span].flatten())
        assert (counted[1] == 1).all()
        assert shim.kernels() == ["stage", "mix"]
    else:
        assert shim.kernels() == ["mix"]
    counted_reads, counted_writes = shim.counts("x", x)
    assert torch.equal(counted_reads, reads)
    assert torch.equal(counted_writes if in_place else shim.counts("out", x)[1], writes)
    if not in_place:
        assert not counted_writes.any()
        assert not shim.counts("out", x)[0].any()
    return reads, writes


TRAFFIC = ("MixUp", "CutMix", "HMix-paper", "GMix-released", *STORED)


@pytest.mark.parametrize("heads", [True, False], ids=["heads", "whole cycles"])
@pytest.mark.parametrize(("per", "pairing"), DRAWS)
@pytest.mark.parametrize("name", TRAFFIC)
def test_one_pass(shim, name, per, pairing, heads):
    """In place every element is read once and written once, but for the heads, which are staged besides; out of place
    a head is read twice. Where no mask reaches, nothing is touched."""
    for i, (shape, dtype) in enumerate(itertools.product(((11, 3, 8, 16), (6, 2, 7, 5), (2, 3, 4, 16)), DTYPES)):
        masks = plan_for(MASKS[name], shape, 2, per, pairing, seed=i)
        x = values(shape, dtype, seed=i)
        w = weights_of(shim, x, masks)
        how = {} if heads else {"span": shape[0], "heads": False}
        shim.mix(x, *masks, **how)
        assert_traffic(shim, x, w, masks)
        if dtype in FLOATS:
            shim.mix_adjoint(x, *masks, **how)
            assert_traffic(shim, x, w, masks, adjoint=True)
        shim.mix_(x, *masks, **how)
        reads, writes = assert_traffic(shim, x, w, masks)
        assert shim.walk.heads == (heads and pairing != "flip" and shape[0] > 3)
        # What expected_traffic says of the two cases that need no arithmetic.
        mixed = (masks[0] != torch.arange(shape[0])).view(-1, 1, 1, 1).expand(shape)
        if name not in ("CutMix", *STORED):
            staging = torch.zeros_like(reads)
            if shim.walk.staged_bytes:
                staging[:: shim.walk.span] = 1
            assert torch.equal(reads - staging, mixed.long())
            assert torch.equal(writes, mixed.long())
        elif name in ("CutMix", "FMix", "FMix-released"):
            assert torch.equal(writes, (mixed & (w == 0)).long())


@each_dtype
@pytest.mark.parametrize("layout", [contiguous, channels_last, transposed])
def test_stored_masks_are_read_word_by_word(shim, dtype, layout):
    """One load of a word for every vector of every sample, where its elements are pixels in a row; of channels that lie
    together at most one more. Images still move 16 bytes at a time."""
    masks = plan_for(fm.FMix, (6, 3, 32, 48), 2, "sample", "flip", seed=2)
    x = layout(values((6, 3, 32, 48), dtype))
    out = shim.mix(x, *masks)
    ((_, launch),) = shim.launches()
    assert widths(shim) == {16}
    use = launch["buffers"]["pixels"]
    assert use["read_widths"].keys() == {4}
    vectors = x.numel() * dtype.itemsize // 16
    assert alike(out, torch.where(weights_of(shim, x, masks) == 0, x[masks[0]], x))
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
    """In place, 2(1-w) of the batch, in whole vectors where it is read, and once more in the first sample of a walk."""
    for seed in range(6):
        masks = plan_for(METHODS["CutMix"], (12, 3, 24, 32), 2, per, pairing, seed=seed)
        x = values((12, 3, 24, 32), dtype)
        w = weights_of(shim, x, masks)
        shim.mix_(x, *masks, span=12, heads=False)
        width = shim.walk.width
        box = (w == 0) & (masks[0] != torch.arange(12)).view(-1, 1, 1, 1)
        vectors = box.reshape(12, -1, width).any(2)
        firsts = first_of_walks(masks[0], Pairing[pairing.upper()], shim.walk)
        ((_, launch),) = shim.launches()
        use, size = launch["buffers"]["x"], x.element_size()
        assert use["written_bytes"] == use["distinct_written_bytes"] == int(box.sum()) * size
        assert use["read_bytes"] == use["distinct_read_bytes"]
        assert use["read_bytes"] <= int(vectors.sum() + vectors[firsts].sum()) * width * size
        assert use["max_reads"] <= 1


def test_what_moves_nothing(shim):
    """λ = 1, and samples that are their own partners: nothing is read or written in place."""
    x = values((8, 3, 4, 4), torch.float32)
    masks = plan_for(lambda **kw: fm.MixUp(p=0.0, **kw), x.shape, 2, "sample", "random")
    shim.mix_(x, *masks, span=8, heads=False)
    assert not any(counts.any() for counts in shim.counts("x", x))
    partner = torch.arange(8)
    masks = plan_for(METHODS["MixUp"], x.shape, 2, "sample", "random")
    shim.mix_(x, partner, *masks[1:], span=8, heads=False)
    assert not any(counts.any() for counts in shim.counts("x", x))


def test_counts_can_be_wrong(shim):
    """A second launch is seen, as is a different mask: the tests above can fail."""
    x = values((6, 3, 4, 4), torch.float32)
    masks = plan_for(METHODS["CutMix"], x.shape, 2, "sample", "random", seed=1)
    w = weights_of(shim, x, masks)
    shim.mix_(x, *masks, span=6, heads=False)
    assert_traffic(shim, x, w, masks)
    with pytest.raises(AssertionError):
        assert_traffic(shim, x, 1 - w, masks)
    shim.mix_(x, *masks, span=6, heads=False, fresh=False, on_host=True)
    counted = shim.counts("x", x)[1]
    assert torch.equal(counted, 2 * expected_traffic(x, w, masks, shim.walk, True)[2])


# ---- walks ----------------------------------------------------------------------------------------------------------


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
    "no heads at spans of 3": from_cycles([1, 2, 4, 5], [7, 8], [10], [11, 0, 3], [6, 9]),
    "no heads at spans of 4": from_cycles([11, 1, 10, 2, 9, 3], [7, 5, 6], [8, 0], [4]),
    "only heads at spans of 3": from_cycles([0, 3, 6, 9], [1, 2], [4, 5], [7, 8], [10, 11]),
    "heads side by side": from_cycles([0, 4, 8, 1, 2, 3], [5, 6, 7, 9, 10, 11]),
    "headless across units": from_cycles([1, 5, 9], [2, 10], [3, 7, 11, 6], [0], [4], [8]),
}
ONE_MASK = torch.tensor([0.25]), torch.tensor([[0.0, 0.0]])


def masks_by_hand(partner, per="sample", pairing="random"):
    """Boxes, constants and Gaussians by turns, in images of 3 × 8."""
    n = partner.shape[0]
    index = torch.arange(n)
    kind = (index % 4).int()
    box = torch.stack([index * 0, index % 2, index % 5, index * 0 + 1, index * 0 + 3, index % 5 + 3], 1)
    value = torch.stack([torch.where(kind == Kind.BOX, 1.0, 0.01 * (1 + index % 90)), index * 0.0], 1).float()
    return partner, packed(kind, box, value), FORMULAS, 2, Pairing[pairing.upper()], Per[per.upper()]


@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_cycles(shim, permutation):
    """Every span, dividing the batch or not, in and out of place: each element is touched as walk.h says."""
    partner = PERMUTATIONS[permutation]
    masks = masks_by_hand(partner)
    before = values((12, 2, 3, 8), torch.float32)
    w = weights_of(shim, before, masks)
    for span, heads, on_host in itertools.product(range(1, 14), (True, False), (True, False)):
        how = {"span": span, "heads": heads, "on_host": on_host}
        out = shim.mix(before, *masks, **how)
        assert_traffic(shim, before, w, masks)
        assert_mixed(out, before, w, partner)
        assert_adjoint(shim.mix_adjoint(before, *masks, **how), before, w, partner)
        x = before.clone()
        shim.mix_(x, *masks, **how)
        assert_traffic(shim, x, w, masks)
        assert alike(x, out)


@pytest.mark.parametrize("pairing", ["roll", "flip"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 13, 127, 128, 129, 257])
def test_formula_pairings(shim, pairing, n):
    """Spans around the 128 samples that a block looks at together."""
    partner = partners.formula(Pairing[pairing.upper()], n, CPU)
    masks = masks_by_hand(partner, pairing=pairing)
    before = values((n, 1, 3, 8), torch.uint8)
    w = weights_of(shim, before, masks)
    for span, heads in itertools.product({1, 7, 128, 129, n - 1, n} - {0}, (True, False)):
        x = before.clone()
        shim.mix_(x, *masks, span=span, heads=heads)
        assert_traffic(shim, x, w, masks)
        assert_mixed(x, before, w, partner)


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
    span=st.integers(1, 300),
    heads=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    per=st.sampled_from(["batch", "sample"]),
    order=st.tuples(st.integers(0, 2**63), st.sampled_from([0.0, 0.01, 0.3])),
)
def test_any_permutation(built, random, n, cycles, span, heads, layout, dtype, per, order):
    """Whatever the permutation, the spans, the layout and the order in which threads run."""
    built.module.seed(order[0])
    built.module.set_yield_probability(order[1])
    masks = masks_by_hand(random_permutation(random, n, cycles), per)
    before = values((n, 2, 3, 8), dtype, seed=n)
    w = weights_of(built, before, masks)
    how = {"span": min(span, n + 1), "heads": heads}
    out = built.mix(layout(before), *masks, **how)
    assert_mixed(out, before, w, masks[0])
    x = layout(before)
    built.mix_(x, *masks, **how)
    assert alike(x, out)
    if layout is contiguous:
        assert_traffic(built, x, w, masks)
    built.module.set_yield_probability(1 / 32)


@pytest.mark.parametrize("pairing", ["roll", "flip", "random", "cross_class"])
def test_any_order_of_threads(shim, pairing):
    """Results do not depend on it, and no order shows a race: sampling, staging, images and targets."""
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


# ---- the tests can fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairing", ["roll", "random"])
def test_heads_must_be_staged(shim, pairing):
    """What staging is for: without it one block reads what another one may have overwritten, and the shim says so."""
    masks = masks_by_hand(from_cycles(range(11, -1, -1)), pairing=pairing)
    x = values((12, 2, 3, 8), torch.float32)
    for seed, p in itertools.product(range(8), (0.0, 1 / 32, 1.0)):
        shim.module.seed(seed)
        shim.module.set_yield_probability(p)
        walk = shim.plan_walk((x, x, 2, False), masks[4], span=4)
        walk.staged_bytes = 0
        with pytest.raises(shim.module.ShimError, match=f"^{RACE}"):
            shim.mix_(x, *masks, walk=walk)
        shim.mix_(x, *masks, span=4)
        shim.mix(x, *masks, walk=walk)  # out of place nobody overwrites what is read


def test_partners_must_be_a_permutation(shim):
    """Two walks into the same sample: a race."""
    masks = masks_by_hand(torch.tensor([1, 2, 3, 1]))
    x = values((4, 2, 3, 8), torch.float32)
    with pytest.raises(shim.module.ShimError, match=f"^{RACE}"):
        shim.mix_(x, *masks, span=2)


def test_heads_must_be_staged_before(shim):
    masks = masks_by_hand(from_cycles(range(12)))
    x = values((12, 2, 3, 8), torch.float32)
    with pytest.raises(shim.module.ShimError, match=rf"^uninitialised: .* of '{HEADS}', which nothing has written"):
        shim.mix_(x, *masks, span=4, stage=False)


def test_memory_of_others(shim):
    """One byte less is watched than the images have."""
    masks = masks_by_hand(from_cycles(range(12)), per="batch", pairing="roll")
    x = values((12, 2, 3, 8), torch.uint8)
    shim.forget()
    shim.module.watch(x.data_ptr(), x.numel() - 1, "x")
    with pytest.raises(shim.module.ShimError, match=r"^out of bounds: .* of 'x', which has 575"):
        shim.mix_(x, *masks, span=12, heads=False, fresh=False)


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
    for i, (n, size) in enumerate([(1, (4, 4)), (2, (31,)), (17, (7, 20)), (130, (3, 6, 5))]):
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


@pytest.mark.parametrize(("per", "pairing"), DRAWS)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_two_launches(shim, name, per, pairing):
    """In place the heads are staged by the launch that samples, before partners are known. Then images and targets."""
    shape, dtype = (14, 3, 6, 16), DTYPES[list(METHODS).index(name) % 5]
    for lam in (None, torch.linspace(0, 1, 14)):
        request, labels, classes = step_for(name, 14, shape, per, pairing, lam)
        before = values(shape, dtype)
        out, *others = shim.mix_batch(before, labels, request, torch.tensor(3), classes, 0.1)
        assert shim.kernels() == ["sample", "mix"]
        x = before.clone()
        targets, *made = shim.mix_batch_(x, labels, request, torch.tensor(3), classes, 0.1)
        (first, sampled), (second, mixed) = shim.launches()
        assert (first, second) == ("sample", "mix")
        assert shim.walk.heads == (pairing != "flip")
        if shim.walk.heads:
            assert sampled["buffers"][HEADS]["written_bytes"] == shim.walk.staged_bytes
            assert mixed["buffers"][HEADS]["written_bytes"] == 0
        assert sampled["buffers"]["x"]["written_bytes"] == 0
        assert mixed["buffers"]["x"]["max_reads"] <= 1
        assert_targets(shim, targets, dense(labels, made[0], made[2], classes, 0.1))
        for a, b in zip((x, targets, *made), (out, *others), strict=True):
            assert alike(a, b)
        masks = masks_of(request, made)
        assert_mixed(x, before, weights_of(shim, before, masks), made[0])


@pytest.mark.parametrize("on_host", [True, False], ids=["on the host", "on the device"])
@pytest.mark.parametrize(("per", "pairing"), DRAWS)
def test_a_step_drawn_on_the_host_is_one_launch(shim, per, pairing, on_host):
    """In place the heads must be staged before it, where there are any."""
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
        assert shim.kernels() == ["mix"]
        assert_targets(shim, targets, expected)
        targets, *_ = shim.step(x, x, labels, request, classes, 0.0, made=made, on_host=on_host)
        assert shim.kernels() == (["stage", "mix"] if shim.walk.heads else ["mix"])
        assert shim.walk.heads == (pairing != "flip" and n > 3)
        assert_targets(shim, targets, expected)
        assert alike(x, out)
        assert_mixed(x, before, w, made[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32], ids=name_of)
def test_targets_in_the_launch_of_the_images(shim, dtype):
    """Of every type, whatever the images are; more blocks of the one than of the other."""
    for (n, classes), images in itertools.product(((5, 3), (6, 900)), DTYPES):
        request, _, _ = step_for("CutMix", n, (n, 3, 8, 8), "sample", "random")
        labels, x = soft(dtype, n, classes), values((n, 3, 8, 8), images)
        targets, *made = shim.mix_batch_(x, labels, request, torch.tensor(1), classes, 0.0)
        assert_targets(shim, targets, dense(labels, made[0], made[2], classes, 0.0))


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


@pytest.mark.parametrize("multiprocessors", [1, 20, H200, 1000])
@pytest.mark.parametrize("pairing", Pairing, ids=lambda pairing: pairing.name.lower())
def test_walks_cover_the_batch(shim, pairing, multiprocessors):
    """Within the scratch that may be used, in blocks that a launch can have, whatever the size."""
    for (n, shape), dtype, in_place in itertools.product(BATCHES, DTYPES, (True, False)):
        images = addresses((n, *shape), dtype, in_place)
        walk = shim.module.plan_walk(images, int(pairing), multiprocessors)
        elements, size = math.prod(shape), dtype.itemsize
        assert walk.columns * walk.width == elements
        assert 0 <= walk.tiles * shim.module.THREADS - walk.columns < shim.module.THREADS
        items = (n + 1) // 2 if pairing == Pairing.FLIP else n
        assert 0 <= walk.units * walk.span - items < walk.span <= items
        assert walk.heads == (walk.units > 1 and pairing != Pairing.FLIP)
        assert walk.staged_bytes == (walk.units * elements * size if walk.heads and in_place else 0)
        assert walk.staged_bytes <= max(MIB, n * elements * size // 16)
        if pairing == Pairing.FLIP:
            assert walk.span <= shim.module.THREADS


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("pairing", Pairing, ids=lambda pairing: pairing.name.lower())
@pytest.mark.parametrize("shape", [(512, 3, 32, 32), (256, 3, 224, 224), (128, 3, 32, 32), (64, 3, 384, 384)], ids=str)
def test_walks_fill_the_chip(shim, shape, pairing, dtype):
    """Two blocks on each multiprocessor of an H200 at least, where there are that many vectors."""
    for in_place in (True, False):
        walk = shim.module.plan_walk(addresses(shape, dtype, in_place), int(pairing), H200)
        vectors = walk.columns * (shape[0] if pairing != Pairing.FLIP else shape[0] // 2)
        assert walk.tiles * walk.units >= min(2 * H200, vectors // shim.module.THREADS // 2)
        if shape[0] >= 256:
            assert walk.tiles * walk.units >= 2 * H200


def test_batches_that_no_launch_can_address(shim):
    with pytest.raises(ValueError, match=r"more than 2\^31 samples"):
        shim.module.plan_walk(addresses((2**31, 1, 1, 1), torch.float32), int(Pairing.ROLL), H200)
    images = addresses((1, 1, 1, 2**43), torch.uint8, in_place=False)
    plan = shim.plan({"partner": torch.zeros(1, dtype=torch.int64)})
    with pytest.raises(ValueError, match="more blocks than one launch can have"):
        shim.module.apply(shim.memory, images, plan, False)
    assert shim.kernels() == []


def test_more_columns_than_32_bits(shim):
    """Where a sample has 2³¹ vectors, their numbers are divided in 64 bits: here so of a sample that has a few."""
    for layout, name in itertools.product((contiguous, channels_last, stepped), ("GMix-released", "CutMix")):
        masks = plan_for(METHODS[name], (4, 2, 8, 8), 2, "sample", "roll")
        before = values((4, 2, 8, 8), torch.float32)
        x, w = layout(before), weights_of(shim, before, masks)
        walk = shim.plan_walk((x, x, 2, False), masks[4], span=4, heads=False)
        assert walk.tiles == 1
        if walk.width == 1:  # as many as a block has threads
            walk.columns = 2**31
        shim.mix_(x, *masks, walk=walk)
        assert_mixed(x, before, w, masks[0])


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
            shim.mix_into(out, x, *masks, span=2, fresh=False)
            assert_mixed(out.clone(), before, w, masks[0])


# ---- and whatever else ----------------------------------------------------------------------------------------------


def test_random_batches(shim):
    """Whatever plan_walk chooses for sizes, types and chips drawn at random."""
    random = Random(0)
    for seed in range(120):
        shape = (random.randint(1, 40), random.randint(1, 6), random.randint(1, 12), random.randint(1, 40))
        name, (per, pairing) = random.choice(list(METHODS)), random.choice(DRAWS)
        dtype, layout = random.choice(DTYPES), random.choice(LAYOUTS)
        shim.multiprocessors = random.choice((1, 3, 8, H200))
        masks = plan_for(METHODS[name], shape, 2, per, pairing, seed=seed)
        before = values(shape, dtype, seed=seed)
        x, w = layout(before), weights_of(shim, before, masks)
        shim.mix_(x, *masks)
        assert_mixed(x.clone(), before, w, masks[0])
        if layout is contiguous:
            assert_traffic(shim, x, w, masks)
