"""FMix: masks that no formula gives. fourier_kernel.py makes their pixels; here they are read."""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.backends.triton.enums import Columns, Families, Kinds, Methods
from fusedmix.backends.triton.masks import record
from fusedmix.backends.triton.numbers import as_float, as_word, by_vector


@triton.jit
def make(to, mine, method, row, lam, drawn, extent, FAMILIES: tl.constexpr,
         DRAWS: tl.constexpr, NDIM: tl.constexpr, S: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """Writes the records, how many pixels are 1, rounded up or down by a coin, and half the ranks of the soft edge; the
    label weights."""
    _, _, coin, _ = drawn
    pixels = record.pixels_of(extent)
    number = tl.where(coin, tl.ceil(lam * pixels), tl.floor(lam * pixels))
    share = tl.minimum(tl.load(row + Columns.SOFT), tl.minimum(lam, 1.0 - lam))
    soft = tl.minimum(tl.floor(pixels * share), tl.minimum(number, pixels - number))
    decay, cutoff = tl.load(row + Columns.DECAY).to(tl.float32), tl.load(row + Columns.CUTOFF).to(tl.float32)
    kind = tl.where(method == Methods.FMIX_RELEASED, Kinds.FOURIER_RELEASED, Kinds.FOURIER)
    record.store(
        to, mine, (kind, number.to(tl.int32), soft.to(tl.int32), 0, 0, 0, 0, as_word(decay), as_word(cutoff), 0, 0, 0)
    )
    return tl.where(tl.load(row + Columns.REFORMULATE) != 0.0, 1.0, number / pixels)


@triton.jit
def load(records, i, live):
    """Of records: the kind, how many pixels are 1, half the ranks of the soft edge, decay and cut-off."""
    m = records + i * record.WORDS
    kind, number = tl.load(m, mask=live, other=0), tl.load(m + 1, mask=live, other=0)
    soft, decay = tl.load(m + 2, mask=live, other=0), tl.load(m + 7, mask=live, other=0)
    return kind, number, soft, as_float(decay), as_float(tl.load(m + 8, mask=live, other=0))


@triton.jit
def pixel_of(z, y, x, height, width):
    """The number of a pixel, in row-major order: it has 31 bits, as the number of a mask's ones."""
    return ((z * height + y) * width + x).to(tl.int32)


@triton.jit
def level_at(pixels, q):
    return tl.load(by_vector(pixels, q, 1)).to(tl.int32) & 0xFFFF


@triton.jit
def bit_at(pixels, q):
    return (tl.load(by_vector(pixels, q >> 5, 1)) >> (q & 31)) & 1


@triton.jit
def window_at(pixels, first, last, INNER: tl.constexpr):
    """The bits of vectors along x, at most 16, one after another from the lowest. Those of a vector are in one word, if
    each is of another pixel: V divides width and 32. If they share pixels (INNER) these may begin in one word and end
    in the next one."""
    window = tl.load(by_vector(pixels, first >> 5, 1))
    if INNER > 1:
        both = (tl.load(by_vector(pixels, last >> 5, 1)).to(tl.int64) << 32) | (window.to(tl.int64) & 0xFFFFFFFF)
        window = (both >> (first & 31)).to(tl.int32)
    else:
        window = window >> (first & 31)
    return window


@triton.jit
def read(pixels, spots, FAMILIES: tl.constexpr, AXIS: tl.constexpr, INNER: tl.constexpr):
    """M, from what is stored at the pixels of vectors (mix_kernel.py, `spots`). AXIS: along which the elements of a
    vector lie, -1: along none."""
    q, along, first, last = spots
    if FAMILIES & Families.LEVELS:
        w = tl.div_rn(level_at(pixels, q).to(tl.float32), 65535.0)
    elif AXIS == 0 or AXIS == 1:
        w = bit_at(pixels, q).to(tl.float32)
    else:
        w = ((window_at(pixels, first, last, INNER) >> along) & 1).to(tl.float32)
    return w


@triton.jit
def reach(pixels, spots, live, FAMILIES: tl.constexpr, AXIS: tl.constexpr, INNER: tl.constexpr):
    first, last = spots[2], spots[3]
    if FAMILIES & Families.LEVELS:
        level = level_at(pixels, spots[0])
        own, lent = tl.max(level, axis=2, keep_dims=True) > 0, tl.min(level, axis=2, keep_dims=True) < 65535
    elif AXIS == 0 or AXIS == 1:
        bit = bit_at(pixels, spots[0])
        own, lent = tl.max(bit, axis=2, keep_dims=True) > 0, tl.min(bit, axis=2, keep_dims=True) < 1
    else:
        ones = (1 << (last - first + 1)) - 1
        window = window_at(pixels, first, last, INNER) & ones
        own, lent = window != 0, window != ones
    return live & own, live & lent
