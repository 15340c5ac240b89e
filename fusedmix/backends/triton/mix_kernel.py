"""Masks, blends and their adjoint: the kernels, and how they are launched.

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
copied back, slice after slice (`_in_slices`).

V elements are 16 bytes wherever the memory allows. What is asked of a vector (is its sample needed? its partner?) is
decided for the vector, [R, N, 1], never for an element, so that accesses stay 16 bytes wide: in place a box is widened
to whole vectors, the elements around it being written back as they were read.

What the masks of a family are is in masks/. FAMILIES is the set of those that there may be; of the others nothing is
compiled.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedmix.backends.triton import masks
from fusedmix.backends.triton.enums import Families, Pairings, Shape, Shapes
from fusedmix.backends.triton.launch import Kernel, brought, by_formula, milliseconds, multiprocessors, pairing_of
from fusedmix.backends.triton.masks import fourier, record
from fusedmix.backends.triton.numbers import by_vector, fma, from_compute, known, partner_of, to_compute
from fusedmix.masks.constant import constant
from fusedmix.masks.family import WORDS, padded
from fusedmix.masks.family import record as record_of
from fusedmix.methods import Pairing, Per

# ---- One pixel -------------------------------------------------------------------------------------------------------


@triton.jit
def blend(w, a, b):
    """w·(a-b) + b rounded once; exactly a where w = 1 or a = b, and b where w = 0, whatever stands in the other."""
    x, y = to_compute(a), to_compute(b)
    if a.dtype == tl.uint8:
        # Near 1.5·2^23 the numbers of float32 are the integers: one rounding, of the exact sum, to the nearest of them,
        # ties to even. The last byte is the result.
        near = fma(w, x - y, y + 12582912.0)
        near = tl.minimum(tl.maximum(near, 12582912.0), 12583167.0)
        mixed = near.to(tl.int32, bitcast=True).to(tl.uint8)
    else:  # of infinities and -0 the sum is another number
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
def part(s, kept, source, src_batch, batch, within, partner, plan, vectors, SHAPE: tl.constexpr, PAIRING: tl.constexpr,
         MASKS: tl.constexpr, FAMILIES: tl.constexpr, BINARY: tl.constexpr, AXIS: tl.constexpr,
         INNER: tl.constexpr, V: tl.constexpr):  # fmt: skip
    """R samples from s on [R, 1, 1]: their numbers, what becomes of them, and which vectors are to be written in place.
    `kept`: the last sample, if it has been overwritten."""
    i = tl.minimum(s, batch - 1).to(tl.int64)
    j = partner_of(i, partner, batch, PAIRING)
    live = (s < batch) & within
    mask, own, lent = reached(i, live, plan, vectors, MASKS, FAMILIES, BINARY, SHAPE != Shapes.EACH, AXIS, INNER)
    if SHAPE != Shapes.EACH:  # nothing happens to a sample that is its own partner
        lent = lent & (i != j)
    a = tl.load(of_sample(source, i, src_batch, V), mask=own)
    if SHAPE == Shapes.ROLL:
        b = tl.load(of_sample(source, j, src_batch, V), mask=lent & (i > 0))
        b = tl.where(i == 0, kept, b)
    else:
        b = tl.load(of_sample(source, j, src_batch, V), mask=lent)
    return i, mixed(mask, a, b, vectors, FAMILIES, BINARY, AXIS, INNER), lent


@triton.jit(
    do_not_specialize=[
        *(f"word_{k}" for k in range(12)), "sizes", "src_strides", "dst_strides", "src_batch", "dst_batch",
        "src_first", "dst_first", "first", "columns", "tiles", "batch", "across", "rows", "height", "width",
    ],
    do_not_specialize_on_alignment=["partner", "records", "pixels"],
)  # fmt: skip
def mix_kernel(
    src, dst, partner, records,
    word_0, word_1, word_2, word_3, word_4, word_5, word_6, word_7, word_8, word_9, word_10, word_11,
    sizes, src_strides, dst_strides, src_batch, dst_batch, src_first, dst_first, first, columns, tiles, batch,
    pixels, across, rows, height, width,
    PAIRING: tl.constexpr, MASKS: tl.constexpr, FAMILIES: tl.constexpr, ADJOINT: tl.constexpr,
    BINARY: tl.constexpr, SHAPE: tl.constexpr, AXES: tl.constexpr, RANK: tl.constexpr,
    INNER: tl.constexpr, V: tl.constexpr, R: tl.constexpr, PARTS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The batch, or the adjoint of that, from vector `first` of every sample to `columns`.

    BINARY: whether every mask is 0 or 1 everywhere."""
    given = (word_0, word_1, word_2, word_3, word_4, word_5, word_6, word_7, word_8, word_9, word_10, word_11)
    program, groups = tl.program_id(0), tl.cdiv(batch, R)
    if SHAPE == Shapes.TILE or SHAPE == Shapes.ROLL:
        tile, group = program, 0
    elif SHAPE == Shapes.EACH and PAIRING != Pairings.ROLL:
        tile, group = program // groups, program % groups
    else:
        tile, group = program % tiles, program // tiles
    column = first + ((tile + 0 * columns) * N + tl.arange(0, N))[None, :, None]  # 64 bits only if columns has
    lane = tl.arange(0, V)[None, None, :]
    sample = (group * R + tl.arange(0, R))[:, None, None]
    within = (column >= 0) & (column < columns)  # not beyond what 32 bits hold
    source = src + ((place(column, sizes, src_strides, RANK) - src_first) * V + lane)
    target = dst + ((place(column, sizes, dst_strides, RANK) - dst_first) * V + lane)
    z, y, x = coordinates(column, lane, sizes, AXES, RANK, V, INNER)
    low = coordinates(column, 0, sizes, AXES, RANK, V, INNER)
    high = coordinates(column, V - 1, sizes, AXES, RANK, V, INNER)
    # Stored masks: `rows` rows of `across` elements; and the pixels of every vector, how far along x each is from the
    # first, the first and the last.
    AXIS: tl.constexpr = AXES[RANK - 1]
    zl, yl, xl = low
    zh, yh, xh = high
    spots = (
        fourier.pixel_of(z, y, x, height, width),
        (x - xl).to(tl.int32),
        fourier.pixel_of(zl, yl, xl, height, width),
        fourier.pixel_of(zh, yh, xh, height, width),
    )
    vectors = ((z, y, x), low, high, spots)
    stored = (pixels, across, rows, batch)
    plan = (records, given, stored)

    if SHAPE == Shapes.EACH and ADJOINT:
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
    elif SHAPE == Shapes.EACH:
        i, out, _ = part(sample, 0, source, src_batch, batch, within, partner, plan, vectors,
                         SHAPE, PAIRING, MASKS, FAMILIES, BINARY, AXIS, INNER, V)  # fmt: skip
        tl.store(of_sample(target, i, dst_batch, V), out, mask=(sample < batch) & within)
    elif SHAPE == Shapes.PAIRS:
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
    elif SHAPE == Shapes.ROLL:
        begin = tl.full([1, 1, 1], 0, tl.int64)
        _, _, lent = reached(begin, within, plan, vectors, MASKS, FAMILIES, BINARY, True, AXIS, INNER)
        kept = tl.load(of_sample(source, begin + batch - 1, src_batch, V), mask=lent)
        for back in range(groups):  # carries 0: nothing
            s = (groups - 1 - back) * R + sample
            i, out, wanted = part(s, kept, source, src_batch, batch, within, partner, plan, vectors,
                                  SHAPE, PAIRING, MASKS, FAMILIES, BINARY, AXIS, INNER, V)  # fmt: skip
            tl.debug_barrier()
            tl.store(of_sample(target, i, dst_batch, V), out, mask=wanted)
    else:
        numbers, outs, wanted = (), (), ()
        for k in tl.static_range(PARTS):
            i, out, lent = part(k * R + sample, 0, source, src_batch, batch, within, partner, plan, vectors,
                                SHAPE, PAIRING, MASKS, FAMILIES, BINARY, AXIS, INNER, V)  # fmt: skip
            numbers, outs, wanted = numbers + (i,), outs + (out,), wanted + (lent,)  # type: ignore[assignment]
        tl.debug_barrier()
        for k in tl.static_range(PARTS):
            tl.store(of_sample(target, numbers[k], dst_batch, V), outs[k], mask=wanted[k])


@triton.jit(do_not_specialize=["batch"], do_not_specialize_on_alignment=["partner", "inverse"])
def inverse_kernel(inverse, partner, batch, N: tl.constexpr):
    """Whose partner each sample is, (B,)."""
    i = (tl.program_id(0) * N + tl.arange(0, N)).to(tl.int64)
    live = i < batch
    tl.store(inverse + known(tl.load(partner + i, mask=live, other=0), i, batch), i, mask=live)


@triton.jit(
    do_not_specialize=["height", "width", "total", "tiles", "across", "rows", "batch"],
    do_not_specialize_on_alignment=["records", "pixels"],
)
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


# ---- How a launch goes through a batch -------------------------------------------------------------------------------

# As numbers: the arithmetic of flags takes microseconds.
_BINARY = int(Families.CUTS | Families.STORED | Families.LARGE_CELLS)  # every mask is 0 or 1 everywhere
_EASY = int(Families.CONSTANTS | Families.CUTS | Families.BOXES | Families.GAUSSIANS | Families.STORED)
_OF_PIXELS = int(Families.STORED | Families.LEVELS)
_LEAST_COLUMN = 32  # bytes of a sample that are worth a program of TILE: memory moves no less at a time
_SLICE = 16 << 20  # bytes of scratch


class Cut(NamedTuple):
    """How a shape divides a batch among programs."""

    shape: Shape
    rows: int  # R
    parts: int  # PARTS
    vectors: int  # N
    warps: int


class Way(NamedTuple):
    """How a launch goes through a batch. Strides are in vectors, so that a kernel knows that all are multiples of V."""

    sizes: tuple[int, ...]
    src_strides: tuple[int, ...]
    dst_strides: tuple[int, ...]
    src_batch: int
    dst_batch: int
    columns: int  # vectors of a sample
    tiles: int  # programs across a sample
    batch: int
    cut: Cut
    programs: int
    slice: int  # vectors of a sample that are mixed at a time, in scratch; 0: all, without
    area: tuple[int, ...]  # height and width of the images
    constants: tuple[Any, ...]  # SHAPE, AXES, RANK, INNER, V, R, PARTS, N


def cuts(
    batch: int, columns: int, item: int, width: int, pairing: int, families: int, in_place: bool, chips: int
) -> list[Cut]:
    """How a batch may be divided, the first choice first: this decides how fast it is mixed, and nothing else.

    A thread holds four vectors of 16 bytes, two where masks take many registers, or 8 elements where vectors are
    narrower. There are no more threads than vectors of R samples, or accesses would be narrower; and at least two for
    each sample, or what its vectors have in common, such as its mask, would go through shared memory.
    """
    light = families == Families.CONSTANTS or not families & ~_BINARY
    heavy = not light and (item == 1 or families & (families - 1) or families & ~_EASY)
    hold = max(1, 8 // width) if width * item < 16 else 2 if heavy else 4
    most = _power_of_two(columns)

    def cut(shape: Shape, rows: int, samples: int, threads: int) -> Cut:
        vectors = min(most, max(1, threads * hold // _power_of_two(samples)))
        if shape in (Shape.ROLL, Shape.TILE):  # narrower, where multiprocessors would be idle
            while columns < chips * vectors and vectors * width * item > 64 and vectors * rows > 128:
                vectors //= 2
        threads = min(threads, max(32, rows * vectors))
        parts = -(-samples // rows) if shape == Shape.TILE else 1
        return Cut(shape, rows, parts, vectors, threads // 32)

    few = _power_of_two(batch)
    if not in_place:
        found = [cut(Shape.EACH, *of) for of in ((2, 2, 128), (1, 2, 128), (1, 1, 128))]
    elif pairing == Pairing.FLIP:
        found = [cut(Shape.PAIRS, 1, samples, 128) for samples in (4, 2)]
    else:
        rows = min(few, 256)
        sizes = (1024, 512) if families == Families.CONSTANTS and item == 4 else (512, 1024)
        least = min(_LEAST_COLUMN, columns * width * item)
        found = [cut(Shape.TILE, rows, batch, min(threads, max(256, 4 * rows))) for threads in sizes]
        found = [of for of in found if of.vectors * width * item >= least]
        if pairing == Pairing.ROLL:
            found = [cut(Shape.ROLL, n, n, max(128, 4 * n)) for n in (min(few, 128), min(few, 64))] + found
    return list(dict.fromkeys(found))


def _power_of_two(n: int) -> int:
    """The smallest from n on."""
    return 1 << max(0, n - 1).bit_length()


@functools.lru_cache(maxsize=4096)
def way_of(
    shape: tuple[int, ...],
    src: tuple[int, ...],
    dst: tuple[int, ...],
    item: int,
    address: int,
    spatial: int,
    pairing: int,
    families: int,
    in_place: bool,
    chips: int,
    tuned: Cut | None = None,
) -> Way:
    """For a batch of that shape and those strides, its elements of `item` bytes, its memory beginning at multiples of
    `address` bytes, on so many multiprocessors. The last `spatial` dims are the axes that masks depend on. `tuned`: the
    cut, if that has been measured."""
    batch, ndim = shape[0], len(shape)
    # As csrc/include/fusedmix/layout.h: sorted by stride, dims behind each other merged.
    dims = [
        (shape[d], src[d], dst[d], 2 - (ndim - 1 - d) if ndim - 1 - d < spatial else -1)
        for d in range(1, ndim)
        if shape[d] != 1
    ]
    dims.sort(key=lambda dim: (-dim[2], -dim[1]))
    merged: list[tuple[int, int, int, int]] = []
    for size, s, t, axis in dims:
        if merged and axis < 0 and merged[-1][3] < 0 and merged[-1][1:3] == (s * size, t * size):
            merged[-1] = (merged[-1][0] * size, s, t, -1)
        else:
            merged.append((size, s, t, axis))
    merged = merged or [(1, 1, 1, -1)]
    # The row: the innermost dim, with the one above it where its elements share a pixel (channels_last).
    inner = 1
    if len(merged) > 1 and merged[-1][3] < 0 <= merged[-2][3]:
        size, s, t, _ = merged[-1]
        if merged[-2][1:3] == (s * size, t * size):
            inner = size
            merged[-2:] = [(merged[-2][0] * size, s, t, merged[-2][3])]
    length, s, t, axis = merged[-1]
    width = 1
    if s == t == 1:
        for wide in (16 // item, 4 // item):
            rest = [length, src[0], dst[0], *(stride for dim in merged[:-1] for stride in dim[1:3])]
            if wide > 1 and address % (wide * item) == 0 and all(n % wide == 0 for n in rest):
                width = wide
                break
    merged[-1] = (length // width, s * width, t * width, axis)
    sizes, src_strides, dst_strides, axes = zip(*merged, strict=True)
    columns = 1
    for size in sizes:
        columns *= size

    found = cuts(batch, columns, item, width, pairing, families, in_place, chips)
    # None where no program can hold a place of all samples: in slices, then, of a batch mixed out of place.
    cut = tuned or (found or cuts(batch, columns, item, width, pairing, families, False, chips))[0]
    tiles = -(-columns // cut.vectors)
    groups = {Shape.EACH: -(-batch // cut.rows), Shape.PAIRS: batch // 2}.get(cut.shape, min(batch - 1, 1))
    return Way(
        sizes,
        tuple(stride // width for stride in src_strides),
        tuple(stride // width for stride in dst_strides),
        src[0] // width,
        dst[0] // width,
        columns,
        tiles,
        batch,
        cut,
        tiles * groups,
        0 if found else max(1, _SLICE // (batch * width * item)),
        padded(shape[ndim - spatial :])[1:],
        (int(cut.shape), axes, len(sizes), inner, width, cut.rows, cut.parts, cut.vectors),
    )


def _way(src: Tensor, dst: Tensor, plan: Sequence[Any], families: int, adjoint: bool) -> Way:
    """How `src` is mixed into `dst`, in place if that is the same."""
    address = (src.data_ptr() | dst.data_ptr()) & 15 or 16
    batch = (
        *(tuple(src.shape), src.stride(), dst.stride(), src.element_size(), address & -address),
        *(plan[3], plan[4], families, src.data_ptr() == dst.data_ptr(), multiprocessors(src.device)),
    )
    key = (src.device, *batch)
    if os.environ.get("FUSEDMIX_TRITON_AUTOTUNE") == "1" and key not in _tuned:
        if not (src.is_cuda and torch.cuda.is_current_stream_capturing()):
            _tune(key, src, dst, plan, adjoint)
    return way_of(*batch, _tuned.get(key))


_tuned: dict[Any, Cut | None] = {}


def _tune(key: Any, src: Tensor, dst: Tensor, plan: Sequence[Any], adjoint: bool) -> None:
    """Measures, once for a kind of batch, how it had best be divided: on memory laid out as the batch."""
    x = _laid_out_as(src)
    out = x if src.data_ptr() == dst.data_ptr() else _laid_out_as(dst)
    way, times = way_of(*key[1:]), {}
    _tuned[key] = None
    for cut in cuts(way.batch, way.columns, src.element_size(), way.constants[4], *key[7:]):
        _tuned[key] = cut
        apply(x, out, plan, adjoint=adjoint)  # compiles
        times[cut] = milliseconds(lambda: apply(x, out, plan, adjoint=adjoint), src.device)
        _tuned[key] = min(times, key=lambda cut: times[cut])


def _laid_out_as(t: Tensor) -> Tensor:
    """Zeros in memory of their own: the shape, strides and alignment of t."""
    extent = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    shift = t.data_ptr() % 16 // t.element_size()
    return t.new_zeros(extent + shift).as_strided(t.shape, t.stride(), shift)


_mix = {warps: Kernel(mix_kernel, warps) for warps in (1, 2, 4, 8, 16, 32)}
_inverse, _mask = Kernel(inverse_kernel), Kernel(mask_kernel)
_NOTHING_GIVEN = (0,) * WORDS
_AS_IT_IS = tuple(record_of(constant(1.0, 1.0))[0].tolist())
_INVERSE_BLOCK = 128
_MASK_BLOCK = 1024


def apply(
    src: Tensor, dst: Tensor, plan: Sequence[Any], *, adjoint: bool = False, by_value: bool | None = None
) -> None:
    """Mixes `src` into `dst`, which may be `src` itself, but for the adjoint.

    Args:
        plan: what the operators take after x: partner, masks, families, ndim, pairing, per, pixels if there are any.
        by_value: whether one mask for the batch travels in the arguments; None: if it is on the CPU and src is not.
    """
    if src.numel() == 0:
        return
    partner, records, families, ndim, pairing, per, *rest = plan
    pixels = rest[0] if rest else None
    families = _compiled(families if ndim else Families.CONSTANTS, pixels)
    way = _way(src, dst, plan, families, adjoint)
    given, mode = _NOTHING_GIVEN, 1 if per == Per.BATCH else 0
    if mode == 1 and (records.device != src.device if by_value is None else by_value):
        given, mode, records = records[0].tolist(), 2, src  # not read
    else:
        records = brought(src.device, records)
    pairing = by_formula(pairing)
    partner = brought(src.device, partner) if pairing == Pairing.RANDOM else src
    if adjoint and pairing == Pairing.RANDOM:
        partner = _inverse_of(partner)
    if pixels is not None:
        pixels = brought(src.device, pixels)
    stored = (*_store(pixels, src), *way.area)
    constants = (pairing, mode, families, adjoint, not families & ~_BINARY, *way.constants)
    if way.slice:
        _in_slices(src, way, (partner, records, *given), stored, constants)
        return
    strides = (way.sizes, way.src_strides, way.dst_strides, way.src_batch, way.dst_batch, 0, 0, 0)
    arguments = (src, dst, partner, records, *given, *strides, way.columns, way.tiles, way.batch, *stored)
    _mix[way.cut.warps](way.programs, arguments, constants, src.device)


def _in_slices(x: Tensor, way: Way, plan: tuple[Any, ...], stored: tuple[Any, ...], constants: tuple[Any, ...]) -> None:
    """Mixes x in place: a slice of the vectors of all samples at a time into scratch, where they follow one another,
    and back, as what is mixed with nothing."""
    mix = _mix[way.cut.warps]
    aside = x.new_empty(way.batch * way.slice * way.constants[4])
    behind = tuple(math.prod(way.sizes[d + 1 :]) for d in range(len(way.sizes)))
    copied = (int(Pairing.ROLL), 2, Families.CONSTANTS, False, False, *way.constants)
    for first in range(0, way.columns, way.slice):
        stop = min(first + way.slice, way.columns)
        tiles = -(-(stop - first) // way.cut.vectors)
        programs = tiles * -(-way.batch // way.cut.rows)
        last = (first, stop, tiles, way.batch, *stored)
        there = (way.sizes, way.src_strides, behind, way.src_batch, way.slice, 0, first, *last)
        back = (way.sizes, behind, way.dst_strides, way.slice, way.dst_batch, first, 0, *last)
        mix(programs, (x, aside, *plan, *there), constants, x.device)
        mix(programs, (aside, x, aside, aside, *_AS_IT_IS, *back), copied, x.device)


def followed(plan: Sequence[Any]) -> tuple[Any, ...]:
    """What `apply` takes of a plan that anyone may have made."""
    partner, records, families, ndim, pairing, *rest = plan
    return (partner, records, families, ndim, pairing_of(partner, pairing), *rest)


def _inverse_of(partner: Tensor) -> Tensor:
    """Whose partner each sample is. Of what is no permutation there is no inverse, and no gradient: anything."""
    inverse = torch.empty_like(partner)
    programs = -(-partner.shape[0] // _INVERSE_BLOCK)
    _inverse(programs, (inverse, partner, partner.shape[0]), (_INVERSE_BLOCK,), partner.device)
    return inverse


def _compiled(families: int, pixels: Tensor | None) -> int:
    """The families that a kernel is compiled for: masks are stored as their pixels are, and not without them."""
    families = int(families)
    if pixels is None:
        return families & ~(_OF_PIXELS | int(Families.LARGE_CELLS)) or int(Families.CONSTANTS)
    if not families & _OF_PIXELS:
        return families
    return families & ~_OF_PIXELS | int(Families.LEVELS if pixels.dtype == torch.int16 else Families.STORED)


def _store(pixels: Tensor | None, instead: Tensor) -> tuple[Tensor, int, int]:
    """Stored masks as arguments: where they are, elements of a row, rows. `instead`, where there are none: not read."""
    return (instead, 0, 0) if pixels is None else (pixels.contiguous(), pixels.shape[1], pixels.shape[0])


def write_masks(
    records: Tensor, families: int, size: Sequence[int], per: int = Per.SAMPLE, pixels: Tensor | None = None
) -> Tensor:
    """(n, *size) float32 masks."""
    n, total = records.shape[0], math.prod(size)
    tiles = -(-total // _MASK_BLOCK)
    out = records.new_empty((n, *size), dtype=torch.float32)
    numbers = (*padded(tuple(size))[1:], total, tiles, *_store(pixels, out), n)
    constants = (_compiled(families, pixels), 1 if per == Per.BATCH else 0, _MASK_BLOCK)
    _mask(n * tiles, (out, records.contiguous(), *numbers), constants, out.device)
    return out
