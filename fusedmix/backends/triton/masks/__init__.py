"""What a mask is: the families, and which of them a kind or a method belongs to.

Each family is a file: `makes` and `make` say of which methods its masks are, and their records and label weights; `of`
and `at` of which kinds, and M at a pixel; `reach` what a mask does to a vector. FAMILIES is the set of which there may
be masks (fusedmix/methods.py, `Families`): of the others nothing is compiled.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.backends.triton.enums import Families
from fusedmix.backends.triton.masks import box, constant, fourier, gaussian, smooth
from fusedmix.backends.triton.numbers import below


@triton.jit
def make(to, live, method, row, lam, words, extent,
         FAMILIES: tl.constexpr, NDIM: tl.constexpr, S: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """Writes the records of S samples, each of a method, from λ and the words of its centre and coin; their label
    weights."""
    a, b, c, coin = words
    depth, height, width = extent
    centre = below(c, depth), below(b, height), below(a, width)
    x = lam.to(tl.float64)
    weight = constant.make(to, live & constant.makes(method), method, lam)
    if FAMILIES & (Families.CUTS | Families.BOXES):
        mine = box.makes(method)
        weight = tl.where(mine, box.make(to, live & mine, method, row, x, centre, extent, NDIM), weight)
    if FAMILIES & Families.GAUSSIANS:
        mine = gaussian.makes(method)
        weight = tl.where(mine, gaussian.make(to, live & mine, method, x, centre, extent, NDIM, S, T), weight)
    if FAMILIES & (Families.STORED | Families.LEVELS):
        mine = fourier.makes(method)
        weight = tl.where(mine, fourier.make(to, live & mine, method, row, x, (coin >> 31) != 0, extent), weight)
    if FAMILIES & Families.SMOOTH:
        mine = smooth.makes(method)
        weight = tl.where(mine, smooth.make(to, live & mine, method, row, x, centre, extent, NDIM, S, T), weight)
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
        if gaussian.of(m[0]):
            w = gaussian.at(m, z, y, x)
    if FAMILIES & (Families.STORED | Families.LEVELS):
        if fourier.of(m[0]):
            w = fourier.at(pixels, spots, FAMILIES, AXIS, INNER)
    if FAMILIES & Families.SMOOTH:
        if smooth.of(m[0]):
            w = smooth.at(m, z, y, x)
    return w


@triton.jit
def reach(mask, vectors, live, FAMILIES: tl.constexpr, IN_PLACE: tl.constexpr, AXIS: tl.constexpr,
          INNER: tl.constexpr):  # fmt: skip
    """Which vectors [N, 1] need their own sample (some weight is not 0) and which its partner (some weight is not 1).
    In place nothing happens to a vector that takes nothing of the partner."""
    m, pixels = mask
    _, low, high, spots = vectors
    own, lent = constant.reach(m, live)
    if FAMILIES & (Families.CUTS | Families.BOXES):
        if box.of(m[0]):
            own, lent = box.reach(m, low, high, live)
    if FAMILIES & (Families.STORED | Families.LEVELS):
        if fourier.of(m[0]):
            own, lent = fourier.reach(pixels, spots, live, FAMILIES, AXIS, INNER)
    if IN_PLACE:
        own = own & lent
    return own, lent
