"""A box of one value and another outside: CutMix and HMix. fusedmix/masks/box.py has the sources."""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.backends.triton.enums import Columns, Draws, Kinds, Methods, Streams
from fusedmix.backends.triton.masks import record
from fusedmix.backends.triton.numbers import as_float, as_word, below, spread, symmetric_beta, words


@triton.jit
def root(x, NDIM: tl.constexpr):
    """x^(1/d). Cube roots differ between libraries in the last bit, so they are rounded to float32."""
    if NDIM == 1:
        r = x
    elif NDIM == 2:
        r = tl.sqrt(x)
    else:
        r = tl.exp(tl.log(tl.maximum(x, 1e-300)) / 3.0).to(tl.float32).to(tl.float64)
        r = tl.where(x == 0.0, 0.0, r)
    return r


@triton.jit
def share_of(side, fraction):
    return tl.floor(side.to(tl.float64) * fraction).to(tl.int64)


@triton.jit
def shaped(row, bits, fraction, height, width):
    """The shares of the image's height and width that a box has, where its width/height is drawn."""
    low, high = tl.load(row + Columns.ASPECT_LOW), tl.load(row + Columns.ASPECT_HIGH)
    free = high > 0.0
    low, high = tl.where(free, low, 1.0), tl.where(free, high, 1.0)
    uniform = (2 * bits.to(tl.int64) + 1).to(tl.float64) * 1.1641532182693481e-10
    grown = tl.exp(uniform * tl.log(high / low)).to(tl.float32).to(tl.float64)
    ratio = low * grown * height.to(tl.float64) / width.to(tl.float64)
    stretch, most = tl.maximum(tl.sqrt(ratio), fraction), 1.0 / tl.where(fraction > 0.0, fraction, 1.0)
    of_height, of_width = fraction / tl.minimum(stretch, most), tl.minimum(fraction * stretch, 1.0)
    return tl.where(free, of_height, fraction), tl.where(free, of_width, fraction)


@triton.jit
def side_of(centre, word, of_length, side, share, options, DRAWS: tl.constexpr):
    """First and past-the-end along an axis, clipped to the image, or where they are inside."""
    inside, least, most = options
    length = share_of(side, share)
    if DRAWS & Draws.SIDES:
        low = share_of(side, least)
        length = tl.where(most > 0.0, low + below(of_length, tl.maximum(share_of(side, most) - low, 1)), length)
    half, place = length // 2, below(word, side - length + 1)
    first = tl.where(inside, place, tl.maximum(centre - half, 0))
    return first, tl.where(inside, place + length, tl.minimum(centre + half, side))


@triton.jit
def make(to, mine, method, row, lam, drawn, extent, FAMILIES: tl.constexpr,
         DRAWS: tl.constexpr, NDIM: tl.constexpr, S: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """Writes the records; the label weights. DRAWS: what some row draws besides a centre or a place."""
    centre, places, _, noise = drawn
    z, y, x = centre
    for_z, for_y, for_x = places
    long_x, long_y, long_z = for_x, for_y, for_z
    if DRAWS & Draws.SIDES:
        long_x, long_y, long_z, _ = words(noise[0], noise[1], Streams.SIDES, 0)
    depth, height, width = extent
    # A box has (1-λ)·ratio of the image. The authors' code multiplies the roots first, too: another order moves it.
    ratio = tl.load(row + Columns.RATIO)
    if DRAWS & Draws.RATIO:
        gamma = tl.load(row + Columns.RATIO_ALPHA)
        drawn = symmetric_beta(noise[0], noise[1], tl.where(gamma > 0.0, gamma, 1.0), Streams.RATIO)
        ratio = tl.where(gamma > 0.0, drawn.to(tl.float32).to(tl.float64), ratio)
    fraction = root(1.0 - lam, NDIM) * root(ratio, NDIM)
    least, most = tl.load(row + Columns.SIDE_LOW), tl.load(row + Columns.SIDE_HIGH)
    options = (tl.load(row + Columns.INSIDE) != 0.0) | (most > 0.0), least, most
    share_y, share_x = fraction, fraction
    if (DRAWS & Draws.ASPECT) and NDIM > 1:
        bits, _, _, _ = words(noise[0], noise[1], Streams.ASPECT, 0)
        share_y, share_x = shaped(row, bits, fraction, height, width)
    x0, x1 = side_of(x, for_x, long_x, width, share_x, options, DRAWS)
    y0, y1, z0, z1 = x * 0, x * 0 + 1, x * 0, x * 0 + 1
    if NDIM > 1:
        y0, y1 = side_of(y, for_y, long_y, height, share_y, options, DRAWS)
    if NDIM > 2:
        z0, z1 = side_of(z, for_z, long_z, depth, fraction, options, DRAWS)
    rest = 1.0 - ((x1 - x0) * (y1 - y0) * (z1 - z0)).to(tl.float64) / record.pixels_of(extent)
    # Outside stands λ/(1-β), β the box's actual share (released), or λ/(1-(1-λ)·ratio) (paper).
    released = method == Methods.HMIX_RELEASED
    share = tl.where(released, rest, (1.0 - ratio) + lam * ratio)
    outer = tl.where(share > 0.0, tl.minimum(lam / tl.where(share > 0.0, share, 1.0), 1.0), 0.0)
    outer = tl.where(method == Methods.CUTMIX, 1.0, outer).to(tl.float32)
    record.store(to, mine, (Kinds.BOX, z0, y0, x0, z1, y1, x1, as_word(outer), 0, 0, 0, 0))
    return tl.where(released, lam, outer.to(tl.float64) * rest)


@triton.jit
def inside(c, first, stop):
    return (c >= first) & (c < stop)


@triton.jit
def over(m, z, y, x, w):
    """M; `w` where the mask is no box. Without a branch, which takes more registers."""
    box = spread(m[0] == Kinds.BOX, w)
    boxed = box & inside(z, m[1], m[4]) & inside(y, m[2], m[5]) & inside(x, m[3], m[6])
    return tl.where(boxed, as_float(m[8]), tl.where(box, as_float(m[7]), w))


@triton.jit
def reach(m, low, high, live):
    z0, y0, x0, z1, y1, x1 = m[1], m[2], m[3], m[4], m[5], m[6]
    outer, inner = as_float(m[7]), as_float(m[8])
    zl, yl, xl = low
    zh, yh, xh = high
    filled = spread((z0 < z1) & (y0 < y1) & (x0 < x1), live)
    some = filled & (zl < z1) & (zh >= z0) & (yl < y1) & (yh >= y0) & (xl < x1) & (xh >= x0)
    whole = some & (zl >= z0) & (zh < z1) & (yl >= y0) & (yh < y1) & (xl >= x0) & (xh < x1)
    own = (spread(outer != 0.0, live) & ~whole) | (spread(inner != 0.0, live) & some)
    lent = (spread(outer != 1.0, live) & ~whole) | (spread(inner != 1.0, live) & some)
    return live & own, live & lent
