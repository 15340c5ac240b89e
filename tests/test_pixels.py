"""The per-pixel headers (csrc/include/fusedmix) that the CPU and the CUDA kernels share, against exact arithmetic.

Blends are asked of Python's fractions, uint8 of integers, conversions of torch, random numbers of the published vectors
and of fusedmix/philox.py.
"""

from __future__ import annotations

import itertools
import math
import random
import struct
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch

from fusedmix import philox
from test_philox import KNOWN_ANSWERS

shim_build = pytest.importorskip("shim_build")  # fcntl: not on Windows
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(shim_build.missing() is not None, reason=str(shim_build.missing())),
]

ONES = 0xFFFFFFFF


@pytest.fixture(scope="module")
def pixels():
    from shim_backend import Shim

    return Shim().module


class Format(NamedTuple):
    """A binary floating-point format of IEEE 754."""

    dtype: torch.dtype
    precision: int  # bits of the significand, the hidden one counted
    smallest: int  # exponent of the last bit of a subnormal number
    largest: Fraction  # finite number

    @property
    def bits(self):
        return self.dtype.itemsize * 8

    def round(self, x):
        """The nearest number to a fraction, ties to even, as a float64 that holds it."""
        if x == 0:
            return 0.0
        # The exponent of the last bit: so that the significand has `precision` bits.
        last = max(_exponent(abs(x)) - self.precision + 1, self.smallest)
        scaled = round(x / Fraction(2) ** last)  # Python's round takes ties to even
        rounded = scaled * Fraction(2) ** last
        if abs(rounded) > self.largest:
            return math.inf if x > 0 else -math.inf
        return math.ldexp(scaled, last)


def _exponent(x):
    """floor(log2(x)) of a positive fraction."""
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if Fraction(2) ** e <= x else e - 1


def format_of(dtype, precision, exponent_bits):
    bias = 2 ** (exponent_bits - 1) - 1
    smallest = 2 - bias - precision
    return Format(dtype, precision, smallest, (2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** bias)


HALF = format_of(torch.float16, 11, 5)
BFLOAT16 = format_of(torch.bfloat16, 8, 8)
FLOAT = format_of(torch.float32, 24, 8)
DOUBLE = format_of(torch.float64, 53, 11)
FORMATS = (HALF, BFLOAT16, FLOAT, DOUBLE)
each_format = pytest.mark.parametrize("form", FORMATS, ids=lambda form: str(form.dtype).removeprefix("torch."))
INTEGER = {16: torch.int16, 32: torch.int32, 64: torch.int64}


def name_of(form):
    return str(form.dtype).removeprefix("torch.")


def travelling(form, x):
    """As the module takes elements: 16-bit types by their bits."""
    return x.view(torch.int16).numpy().view(np.uint16) if form.bits == 16 else x.numpy()


def returned(form, x):
    return torch.from_numpy(x.view(np.int16)).view(form.dtype) if form.bits == 16 else torch.from_numpy(x)


def blend(pixels, form, w, a, b):
    function = getattr(pixels, f"blend_{name_of(form)}")
    return returned(form, function(w.numpy(), travelling(form, a), travelling(form, b)))


def bits_of(x):
    return x.view(INTEGER[x.element_size() * 8])


def alike(a, b):
    """Where two tensors have the same bits."""
    return bits_of(a) == bits_of(b)


def test_the_formats_themselves():
    for form in FORMATS:
        info = torch.finfo(form.dtype)
        assert form.largest == Fraction(info.max)
        assert Fraction(2) ** (form.smallest + form.precision - 1) == Fraction(info.tiny)
        assert form.round(Fraction(info.eps) / 2 + 1) == 1.0
        assert form.round(Fraction(info.eps) * 3 / 2 + 1) == 1.0 + 2 * info.eps
        assert form.round(Fraction(2) ** (form.smallest - 1)) == 0.0
        assert form.round(form.largest * 2) == math.inf
    assert FLOAT.round(Fraction(0.1)) == float(np.float32(0.1))


# ---- blends ---------------------------------------------------------------------------------------------------------


def numbers(form, n, seed):
    """Numbers of all magnitudes, of one, and some that are special."""
    generator = torch.Generator().manual_seed(seed)
    any_bits = torch.randint(-(2**63), 2**63 - 1, (n,), generator=generator).to(INTEGER[form.bits]).view(form.dtype)
    ordinary = (torch.randn(n, generator=generator, dtype=torch.float64) * 3).to(form.dtype)
    info = torch.finfo(form.dtype)
    special = [0.0, -0.0, 1.0, -1.0, info.eps, info.tiny, -info.tiny, info.smallest_normal / 2, info.max, -info.max]
    which = torch.randint(0, 8, (n,), generator=generator)
    chosen = torch.tensor(special, dtype=torch.float64).to(form.dtype)[torch.randint(0, 10, (n,), generator=generator)]
    x = torch.where(which < 3, any_bits, torch.where(which < 7, ordinary, chosen))
    return torch.where(x.isfinite(), x, 1.0)


def weights(n, seed):
    """Of [0, 1]: uniform, tiny, next to 1, with few bits."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(n, generator=generator)
    tiny = torch.pow(2.0, -150 * torch.rand(n, generator=generator))
    few = torch.randint(0, 257, (n,), generator=generator) / 256
    which = torch.randint(0, 5, (n,), generator=generator)
    return torch.where(which < 2, u, torch.where(which == 2, tiny, torch.where(which == 3, 1 - u * 2.0**-20, few)))


def exact_blend(form, w, a, b):
    """The difference rounded to the compute type, then w·difference + b rounded to it once, then to the format."""
    compute = DOUBLE if form is DOUBLE else FLOAT
    difference = compute.round(Fraction(a) - Fraction(b))
    if math.isinf(difference):
        return difference if w > 0 else b
    mixed = compute.round(Fraction(w) * Fraction(difference) + Fraction(b))
    return form.round(Fraction(mixed)) if math.isfinite(mixed) else mixed


@each_format
def test_blends(pixels, form):
    n = 6000
    w, a, b = weights(n, 1), numbers(form, n, 2), numbers(form, n, 3)
    close = torch.arange(n) % 3 == 0  # neighbours, whose difference has few bits
    a = torch.where(close, (b.double() * (1 + torch.finfo(form.dtype).eps * (torch.arange(n) % 7))).to(form.dtype), a)
    a = torch.where(a.isfinite(), a, 1.0)
    out = blend(pixels, form, w, a, b)
    assert out.dtype == form.dtype
    checked = 0
    for got, v, x, y in zip(out.tolist(), w.tolist(), a.tolist(), b.tolist(), strict=True):
        if v in (0.0, 1.0) or x == y:
            assert got == (y if v == 0 else x)
            continue
        assert got == exact_blend(form, v, x, y), (v, x, y)
        checked += 1
    assert checked > n / 2


@each_format
def test_sums_next_to_a_tie(pixels, form):
    """w·d + b that misses the middle of two neighbours by less than any wider format would see."""
    triples = []
    generator = random.Random(4)
    for _ in range(1500):
        b = 1.0 + generator.randrange(2**6) / 2**6
        half = float(torch.finfo(form.dtype).eps) / 2 * (2 if b >= 2 else 1)
        w = generator.choice([0.5, 0.75, 0.3, 2.0**-20, 1 - 2.0**-24])
        w = float(np.float32(w))
        d = float(torch.tensor(half / w, dtype=torch.float64).to(form.dtype))
        for step in (-1, 0, 1):
            near = float(torch.tensor(d, dtype=torch.float64).to(form.dtype)) * (1 + step * torch.finfo(form.dtype).eps)
            a = float(torch.tensor(b + near, dtype=torch.float64).to(form.dtype))
            triples.append((w, a, b))
    w, a, b = (torch.tensor(column, dtype=torch.float64) for column in zip(*triples, strict=True))
    out = blend(pixels, form, w.float(), a.to(form.dtype), b.to(form.dtype))
    for got, (v, x, y) in zip(out.tolist(), triples, strict=True):
        assert got == (exact_blend(form, v, x, y) if x != y else x)


@each_format
def test_what_a_weight_of_0_or_1_takes(pixels, form):
    """The bits of one sample, whatever the other is: NaN with their payload, infinities, -0."""
    info = torch.finfo(form.dtype)
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, info.max, math.inf, -math.inf, math.nan], dtype=form.dtype)
    payload = (bits_of(special[-1:]) | 5).view(form.dtype)
    values = torch.cat([special, payload])
    a, b = (t.flatten() for t in torch.meshgrid(values, values, indexing="ij"))
    assert alike(blend(pixels, form, torch.zeros(a.shape), a, b), b).all()
    assert alike(blend(pixels, form, torch.ones(a.shape), a, b), a).all()
    for w in (0.5, 2.0**-149, 1 - 2.0**-24):
        out = blend(pixels, form, torch.full(a.shape, w), a, b)
        equal = a == b  # 0 and -0 are equal: the sample's own
        assert alike(out[equal], a[equal]).all()
        reaches = ~a.isfinite() | ~b.isfinite()
        d = a.double() - b.double()
        expected = w * d + b.double()
        assert (out[reaches & ~equal].isnan() == expected[reaches & ~equal].isnan()).all()
        finite = reaches & ~equal & ~expected.isnan()
        assert torch.equal(out[finite].double(), expected[finite])


# ---- blends of uint8 ------------------------------------------------------------------------------------------------


def rounded_integers(w, a, b):
    """w·(a-b) + b to the nearest integer, ties to even, in [0, 255], for w of at least 2^-29: by 64-bit integers."""
    mantissa, exponent = np.frexp(w)
    m = (mantissa * 2**24).astype(np.int64)  # w = m·2^-k
    k = (24 - exponent).astype(np.int64)
    assert (k <= 53).all()
    total = m * (a.astype(np.int64) - b) + (b.astype(np.int64) << k)
    whole = total >> k
    rest = total - (whole << k)
    half = np.int64(1) << (k - 1)
    up = (rest > half) | ((rest == half) & (whole % 2 == 1))
    return np.clip(whole + up, 0, 255).astype(np.uint8)


def test_uint8_of_every_pair(pixels):
    """All 65536 pairs at λ that are simple, that are drawn, and next to 0, ½ and 1."""
    a, b = (x.ravel().astype(np.uint8) for x in np.meshgrid(np.arange(256), np.arange(256)))
    simple = [i / 16 for i in range(1, 16)] + [1 / 3, 2 / 3, 0.1, 0.9, 2.0**-29, 2.0**-20, 1 - 2.0**-24]
    around_half = [float(np.nextafter(np.float32(0.5), np.float32(side))) for side in (0, 1)]
    drawn = np.random.default_rng(0).random(40).tolist()
    for w in np.float32([*simple, *around_half, *drawn]):
        out = pixels.blend_uint8(np.full(a.shape, w), a, b)
        assert (out == np.where(a == b, a, rounded_integers(np.full(a.shape, w), a, b))).all(), w
    assert (pixels.blend_uint8(np.zeros(a.shape, np.float32), a, b) == b).all()
    assert (pixels.blend_uint8(np.ones(a.shape, np.float32), a, b) == a).all()


def test_uint8_next_to_ties(pixels):
    """For every difference and every tie the weights that come closest to it from both sides."""
    d = np.arange(-255, 256)
    d = d[d != 0]
    difference, half = (x.ravel() for x in np.meshgrid(d, np.arange(255) + 0.5))
    inside = half < np.abs(difference)
    difference, half = difference[inside], half[inside]
    middle = np.float32(half / np.abs(difference))
    checked = 0
    for steps in range(-3, 4):
        w = middle.copy()
        for _ in range(abs(steps)):
            w = np.nextafter(w, np.float32(math.copysign(2, steps)))
        keep = (w > 2.0**-29) & (w < 1)
        for place in (0.0, 0.37, 1.0):  # of b among the values it may have
            b = np.round(np.where(difference > 0, 0, -difference) + place * (255 - np.abs(difference))).astype(np.int64)
            a = b + difference
            out = pixels.blend_uint8(w[keep], a[keep].astype(np.uint8), b[keep].astype(np.uint8))
            assert (out == rounded_integers(w[keep], a[keep], b[keep])).all()
            checked += keep.sum()
    assert checked > 1_000_000


def test_uint8_of_tiny_weights(pixels):
    """Below what the integers above can hold nothing but b comes out."""
    a, b = (x.ravel().astype(np.uint8) for x in np.meshgrid(np.arange(256), np.arange(256)))
    for w in np.float32([2.0**-30, 2.0**-60, 2.0**-126, 2.0**-149]):
        assert (pixels.blend_uint8(np.full(a.shape, w), a, b) == b).all()


def test_fractions_agree_with_the_integers():
    for w, a, b in itertools.product((0.5, 0.3, 1 / 256, 0.999), (0, 1, 7, 128, 255), (0, 2, 254, 255)):
        w = float(np.float32(w))
        exact = round(Fraction(w) * (a - b) + b)
        assert rounded_integers(np.float32([w]), np.array([a]), np.array([b])) == [exact]


# ---- conversions ----------------------------------------------------------------------------------------------------

EVERY_16_BITS = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)


@pytest.mark.parametrize("form", [HALF, BFLOAT16], ids=["float16", "bfloat16"])
def test_from_16_bits(pixels, form):
    """All 65536 of them, NaN by being one."""
    x = EVERY_16_BITS.view(form.dtype)
    out = torch.from_numpy(getattr(pixels, f"to_compute_{name_of(form)}")(travelling(form, x)))
    expected = x.float()
    assert out.dtype == torch.float32
    assert (alike(out, expected) | (out.isnan() & expected.isnan())).all()
    assert (out.signbit() == expected.signbit()).all()


@pytest.mark.parametrize("form", [HALF, BFLOAT16], ids=["float16", "bfloat16"])
def test_to_16_bits_and_back(pixels, form):
    x = EVERY_16_BITS.view(form.dtype)
    x = x[~x.isnan()]
    assert alike(rounded(pixels, form, x.float()), x).all()


def rounded(pixels, form, x):
    return returned(form, getattr(pixels, f"round_{name_of(form)}")(x.numpy()))


@pytest.mark.parametrize("form", [HALF, BFLOAT16], ids=["float16", "bfloat16"])
def test_rounding_to_16_bits(pixels, form):
    """Around every number and every middle between two of them, as torch rounds."""
    x = EVERY_16_BITS.view(form.dtype)
    x = x[x.isfinite()].double().unique()
    middle = (x[1:] + x[:-1]) / 2
    past = x[-1] + (x[-1] - x[-2]) * torch.tensor([0.25, 0.5, 0.75, 1.0])  # from where on it is infinite
    points = torch.cat([x, middle, past, -past, torch.tensor([-0.0])]).float()
    for side in (-math.inf, math.inf):
        neighbours = points
        for _ in range(3):
            assert alike(rounded(pixels, form, neighbours), neighbours.to(form.dtype)).all()
            neighbours = torch.nextafter(neighbours, torch.tensor(side))


@pytest.mark.parametrize("form", [HALF, BFLOAT16], ids=["float16", "bfloat16"])
def test_rounding_of_any_bits(pixels, form):
    bits = torch.randint(-(2**31), 2**31, (1_000_000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    special = torch.tensor([math.inf, -math.inf, math.nan, torch.finfo(torch.float32).max, 2.0**-149, -(2.0**-149)])
    x = torch.cat([bits.view(torch.float32), special])
    out, expected = rounded(pixels, form, x), x.to(form.dtype)
    assert (alike(out, expected) | (out.isnan() & expected.isnan())).all()
    # A NaN with nothing in its upper bits must not become an infinity.
    nan = torch.tensor([0x7F800001, 0x7FFFFFFF, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    assert rounded(pixels, form, nan).isnan().all()
    assert rounded(pixels, form, -nan).isnan().all()


def test_exact_conversions(pixels):
    x = torch.randn(1000)
    assert alike(torch.from_numpy(pixels.to_compute_float32(x.numpy())), x).all()
    assert alike(torch.from_numpy(pixels.to_compute_float64(x.double().numpy())), x.double()).all()
    codes = np.arange(256).astype(np.uint8)
    assert (pixels.to_compute_uint8(codes) == codes.astype(np.float32)).all()


# ---- random numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", KNOWN_ANSWERS)
def test_published_vectors(pixels, vector):
    counter, key, result = KNOWN_ANSWERS[vector]
    assert tuple(pixels.philox(counter, *key)) == result


def test_words(pixels):
    generator = random.Random(1)
    edges = (0, 1, ONES, 2**31)
    for i in range(3000):
        counter = [generator.choice(edges) if i % 3 == 0 else generator.getrandbits(32) for _ in range(4)]
        key = [generator.choice(edges) if i % 5 == 0 else generator.getrandbits(32) for _ in range(2)]
        expected = philox.philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
        assert pixels.philox(counter, *key) == [int(word) for word in expected]


def test_uniform_and_below(pixels):
    generator = random.Random(2)
    pairs = [(0, 0), (ONES, ONES), (0, ONES), (ONES, 0), *((generator.getrandbits(32),) * 2 for _ in range(5))]
    pairs += [(generator.getrandbits(32), generator.getrandbits(32)) for _ in range(2000)]
    for high, low in pairs:
        assert pixels.uniform(high, low) == philox.uniform(torch.tensor(high), torch.tensor(low)).item()
        for n in (1, 2, 3, 224, 1000, 2**31 - 1):
            assert pixels.below(high, n) == philox.below(torch.tensor(high), n).item() == high * n >> 32
    assert pixels.uniform(0, 0) == 2.0**-53
    assert pixels.uniform(ONES, ONES) == 1 - 2.0**-53


@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.4, 1.0, 2.5, 8.0, 1000.0])
def test_beta(pixels, alpha):
    """To some units in the last place of float64, and so almost always the same λ as float32."""
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 12345]
    index = torch.cat([torch.arange(500), torch.tensor([2**31, 2**40, 2**63 - 1])])
    for seed in seeds:
        expected = philox.symmetric_beta(torch.tensor(seed), index, torch.tensor(alpha, dtype=torch.float64))
        drawn = [pixels.symmetric_beta(seed % 2**64, i, alpha) for i in index.tolist()]
        out = torch.tensor(drawn, dtype=torch.float64)
        # Logarithms that differ in their last bit are multiplied by 1/α.
        assert ((out - expected).abs() <= 2.0**-48 * (1 + 1 / alpha) * expected.clamp_min(2.0**-900)).all()
        assert (out.float() != expected.float()).sum() <= (2 if alpha < 0.1 else 0)


def test_bits_travel(pixels):
    """What the tests above rely on: float16 and bfloat16 go through as they are."""
    for form, code in ((HALF, "e"), (FLOAT, "f"), (DOUBLE, "d")):
        x = torch.tensor([1.5, -2.25], dtype=form.dtype)
        assert bytes(x.view(torch.uint8).tolist()) == struct.pack(f"2{code}", 1.5, -2.25)
        assert torch.equal(blend(pixels, form, torch.ones(2), x, x * 0), x)
