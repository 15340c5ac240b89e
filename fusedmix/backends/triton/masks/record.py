"""A mask as kernels have it: the words of its record, and where its pixels are stored, if they are."""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.masks import family

WORDS = tl.constexpr(family.WORDS)


@triton.jit
def load(i, records, given, stored, MASKS: tl.constexpr):
    """The mask of sample i: its words from the arguments (MASKS 2), from row 0 of the plan (1), or from row i (0)."""
    pixels, across, rows, batch = stored
    if MASKS == 2:
        m = given
    else:
        row = records + (i if MASKS == 0 else i * 0) * WORDS
        m = ()
        for k in tl.static_range(WORDS):
            m = m + (tl.load(row + k),)
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
