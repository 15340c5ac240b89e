"""A mask as kernels have it: the words of its record, and where its pixels are stored, if they are."""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.backends.triton.enums import Rows
from fusedmix.masks import family

WORDS = tl.constexpr(family.WORDS)


@triton.jit
def load(i, records, given, stored, MASKS: tl.constexpr, BINARY: tl.constexpr):
    """The masks of samples i: their words, from where MASKS says (enums.py, `Rows`).
    Where all are BINARY, boxes, and samples that are left as they are, are 1 outside and 0 inside: nothing to load. And
    where their pixels are stored, and how many elements a row of these has."""
    pixels, across, rows, batch = stored
    row = records + (i if MASKS == Rows.OWN else 0) * WORDS
    zero = (i * 0).to(tl.int32)
    m = ()
    for k in tl.static_range(WORDS):
        if BINARY and k == 7:
            word = zero + 0x3F800000  # These are the bits of 1.0.
        elif BINARY and k == 8:
            word = zero
        elif MASKS == Rows.GIVEN:
            word = given[k]
        else:
            word = tl.load(row + k)
        m = m + (word,)  # type: ignore[assignment]
    if MASKS == Rows.OWN:
        pixels += tl.where(i < rows, i, batch - 1 - i) * across
    return m, pixels, across


@triton.jit
def store(to, mine, words):
    """Writes the records `mine` of those that begin at `to`."""
    for k in tl.static_range(WORDS):
        tl.store(to + k, words[k], mask=mine)


@triton.jit
def pixels_of(extent):
    """How many pixels (depth, height, width) are."""
    depth, height, width = extent
    return (depth.to(tl.int64) * height * width).to(tl.float64)


@triton.jit
def sum_of(f: tl.constexpr, m, rows, extent, S: tl.constexpr, T: tl.constexpr):
    """The sums of f(m, z, y, x) over the pixels of so many rows, [S], in float64, T pixels of a row at a time: z and y
    are numbers, x is [1, T], and `m` a tuple of numbers for each of S masks, [S, 1]."""
    _, height, width = extent
    total = tl.zeros([S], tl.float64)
    for row in range(rows):  # carries 1: total
        of_row = tl.zeros([S], tl.float64)
        for start in range(0, width, T):  # carries 1: of_row
            x = (start + tl.arange(0, T))[None, :]
            of_pixel = f(m, row // height, row % height, x).to(tl.float64)
            of_row += tl.sum(tl.where(x < width, of_pixel, 0.0), axis=1)
        total += of_row
    return total
