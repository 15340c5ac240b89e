"""exp(-rate·d²) around a centre, or its complement: GMix. fusedmix/masks/gaussian.py has the sources."""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.backends.triton.enums import Kinds, Methods
from fusedmix.backends.triton.masks import record
from fusedmix.backends.triton.numbers import as_float, as_word


@triton.jit
def sum_along(rate, radius, centre, side, S: tl.constexpr, T: tl.constexpr):
    """Of exp(-rate·d²) over the pixels of an axis, T at a time, d the distance to what is within a radius."""
    total = tl.zeros([S], tl.float64)
    for start in range(0, side, T):  # carries 1: total
        pixel = start + tl.arange(0, T)
        distance = tl.abs(pixel[None, :] - centre[:, None]).to(tl.float64)
        distance = tl.maximum(distance - radius.to(tl.float64)[:, None], 0.0)
        g = tl.exp(-rate.to(tl.float64)[:, None] * (distance * distance))
        total += tl.sum(tl.where((pixel < side)[None, :], g, 0.0), axis=1)
    return total


@triton.jit
def mean_of(rate, radius, centre, extent, S: tl.constexpr, T: tl.constexpr):
    """The mean over all pixels of a Gaussian around a square of a radius, which may be 0."""
    z, y, x = centre
    depth, height, width = extent
    mean = sum_along(rate, radius, x, width, S, T) / width.to(tl.float64)
    mean = mean * sum_along(rate, radius, y, height, S, T) / height.to(tl.float64)
    return mean * sum_along(rate, radius, z, depth, S, T) / depth.to(tl.float64)


@triton.jit
def make(to, mine, method, row, lam, drawn, extent, FAMILIES: tl.constexpr,
         DRAWS: tl.constexpr, NDIM: tl.constexpr, S: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """Writes the records; the label weights, which are the realised means. Where s = 0 the mask is the limit, λ
    everywhere."""
    centre, _, _, _ = drawn
    z, y, x = centre
    released = method == Methods.GMIX_RELEASED
    s = tl.where(released, tl.minimum(lam, 1.0 - lam), 2.0 * (1.0 - lam))
    volume = tl.where(s > 0.0, s, 1.0) * record.pixels_of(extent)
    if NDIM == 1:
        squared_width = volume * volume
    elif NDIM == 2:
        squared_width = volume
    else:
        squared_width = tl.exp(tl.log(volume) * (2.0 / 3.0))
    rate = tl.minimum(3.141592653589793 / squared_width, 3.4028234663852886e38).to(tl.float32)
    mean = mean_of(rate, rate * 0.0, centre, extent, S, T)
    complement = ~released | (lam >= 0.5)
    kind = tl.where(complement, Kinds.GAUSSIAN_COMPLEMENT, Kinds.GAUSSIAN)
    kind = tl.where(s > 0.0, kind, Kinds.CONSTANT)
    outer = tl.where(s > 0.0, rate, lam.to(tl.float32))
    record.store(to, mine, (kind, z, y, x, 0, 0, 0, as_word(outer), 0, 0, 0, 0))
    return tl.where(s > 0.0, tl.where(complement, 1.0 - mean, mean), lam)


@triton.jit
def at(m, z, y, x):
    dz, dy, dx = (z - m[1]).to(tl.float32), (y - m[2]).to(tl.float32), (x - m[3]).to(tl.float32)
    # One exponential of the whole distance; the distance is exact up to 4096 pixels.
    g = tl.exp(-as_float(m[7]) * (dz * dz + dy * dy + dx * dx))
    return tl.where(m[0] == Kinds.GAUSSIAN, g, 1.0 - g)
