"""The pixels of FMix's masks: the mirror of fusedmix/fourier.py, which has the definition.

A chunk of masks at a time, so many that the scratch stays within 24 MiB and the fields in a GPU's second-level cache:

    waves           cos and sin for every axis, once for all chunks
    coefficients    a_k and b_k, noise times amplitude
    sum, each axis  (masks, K, R) complex -> (masks, R, X): along one axis frequencies become pixels, and the axis goes
                    to the end, so that after the last one the field is in the order of its pixels
    select          the `number` largest of a field as bits; or
    level           with a soft edge, from the order in which torch sorts the field

All in float32, the noise included: a field is off by some 1e-6 of its deviation, and of a mask some 1e-6 of the pixels.
Nothing waits for the device, nothing about a mask is known on the host but which frequencies may occur: all can be
captured in a graph. A row of the plan that is no mask of the kind at hand is left by every program at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.backends.triton.enums import Kinds, Streams
from fusedmix.backends.triton.masks import fourier
from fusedmix.backends.triton.numbers import draw_index, jit_kernel, seed_of, turn, words

TILE = 128  # A program sums for so many pixels along an axis.
_TILE = tl.constexpr(TILE)
_TURN = tl.constexpr(1 << 24)


@triton.jit
def is_made(m, decay, cutoff, KIND: tl.constexpr):
    """Whether masks are of this kind, decay and cut-off."""
    return (m[0] == KIND) & (m[3] == decay) & (m[4] == cutoff)


@jit_kernel("waves")
def waves_kernel(waves, nz, ny, nx, first_z, first_y, depth, height, width, total, N: tl.constexpr):
    """cos and sin, two rows, of what the sums multiply by, for each axis z, y, x: of 2πx/side for every x; then of
    2πkv/side for every frequency k and the first pixels v."""
    at = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    of_y = depth + nz.to(tl.int64) * _TILE
    of_x = of_y + height + ny.to(tl.int64) * _TILE
    place = tl.where(at < of_y, at, tl.where(at < of_x, at - of_y, at - of_x))
    side = tl.where(at < of_y, depth, tl.where(at < of_x, height, width)).to(tl.int64)
    first = tl.where(at < of_y, first_z, tl.where(at < of_x, first_y, 0)).to(tl.int64)
    k = first + (place - side) // _TILE
    # The remainder of a negative product is negative, so the side is added once more.
    product = ((k * ((place - side) % _TILE)) % side + side) % side
    cosine, sine = turn(tl.where(place < side, place, product), side)
    tl.store(waves + at, cosine, mask=at < total)
    tl.store(waves + total + at, sine, mask=at < total)


@triton.jit
def folded(k, side, longest):
    """The frequency of entry k of an array of transforms, in cycles along the longest side."""
    entry = k % side
    entry = tl.where(2 * entry >= side, side - entry, entry)
    return tl.div_rn(entry.to(tl.float32) * longest.to(tl.float32), side.to(tl.float32))


@triton.jit
def amplitude(squared, decay):
    """f^-decay, f at least one cycle along the longest side."""
    return tl.exp2(-0.5 * decay * tl.log2(tl.maximum(squared, 1.0)))


@jit_kernel("out")
def coefficients_kernel(
    out, records, seed, seeded, seed_value: tl.int64, decay, cutoff, first, many, batch, tiles,
    nz, ny, nx, first_z, first_y, depth, height, width, longest,
    KIND: tl.constexpr, NDIM: tl.constexpr, PER: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """a_k and b_k of masks `first` and on, (2, many, nz, ny, nx)."""
    program = tl.program_id(0).to(tl.int64)
    mask, tile = program // tiles, program % tiles
    if is_made(fourier.load(records, first + mask, mask >= 0), decay, cutoff, KIND):
        each = nz.to(tl.int64) * ny * nx
        at = tile * N + tl.arange(0, N)
        j_x, j_y, j_z = at % nx, at // nx % ny, at // nx // ny
        kx, ky, kz = j_x, first_y + j_y, first_z + j_z

        # The number of a frequency, by which its noise is drawn, does not depend on the sides.
        along_y, along_z = tl.abs(ky), 2 * tl.abs(kz) - (kz > 0).to(tl.int64)
        if NDIM == 1:
            number = kx
        elif NDIM == 2:
            number = kx + (along_y << 16)
        else:
            number = kx + (along_y << 10) + (along_z << 20)
        index = draw_index(first + mask, batch, PER).to(tl.int64)
        key = seed_of(seed, seeded, seed_value)
        high, low, high_below, low_below = words(key, index, Streams.NOISE, number.to(tl.uint32))
        high, low = tl.where(ky < 0, high_below, high), tl.where(ky < 0, low_below, low)
        uniform = (2 * (high >> 9) + 1).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08
        radius = tl.sqrt(tl.maximum(-2.0 * tl.log(uniform), 0.0))
        cosine, sine = turn((low >> 8).to(tl.int64), at * 0 + _TURN)

        if KIND == Kinds.FOURIER:
            f_x, f_y, f_z = kx.to(tl.float32), ky.to(tl.float32), kz.to(tl.float32)
            scale = longest.to(tl.float32)
            f_x = tl.div_rn(f_x * scale, width.to(tl.float32))
            f_y = tl.div_rn(f_y * scale, height.to(tl.float32))
            f_z = tl.div_rn(f_z * scale, depth.to(tl.float32))
            real = amplitude(f_x * f_x + f_y * f_y + f_z * f_z, decay)
            imaginary, twice = real, 1.4142135623730951
        else:
            # Row k of an axis has the frequency of row k of the next one.
            f = at.to(tl.float32) * 0.0
            if NDIM > 1:
                along = folded(j_y, width, longest)
                f = along * along
            if NDIM > 2:
                along = folded(j_z, height, longest)
                f += along * along
            side = width if NDIM == 1 else (height if NDIM == 2 else depth)
            least = tl.div_rn(longest.to(tl.float32), side.to(tl.float32))
            real, imaginary, twice = amplitude(f, decay), amplitude(f + least * least, decay), 2.0
        factor = radius * tl.where((kx != 0) & (2 * kx != width), twice, 1.0)
        tl.store(out + mask * each + at, factor * real * cosine, mask=at < each)
        tl.store(out + (many + mask) * each + at, factor * imaginary * sine, mask=at < each)


@jit_kernel("out", "coefficients", "waves")
def sum_kernel(
    out, coefficients, waves, records, decay, cutoff, first, many, tiles, count, inner, side, k_first, of_axis, total,
    KIND: tl.constexpr, LAST: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Σ_k c_k·exp(2πi·k·x/side): (2, many, count, inner) -> (2, many, inner, side); of the last axis the real part.

    The wave at pixel x0 + v of a tile is that at x0 times that at v: of the first there are as many as pixels, of the
    second one for each frequency and pixel of a tile, so that no table is as large as frequencies times pixels.

    A tile is (N / 32, M, 32): so warps share out its M rows, and a thread has M / 4 rows and N / 32 pixels of each,
    and multiplies all it loads of the one by all it loads of the other. As (M, N) every thread would have one pixel of
    all rows, and load as much as it multiplies."""
    program = tl.program_id(0).to(tl.int64)
    row = program // tiles * M + tl.arange(0, M)
    mask = row // inner
    live = (mask < many) & is_made(fourier.load(records, first + mask, mask < many), decay, cutoff, KIND)
    if tl.max(live.to(tl.int32), axis=0) > 0:
        x0 = program % tiles * N
        v = tl.arange(0, N // 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
        source = coefficients + mask * inner * count + row % inner
        imaginary = many.to(tl.int64) * inner * count
        # `step` is k·x0 modulo the side, from one k to the next.
        step = ((k_first % side + side) % side * x0) % side
        real, imag = tl.zeros([N // 32, M, 32], tl.float32), tl.zeros([N // 32, M, 32], tl.float32)
        for k in range(count):  # carries 4 - LAST: source, step, real, imag
            a = tl.load(source, mask=live, other=0.0)[None, :, None]
            b = tl.load(source + imaginary, mask=live, other=0.0)[None, :, None]
            here, there = waves + of_axis + step, waves + of_axis + side + k * N + v
            p, q = tl.load(here), tl.load(here + total)
            r, s = tl.load(there), tl.load(there + total)
            cosine, sine = tl.fma(p, r, -q * s)[:, None, :], tl.fma(p, s, q * r)[:, None, :]
            real = tl.fma(a, cosine, tl.fma(-b, sine, real))
            if not LAST:
                imag = tl.fma(a, sine, tl.fma(b, cosine, imag))
            source += inner
            step += x0
            step = tl.where(step >= side, step - side, step)
        x = (x0 + v)[:, None, :]
        to = out + row[None, :, None] * side + x
        fits = live[None, :, None] & (x < side)
        tl.store(to, real, mask=fits)
        if not LAST:
            tl.store(to + many.to(tl.int64) * inner * side, imag, mask=fits)


@triton.jit
def sortable(x):
    """float32 as uint32 of the same order, both zeros the same."""
    whole = tl.where(x == 0.0, 0.0, x).to(tl.uint32, bitcast=True)
    return tl.where((whole >> 31) != 0, whole ^ 0xFFFFFFFF, whole | 0x80000000)


@jit_kernel("out", "field")
def select_kernel(out, field, records, decay, cutoff, first, pixels, across, KIND: tl.constexpr, N: tl.constexpr):
    """One mask of a chunk: its `number` largest pixels, of equal ones the first, as bits in rows of `across` words.

    The value of the last one is found byte by byte, from the highest: how many pixels have each value of a byte, of
    those that agree in the bytes above."""
    mask = tl.program_id(0).to(tl.int64)
    i = first + mask
    m = fourier.load(records, i, i >= 0)
    left = tl.minimum(m[1], pixels)
    if (left > 0) & is_made(m, decay, cutoff, KIND):
        source = field + mask * pixels
        edge = (left * 0).to(tl.uint32)
        equal = left * 0
        for byte in range(4):  # carries 3: left, edge, equal
            shift = (left * 0 + 24 - 8 * byte).to(tl.uint32)
            counts = tl.zeros([256], tl.int32)
            for start in range(0, pixels.to(tl.int64), N):  # carries 1: counts
                at = start + tl.arange(0, N)
                key = sortable(tl.load(source + at, mask=at < pixels, other=0.0))
                among = (at < pixels) & ((key >> shift >> 8) == edge)
                counts += tl.histogram(((key >> shift) & 255).to(tl.int32), 256, mask=among)
            above = tl.sum(counts, axis=0) - tl.cumsum(counts, axis=0)
            found = tl.sum((above >= left).to(tl.int32), axis=0)
            here = tl.arange(0, 256) == found
            left -= tl.sum(tl.where(here, above, 0), axis=0)
            equal = tl.sum(tl.where(here, counts, 0), axis=0)
            edge = (edge << 8) | found.to(tl.uint32)

        line, lane = tl.arange(0, N // 32), tl.arange(0, 32)[None, :]
        taken = left * 0
        for start in range(0, pixels.to(tl.int64), N):  # carries 1: taken
            at = start + line[:, None] * 32 + lane
            key = sortable(tl.load(source + at, mask=at < pixels, other=0.0))
            chosen = (at < pixels) & (key == edge)
            if left < equal:  # The first of the equal ones have fewer than `left` before them.
                each = chosen.to(tl.int32)
                of_line = tl.sum(each, axis=1)
                before = taken + tl.cumsum(of_line, axis=0) - of_line
                chosen = chosen & (before[:, None] + tl.cumsum(each, axis=1) <= left)
                taken += tl.sum(of_line, axis=0)
            chosen = chosen | ((at < pixels) & (key > edge))
            word = tl.sum(chosen.to(tl.int32) << lane, axis=1)
            to = start // 32 + line
            tl.store(out + i * across + to, word, mask=to < across)


@jit_kernel("out", "order")
def level_kernel(out, order, records, decay, cutoff, first, pixels, tiles, KIND: tl.constexpr, N: tl.constexpr):
    """Soft masks: of each pixel, in the order of the field, its level of 0..65535 by its rank (fourier.levels)."""
    program = tl.program_id(0).to(tl.int64)
    mask, tile = program // tiles, program % tiles
    i = first + mask
    m = fourier.load(records, i, i >= 0)
    if is_made(m, decay, cutoff, KIND):
        rank = tile * N + tl.arange(0, N)
        number, soft = m[1].to(tl.int64), m[2].to(tl.int64)
        steps = tl.maximum(2 * soft - 1, 1)
        left = tl.maximum(steps - (rank - (number - soft)), 0)
        level = tl.minimum((2 * 65535 * left + steps) // (2 * steps), 65535)
        level = tl.where(rank < number - soft, 65535, tl.where(rank >= number + soft, 0, level))
        pixel = tl.load(order + mask * pixels + rank, mask=rank < pixels, other=0)
        tl.store(out + i * pixels + pixel, level.to(tl.int32).to(tl.int16), mask=rank < pixels)
