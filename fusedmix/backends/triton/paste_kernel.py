"""Boxes into which crops of other samples are pasted: the kernel, which paste_launch.py launches.

The meaning is fusedmix/backends/gathers.py, `paste`. A program has N vectors of V elements of one sample, [1, N, V] as
in mix_kernel.py: 16 bytes wherever the memory allows. So much is copied at a time of what no box covers; what is in a
box is gathered from the crop, element by element. A pixel is of the last patch whose box it is in, so each is gathered
once, whatever boxes lie one upon another.

What only the host could refuse: a patch whose crop is empty, or whose partner there is not, paints nothing; of a crop
that is not within the images the pixels at their edge are taken. Nothing outside of the batch is touched.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.backends.triton.blend_kernel import narrowed
from fusedmix.backends.triton.enums import Resizes
from fusedmix.backends.triton.masks import box
from fusedmix.backends.triton.mix_kernel import coordinates, of_sample, place
from fusedmix.backends.triton.numbers import jit_kernel, one_of, to_compute

# ---- One axis --------------------------------------------------------------------------------------------------------


@triton.jit
def ends(sides, at, AXIS: tl.constexpr, NDIM: tl.constexpr, WIDE: tl.constexpr):
    first, stop = tl.load(sides + at * (2 * NDIM) + AXIS), tl.load(sides + at * (2 * NDIM) + NDIM + AXIS)
    if WIDE:
        first, stop = first.to(tl.int64), stop.to(tl.int64)
    return first, stop


@triton.jit
def span(boxes, crops, at, there, AXIS: tl.constexpr, NDIM: tl.constexpr, WIDE: tl.constexpr):
    """Along an axis: where the box of patch `at` begins, and how many pixels it has, none if it paints nothing; and the
    same of the crop."""
    first, stop = ends(boxes, at, AXIS, NDIM, WIDE)
    start, end = ends(crops, at, AXIS, NDIM, WIDE)
    return first, tl.where(there & (start < end), stop - first, 0), start, end - start


@triton.jit
def origin(c, n, m, MODE: tl.constexpr):
    """Of the places c in n pixels, in a crop of m pixels: which two pixels they lie between, and how far they are from
    the first to the second, as a numerator and a denominator. Exact in integers of 32 bits, if no side has more than
    15 bits, else of 64."""
    if MODE == Resizes.NEAREST:
        numerator, denominator = c * m, n
    elif MODE == Resizes.LINEAR:
        numerator, denominator = tl.maximum((2 * c + 1) * m - n, 0), 2 * n
    else:
        numerator, denominator = c * (m - 1), tl.maximum(n - 1, 1)
    low = numerator // denominator
    rest = numerator - low * denominator
    high = tl.minimum(low + 1, m - 1)
    return low, high, tl.where(low == high, 0, rest), denominator


@triton.jit
def away(source, c, side, step):
    """How many elements a pixel of the source is from the place c along an axis."""
    return (tl.minimum(tl.maximum(source, 0), side - 1) - c) * step


@triton.jit
def between(a, b, share):
    """a + share·(b-a); a where the share is 0, whatever stands in b."""
    return tl.where(share == 0.0, a, a + share.to(a.dtype) * (b - a))


# ---- The new batch ---------------------------------------------------------------------------------------------------


@triton.jit
def gathered(pixel, steps, places, axes, inside, MODE: tl.constexpr, NDIM: tl.constexpr):
    """What the pixels of boxes show.

    Args:
        pixel: where each would be if its place in the crop's sample was its own.
        places: (z, y, x) of each.
        axes: of every axis, where the boxes begin, how many pixels they have, the same of the crops, and of the images.
    """
    low, high, shares = (), (), ()
    for axis in tl.static_range(NDIM):
        c, step = places[3 - NDIM + axis], steps[3 - NDIM + axis]
        first, n, start, m, side = axes[axis]
        near, far, rest, of = origin(c - first, n, m, MODE)
        low = low + (away(start + near, c, side, step),)  # type: ignore[assignment]
        if MODE != Resizes.NEAREST:
            high = high + (away(start + far, c, side, step),)  # type: ignore[assignment]
            shares = shares + (tl.div_rn(rest.to(tl.float32), of.to(tl.float32)),)  # type: ignore[assignment]
    if MODE == Resizes.NEAREST:
        for axis in tl.static_range(NDIM):
            pixel += low[axis]
        found = tl.load(pixel, mask=inside)
    else:
        # Of the corners the first axis is the highest bit.
        corners, values = (), ()
        for corner in tl.static_range(2**NDIM):
            at = pixel
            for axis in tl.static_range(NDIM):
                at += high[axis] if (corner >> (NDIM - 1 - axis)) & 1 else low[axis]
            corners = corners + (tl.load(at, mask=inside, other=0),)  # type: ignore[assignment]
            values = values + (to_compute(corners[corner]),)  # type: ignore[assignment]
        exact = inside
        for back in tl.static_range(NDIM):
            halves = ()
            share = shares[NDIM - 1 - back]  # type: ignore[var-annotated]
            for pair in tl.static_range(2 ** (NDIM - 1 - back)):
                halves = halves + (between(values[2 * pair], values[2 * pair + 1], share),)  # type: ignore[assignment]
            values, exact = halves, exact & (share == 0.0)
        # A NaN that nothing is added to keeps its bits.
        found = tl.where(exact, corners[0], narrowed(values[0], pixel.dtype.element_ty))  # type: ignore[misc]
    return found


@triton.jit
def covered(spans, places, COUNT: tl.constexpr, NDIM: tl.constexpr):
    """Of which patch each pixel is, -1: of none."""
    z, y, x = places
    which = tl.zeros_like(z + y + x).to(tl.int32) - 1
    for k in tl.static_range(COUNT):
        inside = True
        for axis in tl.static_range(NDIM):
            first, n, _, _ = spans[axis]
            inside = box.inside(places[3 - NDIM + axis], first[k], first[k] + n[k]) & inside
        which = tl.where(inside, k, which)
    return which


@jit_kernel("src", "dst")
def paste_kernel(
    src, dst, partner, boxes, crops, sizes, src_strides, dst_strides, src_batch, dst_batch, step_z, step_y, step_x,
    columns, batch, depth, height, width,
    MODE: tl.constexpr, COUNT: tl.constexpr, NDIM: tl.constexpr, WIDE: tl.constexpr, AXES: tl.constexpr,
    RANK: tl.constexpr, INNER: tl.constexpr, V: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The new batch, COUNT patches a sample, the last over the others. A step along an axis is so many elements.
    WIDE: whether 32 bits are too few to say where a pixel of a sample comes from."""
    tile, sample = tl.program_id(0) // batch, tl.program_id(0) % batch
    column = ((tile + 0 * columns) * N + tl.arange(0, N))[None, :, None]  # 64 bits, if `columns` has them.
    lane = tl.arange(0, V)[None, None, :]
    live = (column >= 0) & (column < columns)  # Beyond 32 bits it is negative.
    source = src + (place(column, sizes, src_strides, RANK) * V + lane)
    target = dst + (place(column, sizes, dst_strides, RANK) * V + lane)
    i = sample.to(tl.int64)
    sides, steps = (depth, height, width), (step_z, step_y, step_x)

    partners, spans = (), ()
    for k in tl.static_range(COUNT):
        partners = partners + (tl.load(partner + i * COUNT + k),)  # type: ignore[assignment]
    for axis in tl.static_range(NDIM):
        first, n, start, m = (), (), (), ()
        for k in tl.static_range(COUNT):
            there = (partners[k] >= 0) & (partners[k] < batch)
            of = span(boxes, crops, i * COUNT + k, there, axis, NDIM, WIDE)
            first, n, start, m = first + (of[0],), n + (of[1],), start + (of[2],), m + (of[3],)  # type: ignore[assignment]
        spans = spans + ((first, n, start, m),)  # type: ignore[assignment]

    places = coordinates(column, lane, sizes, AXES, RANK, V, INNER)
    which = covered(spans, places, COUNT, NDIM)
    low = covered(spans, coordinates(column, 0, sizes, AXES, RANK, V, INNER), COUNT, NDIM)
    high = covered(spans, coordinates(column, V - 1, sizes, AXES, RANK, V, INNER), COUNT, NDIM)
    whole = (low >= 0) & (low == high)  # In a row, so is all that is between.
    inside = live & (which >= 0)

    axes = ()
    for axis in tl.static_range(NDIM):
        first, n, start, m = spans[axis]
        of = (
            one_of(first, which, COUNT), tl.maximum(one_of(n, which, COUNT), 1),
            one_of(start, which, COUNT), one_of(m, which, COUNT), sides[3 - NDIM + axis],
        )  # fmt: skip
        axes = axes + (of,)  # type: ignore[assignment]
    a = tl.load(of_sample(source, i, src_batch, V), mask=live & ~whole)
    pixel = source + one_of(partners, which, COUNT) * src_batch * V
    b = gathered(pixel, steps, places, axes, inside, MODE, NDIM)
    tl.store(of_sample(target, i, dst_batch, V), tl.where(inside, b, a), mask=live)
