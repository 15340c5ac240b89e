"""Masks, blends and their adjoint: the kernels, which mix_launch.py launches.

M ⊙ x + (1-M) ⊙ x[partner] (Park, Yun, Chun, "A Unified Analysis of Mixed Sample Data Augmentation", NeurIPS 2022,
eq. 1); the meaning is fusedmix/backends/reference.py, `mix` and `mix_adjoint`.

A program has N vectors of V elements, at the same place of R samples at a time: blocks [R, N, V]. Of what a batch needs
there are four shapes:

EACH    out of place, whatever the partners: R samples, which are loaded with their partners. Where the partner is the
        neighbour programs go through one sample after the other, elsewhere through a place of all samples before the
        next one: so the partner is in the L2 cache, and memory is read once. The adjoint is that with the inverse.
PAIRS   in place, by flip: both samples of a pair.
ROLL    in place, by roll: from the last sample to the first, R at a time. The last one is kept for the first.
TILE    in place, any partners: all samples, in PARTS of R. All that is read is read before a barrier, and all that is
        written after it, so that only results wait.

A batch of which no program can hold a place of all samples is mixed in place by EACH into a slice of scratch, which is
copied back, slice after slice (mix_launch.py, `_in_slices`).

V elements are 16 bytes wherever the memory allows. What is asked of a vector (is its sample needed? its partner?) is
decided for the vector, [R, N, 1], never for an element, so that accesses stay 16 bytes wide: in place a box is widened
to whole vectors, the elements around it being written back as they were read.

What the masks of a family are is in masks/. FAMILIES is the set of those that there may be; of the others nothing is
compiled.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.backends.triton import masks
from fusedmix.backends.triton.enums import Pairings, Shapes
from fusedmix.backends.triton.masks import fourier, record
from fusedmix.backends.triton.numbers import (
    by_vector,
    fma,
    from_compute,
    from_raised,
    is_integer,
    jit_kernel,
    known,
    least_of,
    most_of,
    partner_of,
    to_compute,
)

# ---- One pixel -------------------------------------------------------------------------------------------------------


@triton.jit
def blend(w, a, b):
    """w·(a-b) + b rounded once; exactly a where w = 1 or a = b, and b where w = 0, whatever stands in the other."""
    x, y = to_compute(a), to_compute(b)
    if is_integer(a.dtype):  # One rounding, of the exact sum.
        near = fma(w, x - y, y + 12582912.0)
        near = tl.minimum(tl.maximum(near, 12582912.0 + least_of(a.dtype)), 12582912.0 + most_of(a.dtype))
        mixed = from_raised(near, a.dtype)
    else:  # Infinities, and zeros of two signs, would not come out of the sum as they are.
        mixed = from_compute(fma(w.to(x.dtype), x - y, y), a.dtype)
        mixed = tl.where((w == 1.0) | (x == y), a, mixed)
        mixed = tl.where(w == 0.0, b, mixed)
    return mixed


@triton.jit
def blend_adjoint(own, g, lent, h):
    """own·g + (1-lent)·h in float64, rounded once to the compute type; a weight of 0 takes nothing."""
    own, lent = own.to(tl.float64), 1.0 - lent.to(tl.float64)
    kept = tl.where(own == 0.0, 0.0, own * to_compute(g).to(tl.float64))
    given = tl.where(lent == 0.0, 0.0, lent * to_compute(h).to(tl.float64))
    total = kept + given
    if g.dtype == tl.float64:
        out = total
    else:
        out = from_compute(total.to(tl.float32), g.dtype)
    return out


# ---- A vector --------------------------------------------------------------------------------------------------------


@triton.jit
def place(column, sizes, strides, RANK: tl.constexpr):
    """Where vectors of a sample begin, in vectors."""
    offset = tl.zeros_like(column).to(tl.int64)
    rest = column
    for back in tl.static_range(RANK):
        if back == RANK - 1:
            offset += rest.to(tl.int64) * strides[0]
        else:
            offset += (rest % sizes[RANK - 1 - back]).to(tl.int64) * strides[RANK - 1 - back]
            rest = rest // sizes[RANK - 1 - back]
    return offset


@triton.jit
def coordinates(column, lane, sizes, AXES: tl.constexpr, RANK: tl.constexpr, V: tl.constexpr, INNER: tl.constexpr):
    """(z, y, x) of the elements `lane` of every vector; those of the axis along the row differ within a vector."""
    z, y, x = tl.zeros_like(column), tl.zeros_like(column), tl.zeros_like(column)
    rest = column
    for back in tl.static_range(RANK):
        c = rest % sizes[RANK - 1 - back]
        rest = rest // sizes[RANK - 1 - back]
        if back == 0:
            c = (c * V + lane) // INNER
        if AXES[RANK - 1 - back] == 0:
            z = c
        if AXES[RANK - 1 - back] == 1:
            y = c
        if AXES[RANK - 1 - back] == 2:
            x = c
    return z, y, x


@triton.jit
def of_sample(first, i, batch_stride, V: tl.constexpr):
    """Where the vectors of samples i are, [R, N, V]."""
    return by_vector(first, i * batch_stride * V, V)


# ---- Samples ---------------------------------------------------------------------------------------------------------


@triton.jit
def reached(i, live, plan, vectors, MASKS: tl.constexpr, FAMILIES: tl.constexpr, BINARY: tl.constexpr,
            IN_PLACE: tl.constexpr, AXIS: tl.constexpr, INNER: tl.constexpr):  # fmt: skip
    """The masks of samples i, and of which of their vectors [R, N, 1] the sample is needed and the partner. In place
    nothing happens to a vector that takes nothing of the partner."""
    records, given, stored = plan
    mask = record.load(i, records, given, stored, MASKS, BINARY)
    own, lent = masks.reach(mask, vectors, live, FAMILIES, AXIS, INNER)
    if IN_PLACE:
        own = own & lent
    return mask, own, lent


@triton.jit
def mixed(mask, a, b, vectors, FAMILIES: tl.constexpr, BINARY: tl.constexpr, AXIS: tl.constexpr, INNER: tl.constexpr):
    w = tl.broadcast_to(masks.at(mask, vectors, FAMILIES, AXIS, INNER), a.shape)
    return tl.where(w == 1.0, a, b) if BINARY else blend(w, a, b)


@triton.jit
def part(s, kept, images, within, partner, plan, vectors, SHAPE: tl.constexpr, PAIRING: tl.constexpr,
         MASKS: tl.constexpr, FAMILIES: tl.constexpr, BINARY: tl.constexpr, AXIS: tl.constexpr, INNER: tl.constexpr,
         V: tl.constexpr):  # fmt: skip
    """R samples from s on [R, 1, 1]: their numbers, what becomes of them, and which vectors are to be written in place.
    `kept`: the last sample, if it has been overwritten."""
    source, _, src_batch, _, batch = images
    i = tl.minimum(s, batch - 1).to(tl.int64)
    j = partner_of(i, partner, batch, PAIRING)
    live = (s < batch) & within
    mask, own, lent = reached(i, live, plan, vectors, MASKS, FAMILIES, BINARY, SHAPE != Shapes.EACH, AXIS, INNER)
    if SHAPE != Shapes.EACH:  # A sample that is its own partner stays as it is.
        lent = lent & (i != j)
    a = tl.load(of_sample(source, i, src_batch, V), mask=own)
    if SHAPE == Shapes.ROLL:
        b = tl.load(of_sample(source, j, src_batch, V), mask=lent & (i > 0))
        b = tl.where(i == 0, kept, b)
    else:
        b = tl.load(of_sample(source, j, src_batch, V), mask=lent)
    return i, mixed(mask, a, b, vectors, FAMILIES, BINARY, AXIS, INNER), lent


@triton.jit
def vectors_of(column, lane, sizes, height, width, AXES: tl.constexpr, RANK: tl.constexpr, V: tl.constexpr,
               INNER: tl.constexpr):  # fmt: skip
    """Vectors as masks take them: (z, y, x) of the elements, of the first and of the last of each; and for masks that
    are stored the pixels, how far along x each is from the first, the first and the last."""
    place = coordinates(column, lane, sizes, AXES, RANK, V, INNER)
    low = coordinates(column, 0, sizes, AXES, RANK, V, INNER)
    high = coordinates(column, V - 1, sizes, AXES, RANK, V, INNER)
    z, y, x = place
    zl, yl, xl = low
    zh, yh, xh = high
    spots = (
        fourier.pixel_of(z, y, x, height, width),
        (x - xl).to(tl.int32),
        fourier.pixel_of(zl, yl, xl, height, width),
        fourier.pixel_of(zh, yh, xh, height, width),
    )
    return place, low, high, spots


# ---- Ways through a batch --------------------------------------------------------------------------------------------


@triton.jit
def adjoint_of_each(images, sample, within, partner, plan, vectors, PAIRING: tl.constexpr, MASKS: tl.constexpr,
                    FAMILIES: tl.constexpr, BINARY: tl.constexpr, AXIS: tl.constexpr, INNER: tl.constexpr,
                    V: tl.constexpr):  # fmt: skip
    source, target, src_batch, dst_batch, batch = images
    records, given, stored = plan
    i = tl.minimum(sample, batch - 1).to(tl.int64)
    live = (sample < batch) & within
    if PAIRING == Pairings.ROLL:
        j = tl.where(i == batch - 1, 0, i + 1)
    else:
        j = partner_of(i, partner, batch, PAIRING)
    g = tl.load(of_sample(source, i, src_batch, V), mask=live)
    h = tl.load(of_sample(source, j, src_batch, V), mask=live)
    mask_i = record.load(i, records, given, stored, MASKS, BINARY)
    mask_j = record.load(j, records, given, stored, MASKS, BINARY)
    own = tl.broadcast_to(masks.at(mask_i, vectors, FAMILIES, AXIS, INNER), g.shape)
    lent = tl.broadcast_to(masks.at(mask_j, vectors, FAMILIES, AXIS, INNER), g.shape)
    tl.store(of_sample(target, i, dst_batch, V), blend_adjoint(own, g, lent, h), mask=live)


@triton.jit
def pairs(images, sample, within, plan, vectors, MASKS: tl.constexpr, FAMILIES: tl.constexpr, BINARY: tl.constexpr,
          AXIS: tl.constexpr, INNER: tl.constexpr, V: tl.constexpr):  # fmt: skip
    source, target, src_batch, dst_batch, batch = images
    i = tl.minimum(sample, batch - 1).to(tl.int64)
    j = batch - 1 - i
    live = (i < j) & within
    mask_i, own_i, lent_i = reached(i, live, plan, vectors, MASKS, FAMILIES, BINARY, True, AXIS, INNER)
    mask_j, own_j, lent_j = reached(j, live, plan, vectors, MASKS, FAMILIES, BINARY, True, AXIS, INNER)
    a = tl.load(of_sample(source, i, src_batch, V), mask=own_i | lent_j)
    b = tl.load(of_sample(source, j, src_batch, V), mask=own_j | lent_i)
    out_i = mixed(mask_i, a, b, vectors, FAMILIES, BINARY, AXIS, INNER)
    out_j = mixed(mask_j, b, a, vectors, FAMILIES, BINARY, AXIS, INNER)
    tl.store(of_sample(target, i, dst_batch, V), out_i, mask=lent_i)
    tl.store(of_sample(target, j, dst_batch, V), out_j, mask=lent_j)


@jit_kernel("src", "dst")
def mix_kernel(
    src, dst, partner, records,
    word_0, word_1, word_2, word_3, word_4, word_5, word_6, word_7, word_8, word_9, word_10, word_11,
    sizes, src_strides, dst_strides, src_batch, dst_batch, src_first, dst_first, first, columns, tiles, batch,
    pixels, across, rows, height, width,
    PAIRING: tl.constexpr, MASKS: tl.constexpr, FAMILIES: tl.constexpr, ADJOINT: tl.constexpr,
    BINARY: tl.constexpr, SHAPE: tl.constexpr, AXES: tl.constexpr, RANK: tl.constexpr,
    INNER: tl.constexpr, V: tl.constexpr, R: tl.constexpr, PARTS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The batch, or the adjoint of that, from vector `first` of every sample to `columns`. Stored masks are in rows of
    `across` pixels. BINARY: whether every mask is 0 or 1 everywhere."""
    given = (word_0, word_1, word_2, word_3, word_4, word_5, word_6, word_7, word_8, word_9, word_10, word_11)
    program, groups = tl.program_id(0), tl.cdiv(batch, R)
    if SHAPE == Shapes.TILE or SHAPE == Shapes.ROLL:
        tile, group = program, 0
    elif SHAPE == Shapes.EACH and PAIRING != Pairings.ROLL:
        tile, group = program // groups, program % groups
    else:
        tile, group = program % tiles, program // tiles
    column = first + ((tile + 0 * columns) * N + tl.arange(0, N))[None, :, None]  # 64 bits, if `columns` has them.
    lane = tl.arange(0, V)[None, None, :]
    sample = (group * R + tl.arange(0, R))[:, None, None]
    within = (column >= 0) & (column < columns)  # Beyond 32 bits it is negative.
    source = src + ((place(column, sizes, src_strides, RANK) - src_first) * V + lane)
    target = dst + ((place(column, sizes, dst_strides, RANK) - dst_first) * V + lane)
    AXIS: tl.constexpr = AXES[RANK - 1]
    vectors = vectors_of(column, lane, sizes, height, width, AXES, RANK, V, INNER)
    images, plan = (source, target, src_batch, dst_batch, batch), (records, given, (pixels, across, rows, batch))

    if SHAPE == Shapes.EACH and ADJOINT:
        adjoint_of_each(images, sample, within, partner, plan, vectors,
                        PAIRING, MASKS, FAMILIES, BINARY, AXIS, INNER, V)  # fmt: skip
    elif SHAPE == Shapes.EACH:
        i, out, _ = part(sample, 0, images, within, partner, plan, vectors,
                         SHAPE, PAIRING, MASKS, FAMILIES, BINARY, AXIS, INNER, V)  # fmt: skip
        tl.store(of_sample(target, i, dst_batch, V), out, mask=(sample < batch) & within)
    elif SHAPE == Shapes.PAIRS:
        pairs(images, sample, within, plan, vectors, MASKS, FAMILIES, BINARY, AXIS, INNER, V)
    elif SHAPE == Shapes.ROLL:
        begin = tl.full([1, 1, 1], 0, tl.int64)
        _, _, lent = reached(begin, within, plan, vectors, MASKS, FAMILIES, BINARY, True, AXIS, INNER)
        kept = tl.load(of_sample(source, begin + batch - 1, src_batch, V), mask=lent)
        for back in range(groups):  # carries 0: nothing
            s = (groups - 1 - back) * R + sample
            i, out, wanted = part(s, kept, images, within, partner, plan, vectors,
                                  SHAPE, PAIRING, MASKS, FAMILIES, BINARY, AXIS, INNER, V)  # fmt: skip
            tl.debug_barrier()
            tl.store(of_sample(target, i, dst_batch, V), out, mask=wanted)
    else:
        numbers, outs, wanted = (), (), ()
        for k in tl.static_range(PARTS):
            i, out, lent = part(k * R + sample, 0, images, within, partner, plan, vectors,
                                SHAPE, PAIRING, MASKS, FAMILIES, BINARY, AXIS, INNER, V)  # fmt: skip
            numbers, outs, wanted = numbers + (i,), outs + (out,), wanted + (lent,)  # type: ignore[assignment]
        tl.debug_barrier()
        for k in tl.static_range(PARTS):
            tl.store(of_sample(target, numbers[k], dst_batch, V), outs[k], mask=wanted[k])


@jit_kernel()
def inverse_kernel(inverse, partner, batch, N: tl.constexpr):
    """Whose partner each sample is, (B,)."""
    i = (tl.program_id(0) * N + tl.arange(0, N)).to(tl.int64)
    live = i < batch
    tl.store(inverse + known(tl.load(partner + i, mask=live, other=0), i, batch), i, mask=live)


@jit_kernel("out")
def mask_kernel(out, records, height, width, total, tiles, pixels, across, rows, batch,
                FAMILIES: tl.constexpr, MASKS: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """Masks written out, for looking at: (batch, total), each of its pixels a vector."""
    program = tl.program_id(0).to(tl.int64)
    i = program // tiles
    pixel = (program % tiles * N + tl.arange(0, N))[None, :, None]
    place = pixel // width // height, pixel // width % height, pixel % width
    mask = record.load(i, records, records, (pixels, across, rows, batch), MASKS, False)
    spot = tl.minimum(pixel, total - 1).to(tl.int32)
    w = masks.at(mask, (place, place, place, (spot, spot, spot, spot)), FAMILIES, 0, 1)
    tl.store(out + i * total + pixel, w, mask=pixel < total)
