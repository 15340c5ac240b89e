"""What a mask is: the families, and which of them a kind or a method belongs to.

Each family is a file: `makes` and `make` say of which methods its masks are, and their records and label weights; `of`
and `at` of which kinds, and M at a pixel; `reach` what a mask does to a vector. FAMILIES is the set of which there may
be masks (fusedmix/methods.py, `Families`): of the others nothing is compiled.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.backends.triton.enums import Families
from fusedmix.backends.triton.masks import box, constant, fourier, gaussian, grid, smooth
from fusedmix.backends.triton.numbers import below, spread


@triton.jit
def make(to, live, method, row, lam, words, noise, extent, FAMILIES: tl.constexpr,
         DRAWS: tl.constexpr, NDIM: tl.constexpr, S: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """Writes the records of S samples, each of a method, from λ, from the words of its centre and coin, and from the
    seed and the index of what else a family draws; their label weights."""
    a, b, c, coin = words
    depth, height, width = extent
    centre = below(c, depth), below(b, height), below(a, width)
    x = lam.to(tl.float64)
    weight = constant.make(to, live & constant.makes(method), method, lam)
    if FAMILIES & (Families.CUTS | Families.BOXES):
        mine = box.makes(method)
        weight = tl.where(
            mine, box.make(to, live & mine, method, row, x, centre, (c, b, a), noise, extent, DRAWS, NDIM), weight
        )
    if FAMILIES & Families.GAUSSIANS:
        mine = gaussian.makes(method)
        weight = tl.where(mine, gaussian.make(to, live & mine, method, x, centre, extent, NDIM, S, T), weight)
    if FAMILIES & (Families.STORED | Families.LEVELS):
        mine = fourier.makes(method)
        weight = tl.where(mine, fourier.make(to, live & mine, method, row, x, (coin >> 31) != 0, extent), weight)
        mine = grid.makes(method) & grid.is_large(row)
        weight = tl.where(mine, grid.make_large(to, live & mine, row, x, (coin >> 31) != 0, extent), weight)
    if FAMILIES & Families.SMOOTH:
        mine = smooth.makes(method)
        weight = tl.where(mine, smooth.make(to, live & mine, method, row, x, centre, extent, NDIM, S, T), weight)
    if FAMILIES & Families.CELLS:
        mine = grid.makes(method) & ~grid.is_large(row)
        weight = tl.where(mine, grid.make(to, live & mine, row, x, (coin >> 31) != 0, noise, extent, S), weight)
    return weight


@triton.jit
def at(mask, vectors, FAMILIES: tl.constexpr, AXIS: tl.constexpr, INNER: tl.constexpr):
    """M at the pixels of vectors, computed or read."""
    m, pixels = mask
    place, _, _, spots = vectors
    z, y, x = place
    w = constant.at(m, z, y, x)
    if FAMILIES & (Families.CUTS | Families.BOXES):
        w = box.at(m, z, y, x, w)
    if FAMILIES & Families.GAUSSIANS:
        w = tl.where(gaussian.of(m[0]), gaussian.at(m, z, y, x), w)
    if FAMILIES & (Families.STORED | Families.LEVELS):
        w = tl.where(fourier.of(m[0]), fourier.at(pixels, spots, FAMILIES, AXIS, INNER), w)
    if FAMILIES & Families.SMOOTH:
        w = tl.where(smooth.of(m[0]), smooth.at(m, z, y, x), w)
    if FAMILIES & Families.CELLS:
        w = tl.where(grid.of(m[0]), grid.at(m, z, y, x), w)
    return w


@triton.jit
def reach(mask, vectors, live, FAMILIES: tl.constexpr, AXIS: tl.constexpr, INNER: tl.constexpr):
    """Which vectors [R, N, 1] need their own sample (some weight is not 0) and which its partner (some weight is not
    1)."""
    m, pixels = mask
    _, low, high, spots = vectors
    own, lent = constant.reach(m, live)
    if FAMILIES & (Families.CUTS | Families.BOXES):
        box_own, box_lent = box.reach(m, low, high, live)
        is_box = spread(box.of(m[0]), live)
        own, lent = tl.where(is_box, box_own, own), tl.where(is_box, box_lent, lent)
    if FAMILIES & (Families.STORED | Families.LEVELS):
        stored_own, stored_lent = fourier.reach(pixels, spots, live, FAMILIES, AXIS, INNER)
        is_stored = spread(fourier.of(m[0]), live)
        own, lent = tl.where(is_stored, stored_own, own), tl.where(is_stored, stored_lent, lent)
    return own, lent
