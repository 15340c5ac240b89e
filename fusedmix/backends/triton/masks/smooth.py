"""A disc or a square with a soft edge: SmoothMix. fusedmix/masks/smooth.py has the sources."""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.backends.triton.enums import Columns, Kinds, Methods
from fusedmix.backends.triton.masks import gaussian, record
from fusedmix.backends.triton.masks.box import root
from fusedmix.backends.triton.numbers import as_float, as_word, fma


@triton.jit
def share_of_disc(m, z, y, x):
    """What pixels take of the partner, in float64."""
    dz, dy, dx = (z - m[0]).to(tl.float64), (y - m[1]).to(tl.float64), (x - m[2]).to(tl.float64)
    e = tl.maximum(tl.sqrt(dz * dz + dy * dy + dx * dx) - m[4].to(tl.float64), 0.0)
    return tl.exp(-m[3].to(tl.float64) * (e * e))


@triton.jit
def make(to, mine, method, row, lam, drawn, extent, FAMILIES: tl.constexpr,
         DRAWS: tl.constexpr, NDIM: tl.constexpr, S: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """Writes the records; the label weights, which are the realised means. Where λ = 1 the mask is 1 everywhere."""
    centre, _, _, _ = drawn
    z, y, x = centre
    depth, height, width = extent
    disc, pixels = method == Methods.SMOOTHMIX_DISC, record.pixels_of(extent)
    volume, longest = (1.0 - lam) * pixels, tl.maximum(tl.maximum(depth, height), width).to(tl.float64)
    pi = lam * 0.0 + 3.141592653589793  # Of two plain numbers tl.where would make float32.
    s = tl.maximum(tl.load(row + Columns.EDGE) * longest * 2.5066282746310002, 1e-30)
    if NDIM == 1:
        alone, cubic, square, linear = s, 0.0, 0.0, 2.0
    elif NDIM == 2:
        alone, cubic, square, linear = s * s, 0.0, tl.where(disc, pi, 4.0), tl.where(disc, pi, 4.0)
    else:
        alone, cubic = s * s * s, tl.where(disc, 4.0 * pi / 3.0, 8.0)
        square, linear = tl.where(disc, 2.0 * pi, 12.0), tl.where(disc, pi * 0.0 + 4.0, 6.0)
    whole, more = root(volume, NDIM), (volume - alone) / alone
    t = whole / s
    for _ in tl.static_range(12):
        step = ((cubic * t + square) * t + linear) * t - more
        t = t - step / ((3.0 * cubic * t + 2.0 * square) * t + linear)
    radius = tl.where(alone < volume, s * t, 0.0).to(tl.float32)
    s = tl.where(alone < volume, s, tl.where(volume > 0.0, whole, 1.0))
    rate = tl.minimum(pi / (s * s), 3.4028234663852886e38).to(tl.float32)
    kind = tl.where(disc, Kinds.SMOOTH_DISC, Kinds.SMOOTH_SQUARE)
    kind = tl.where(volume > 0.0, kind, Kinds.CONSTANT)
    outer = tl.where(volume > 0.0, rate, lam.to(tl.float32))
    record.store(to, mine, (kind, z, y, x, 0, 0, 0, as_word(outer), as_word(radius), 0, 0, 0))
    rows = depth * height * tl.max((disc & mine).to(tl.int32), axis=0)  # There are none where no mask is a disc.
    m = z[:, None], y[:, None], x[:, None], rate[:, None], radius[:, None]
    mean = record.sum_of(share_of_disc, m, rows, extent, S, T) / pixels
    mean = tl.where(disc, mean, gaussian.mean_of(rate, radius, centre, extent, S, T))
    return tl.where(volume > 0.0, 1.0 - mean, lam)


@triton.jit
def at(m, z, y, x):
    rate, r = as_float(m[7]), as_float(m[8])
    dz, dy, dx = (z - m[1]).to(tl.float32), (y - m[2]).to(tl.float32), (x - m[3]).to(tl.float32)
    d2 = dz * dz + dy * dy + dx * dx
    # (d² - r²)/(d + r), rounded once above: of d - r little would be left near the edge.
    e = tl.div_rn(tl.maximum(fma(-r, r, d2), 0.0), tl.maximum(tl.sqrt_rn(d2) + r, 1e-30))
    ez, ey, ex = tl.maximum(tl.abs(dz) - r, 0.0), tl.maximum(tl.abs(dy) - r, 0.0), tl.maximum(tl.abs(dx) - r, 0.0)
    e2 = tl.where(m[0] == Kinds.SMOOTH_DISC, e * e, ez * ez + ey * ey + ex * ex)
    return 1.0 - tl.exp(-rate * e2)
