"""What the Triton kernels share: arithmetic that rounds once, Philox, numbers that travel as bits, and partners.

No kernel relies on the compiler contracting a product and a sum into one operation, or on its not doing so: what is to
be rounded once is a tl.fma, and everything is launched with enable_fp_fusion=False.

No loop hands a value that it carries on to one that began as the same value (a, b = x, x and, in the loop, a = b). Of
such a loop Triton (3.6 and 3.8) makes one that is wrong on a GPU and right in the interpreter: it goes through the body
once, takes for carried what differs then from what it was before, and so leaves out a, which is x in every turn. Hence
all that a loop carries has starts of its own, such as zeros; and the line of every loop says how many values it carries
when compiled, in terms of the kernel's constants, and which (tests/triton_loops.py counts them).
"""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from triton import knobs

from fusedmix.backends.triton.enums import Pairings, Pers, Streams

# Kernels run in Triton's interpreter, in NumPy on the CPU, if TRITON_INTERPRET is 1 when this module is imported.
INTERPRETED = bool(knobs.runtime.interpret)
_INTERPRETED = tl.constexpr(INTERPRETED)


def jit_kernel(*aligned: str) -> Callable[[Any], Any]:
    """Triton's jit for kernels. What one is compiled for is its constants, the types of the other parameters, and which
    of those `aligned` are multiples of 16: numbers that are drawn at every step, and where a plan lies, are not."""

    def jit(function: Any) -> Any:
        others = [name for name in inspect.signature(function).parameters if name.islower() and name not in aligned]
        return triton.jit(function, do_not_specialize=others)

    return jit


def bits(x: float) -> int:
    """A float64 as an argument: Triton passes Python floats as float32."""
    return struct.unpack("<q", struct.pack("<d", x))[0]


@triton.jit
def from_bits(x):
    """The float64 of `bits`."""
    return x.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def as_float(word):
    """The float32 that an int32 is the bits of."""
    return word.to(tl.float32, bitcast=True)


@triton.jit
def as_word(x):
    """The bits of a float32 as int32."""
    return x.to(tl.int32, bitcast=True)


@triton.jit
def fma(x, y, z):
    """x·y + z, rounded once."""
    if _INTERPRETED and x.dtype == tl.float32:
        # The interpreter's fma rounds twice. In float64 the product is exact, and the sum is rounded to odd here, which
        # another rounding takes for exact.
        product, other = x.to(tl.float64) * y.to(tl.float64), z.to(tl.float64)
        total = product + other
        back = total - product
        lost = (product - (total - back)) + (other - back)
        whole = total.to(tl.int64, bitcast=True)
        toward = tl.where((lost > 0.0) == (total > 0.0), 1, -1)
        inexact = (lost != 0.0) & (lost == lost) & ((whole & 1) == 0)
        exact = tl.where(inexact, whole + toward, whole).to(tl.float64, bitcast=True)
        rounded = exact.to(tl.float32)
    else:
        rounded = tl.fma(x, y, z)
    return rounded


@triton.jit
def by_vector(pointer, offset, V: tl.constexpr):
    """pointer + offset [R, N, V]: where vectors of V elements are. Neighbouring threads have neighbouring ones.

    Triton 3.6 gives neighbouring threads different rows, unless it takes the vectors of a row to be side by side, which
    they need not be. So it is told that they are, and that no more than a vector may be accessed at a time. (It hears
    that of sums alone, not of what a function is given.)"""
    pointers = pointer + offset
    size: tl.constexpr = pointer.dtype.element_ty.primitive_bitwidth // 8
    return tl.multiple_of(tl.max_contiguous(pointers, [1, 2, 2 * V]), [1, 1, V * size])


@triton.jit
def one_of(numbers, which, COUNT: tl.constexpr):
    """numbers[which] of the first COUNT of a tuple."""
    found = numbers[0]
    for k in tl.static_range(1, COUNT):
        found = tl.where(which == k, numbers[k], found)
    return found


@triton.jit
def spread(condition, like):
    """A scalar condition as a block of the shape of `like`. (Left to itself the interpreter spreads the numbers that
    were compared, not the truth.)"""
    return tl.where(condition, tl.full(like.shape, 1, tl.int32), tl.full(like.shape, 0, tl.int32)) != 0


@triton.jit
def to_compute(x):
    """In the type that blends are computed in: float64 for float64, else float32."""
    if x.dtype == tl.float64:
        wide = x
    elif _INTERPRETED and x.dtype == tl.bfloat16:
        # The interpreter knows no subnormal bfloat16.
        wide = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = x.to(tl.float32)
    return wide


@triton.jit
def from_compute(x, dtype: tl.constexpr):
    """Rounded to an element type, to nearest even."""
    if _INTERPRETED and dtype == tl.bfloat16:
        # The interpreter would cut the lower bits off.
        whole = x.to(tl.uint32, bitcast=True)
        rounded = tl.where(x == x, (whole + 0x7FFF + ((whole >> 16) & 1)) >> 16, (whole >> 16) | 0x40)
        narrow = rounded.to(tl.uint16).to(dtype, bitcast=True)
    else:
        narrow = x.to(dtype)
    return narrow


@triton.jit
def is_integer(dtype: tl.constexpr):
    """Whether images of that dtype hold integers."""
    return dtype == tl.uint8 or dtype == tl.int16 or dtype == tl.uint16


@triton.jit
def least_of(dtype: tl.constexpr):
    """The least of the integers of a dtype."""
    return -32768.0 if dtype == tl.int16 else 0.0


@triton.jit
def most_of(dtype: tl.constexpr):
    """The greatest of them."""
    return 255.0 if dtype == tl.uint8 else 65535.0 + least_of(dtype)


@triton.jit
def from_raised(near, dtype: tl.constexpr):
    """An integer type's number n of n + 1.5·2^23. There the numbers of float32 are the integers, so that a sum has been
    rounded to the nearest of them, ties to even; its last bits are n's."""
    return near.to(tl.int32, bitcast=True).to(dtype)


# ---- Random numbers: the mirror of fusedmix/philox.py, which has the sources -----------------------------------------


@triton.jit
def words(seed, index, STREAM: tl.constexpr, call):
    """The four words at a logical index (int64), as uint32. `call`: a number, or uint32 that broadcast against it."""
    low = (index & 0xFFFFFFFF).to(tl.uint32)
    high = ((index >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = low * 0 + call * 0
    return tl.philox(seed, low + zero, high + zero, zero + STREAM, zero + call)


@triton.jit
def uniform(high, low):
    """float64 in (0, 1), never 0 or 1 and symmetric about ½, from 52 bits of two words."""
    whole = (high.to(tl.int64) << 20) | (low >> 12).to(tl.int64)
    return (2 * whole + 1).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def uniform_of(drawn, K: tl.constexpr):
    """The same from four words: from the first two of them (K 0), or from the others (K 1)."""
    return uniform(drawn[2 * K], drawn[2 * K + 1])


@triton.jit
def own_uniform(noise, K: tl.constexpr):
    """float64 in (0, 1): number K of those that a family draws for itself, from what it draws them by."""
    return uniform_of(words(noise[0], noise[1], Streams.OWN, K // 2), K % 2)


@triton.jit
def below(word, n):
    """Integer uniform in 0..n-1 by multiply-shift."""
    return (word.to(tl.int64) * n) >> 32


@triton.jit
def sort_key(high, low):
    """63 bits of two words as a non-negative int64."""
    return (high.to(tl.int64) << 31) | (low >> 1).to(tl.int64)


@triton.jit
def turn(steps, side):
    """cos and sin, float32, of 2π·steps/side, int64, 0 <= steps < side: to a few units of the last place, at quarters
    exactly. What is left of the nearest quarter is exact, and at most an eighth, for which Taylor's series do."""
    quarter = (4 * steps + side // 2) // side
    rest = tl.div_rn((4 * steps - quarter * side).to(tl.float32), side.to(tl.float32)) * 1.5707963267948966
    square = rest * rest
    sine = square * (square * (square * (square * 2.7557319e-06 - 1.9841270e-04) + 8.3333333e-03) - 0.16666667)
    sine = rest + rest * sine
    cosine = 1.0 + square * (square * (square * (square * 2.4801587e-05 - 1.3888889e-03) + 4.1666667e-02) - 0.5)
    odd, behind = (quarter & 1) != 0, (quarter & 2) != 0
    cosine, sine = tl.where(odd, -sine, cosine), tl.where(odd, cosine, sine)
    return tl.where(behind, -cosine, cosine), tl.where(behind, -sine, sine)


@triton.jit
def horner(z, sum, NUMBER: tl.constexpr):
    """z·sum + NUMBER, rounded once."""
    return fma(z, sum, tl.full(z.shape, NUMBER, tl.float32))


@triton.jit
def normals(high, low):
    """Two independent standard normals of two words, float32: by the operations of csrc/include/fusedmix/fourier.h,
    which has the sources. So they are the same bits everywhere, whatever a library's logarithm and cosine are."""
    u = (2 * (high >> 9) + 1).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08
    shifted = as_word(u) - 0x3F3504F3
    f = as_float((shifted & 0x007FFFFF) + 0x3F3504F3)
    s = tl.div_rn(f - 1.0, f + 1.0)
    z = s * s
    series = horner(z, tl.full(z.shape, 0.1111111111111111, tl.float32), 0.14285714285714285)
    series = horner(z, horner(z, horner(z, series, 0.2), 0.3333333333333333), 1.0)
    log2 = tl.full(z.shape, 0.69314718, tl.float32)
    radius = tl.sqrt_rn(-2.0 * fma((shifted >> 23).to(tl.float32), log2, 2.0 * s * series))

    turned = (low >> 8).to(tl.int32)
    quarter = (turned + (1 << 21)) >> 22
    x = (turned - (quarter << 22)).to(tl.float32) * 3.7450703871400037e-07
    z = x * x
    sine = horner(z, tl.full(z.shape, 2.7557319223985893e-06, tl.float32), -1.984126984126984e-04)
    sine = x * horner(z, horner(z, horner(z, sine, 8.333333333333333e-03), -0.16666666666666666), 1.0)
    cosine = horner(z, tl.full(z.shape, -2.755731922398589e-07, tl.float32), 2.48015873015873e-05)
    cosine = horner(z, horner(z, cosine, -1.388888888888889e-03), 0.041666666666666664)
    cosine = horner(z, horner(z, cosine, -0.5), 1.0)
    odd = (quarter & 1) != 0
    c, s = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return radius * tl.where(((quarter + 1) & 2) != 0, -c, c), radius * tl.where((quarter & 2) != 0, -s, s)


@triton.jit
def expm1(x):
    """exp(x) - 1 of float64, to a few units in the last place (Kahan): what exp lost near 1, its logarithm lost too."""
    y = tl.exp(x)
    lost = tl.where((y == 1.0) | (y == 0.0), 1.0, tl.log(tl.where(y == 0.0, 1.0, y)))
    return tl.where(y == 1.0, x, tl.where(y == 0.0, -1.0, (y - 1.0) * x / tl.where(lost == 0.0, 1.0, lost)))


@triton.jit
def log1p(x):
    """log(1 + x) of float64, to a few units in the last place (Kahan)."""
    y = 1.0 + x
    lost = y - 1.0
    return tl.where(lost == 0.0, x, tl.log(y) * (x / tl.where(lost == 0.0, 1.0, lost)))


@triton.jit
def symmetric_beta(seed, index, alpha, STREAM: tl.constexpr = Streams.LAM):
    """Beta(α, α) as float64: Ulrich's polar formula for α + 1, Stuart's boost down to α, in logarithms."""
    first, second = words(seed, index, STREAM, 0), words(seed, index, STREAM, 1)
    u, v = uniform_of(first, 0), uniform_of(first, 1)
    boost_u, boost_v = uniform_of(second, 0), uniform_of(second, 1)
    radius = tl.sqrt(-expm1((2.0 / (2.0 * alpha + 1.0)) * tl.log(u)))
    t = radius * tl.cos(6.283185307179586 * v)
    logit = log1p(t) - log1p(-t) + (tl.log(boost_u) - tl.log(boost_v)) / alpha
    return 1.0 / (1.0 + tl.exp(-logit))


# ---- Samples ---------------------------------------------------------------------------------------------------------


@triton.jit
def known(j, i, batch):
    """The partner j of a sample i. A number that is no sample's, which only the host could refuse, stands for the
    sample itself: nothing outside of the batch is touched."""
    return tl.where((j >= 0) & (j < batch), j, i)


@triton.jit
def partner_of(i, partner, batch, PAIRING: tl.constexpr):
    if PAIRING == Pairings.ROLL:
        j = tl.where(i == 0, batch - 1, i - 1)
    elif PAIRING == Pairings.FLIP:
        j = batch - 1 - i
    else:
        j = known(tl.load(partner + i), i, batch)
    return j


@triton.jit
def seed_of(seed, seeded, seed_value):
    """The seed, from memory if it is `seeded`. Not a constant: a plain call, whose seed is on the CPU, compiles what a
    graph then captures with its seed in memory."""
    return tl.load(seed, mask=seeded != 0, other=0) + seed_value.to(tl.int64)


@triton.jit
def draw_index(i, batch, PER: tl.constexpr):
    """Which draw a sample takes its numbers from."""
    if PER == Pers.SAMPLE:
        draw = i
    elif PER == Pers.PAIR:
        draw = tl.minimum(i, batch - 1 - i)
    else:
        draw = i * 0
    return draw
