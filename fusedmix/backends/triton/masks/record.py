"""A mask as kernels have it: the words of its record, and where its pixels are stored, if they are."""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.masks import family

WORDS = tl.constexpr(family.WORDS)


@triton.jit
def load(i, records, given, stored, MASKS: tl.constexpr, BINARY: tl.constexpr, NDIM: tl.constexpr):
    """The masks of samples i: the words from the arguments (MASKS 2), from row 0 of the plan (1), or from rows i (0).

    What is known is not loaded: along axes that there are not, of NDIM, boxes go from 0 to 1; and if masks are BINARY
    alone, these, and the samples that are left as they are, are 1 outside and 0 inside."""
    pixels, across, rows, batch = stored
    row = records + (i if MASKS == 0 else 0) * WORDS
    zero, one = (i * 0).to(tl.int32), (i * 0 + 1).to(tl.int32)
    m = ()
    for k in tl.static_range(WORDS):
        if (k >= 1 and k <= 3 - NDIM) or (BINARY and k == 8):
            word = zero
        elif k >= 4 and k <= 6 - NDIM:
            word = one
        elif BINARY and k == 7:
            word = zero + 0x3F800000
        elif MASKS == 2:
            word = given[k]
        else:
            word = tl.load(row + k)
        m = m + (word,)  # type: ignore[assignment]
    if MASKS == 0:
        pixels += tl.where(i < rows, i, batch - 1 - i) * across
    return m, pixels


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
