"""Masks, blends and their adjoint: the kernels, and how they are launched.

M ⊙ x + (1-M) ⊙ x[partner] (Park, Yun, Chun, "A Unified Analysis of Mixed Sample Data Augmentation", NeurIPS 2022,
eq. 1); the meaning is fusedmix/backends/reference.py, `mix` and `mix_adjoint`.

A program owns N vectors of V elements, at the same place of every sample, in one unit of the batch. It follows the
cycles of the permutation: out[i] needs x[i] and x[p(i)]; then out[p(i)] needs x[p(i)], which it still holds, and
x[p(p(i))]. So every sample is read once and written once, in place too: only the first of a cycle is kept, for the
last. The sample after next is on its way while one is blended.

Where samples are small, programs are few. So every `span`-th sample is a head, at which walks begin and stop. In place
the walk that begins at a head overwrites it before the one that stops there has read it: heads are copied aside by an
earlier launch (`stage`).

V elements are 16 bytes wherever the memory allows. What is asked of a vector (is its sample needed? its partner?) is
decided for the vector, [N, 1], never for an element, so that accesses stay 16 bytes wide: in place a box is widened to
whole vectors, the elements around it being written back as they were read.

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

from fusedmix import partners
from fusedmix.backends.triton import masks
from fusedmix.backends.triton.enums import Families, Pairings
from fusedmix.backends.triton.launch import Kernel, milliseconds, multiprocessors
from fusedmix.backends.triton.masks import fourier, record
from fusedmix.backends.triton.numbers import fma, from_compute, nearest_even, spread, to_compute
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
        # To the nearest integer, ties to even, as if the sum were exact: rounding it to float32 may move it onto a tie,
        # and then the sign of what was lost says which way to go.
        total = fma(w, x - y, y)
        lost = fma(w, x - y, y - total)
        whole = nearest_even(total)
        error = total - whole
        whole = tl.where((error == 0.5) & (lost > 0.0), whole + 1.0, whole)
        whole = tl.where((error == -0.5) & (lost < 0.0), whole - 1.0, whole)
        mixed = tl.minimum(tl.maximum(whole, 0.0), 255.0).to(tl.uint8)
    else:
        mixed = from_compute(fma(w.to(x.dtype), x - y, y), a.dtype)
    mixed = tl.where((w == 1.0) | (x == y), a, mixed)
    return tl.where(w == 0.0, b, mixed)


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
    """Where the vectors [N, 1] of a sample begin, in vectors."""
    offset = tl.zeros_like(column)
    rest = column
    for back in tl.static_range(RANK):
        if back == RANK - 1:
            offset += rest * strides[0]
        else:
            offset += (rest % sizes[RANK - 1 - back]) * strides[RANK - 1 - back]
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


# ---- A walk ----------------------------------------------------------------------------------------------------------


@triton.jit
def known(j, i, batch):
    """The partner j of a sample i. A number that is no sample's, which only the host could refuse, stands for the
    sample itself: nothing outside of the batch is touched."""
    return tl.where((j >= 0) & (j < batch), j, i)


@triton.jit
def partner_of(i, partner, batch, PAIRING: tl.constexpr):
    if PAIRING == Pairings.ROLL:
        j = tl.where(i == 0, batch - 1, i - 1)
    elif PAIRING == Pairings.FLIP:
        j = batch - 1 - i
    else:
        j = known(tl.load(partner + i), i, batch)
    return j


@triton.jit
def is_head(i, span, HEADS: tl.constexpr):
    if HEADS:
        head = i % span == 0
    else:
        head = i != i
    return head


@triton.jit
def starts(base, end, partner, batch, span, HEADS: tl.constexpr, IN_PLACE: tl.constexpr):
    """At which of the 64 samples from `base` a walk begins, as bits: at heads, and at the smallest sample of a cycle
    without one. Half of all samples know after one step, few after many; of what is no permutation, none for ever."""
    lane = tl.arange(0, 64).to(tl.int64)
    c = base + lane
    valid = c < end
    j = known(tl.load(partner + c, mask=valid, other=0), c, batch)
    if IN_PLACE:  # nothing happens to a sample that is its own partner
        valid = valid & (j != c)
    begins = valid & is_head(c, span, HEADS)
    unknown = valid & ~begins
    steps = base * 0
    while (tl.max(unknown.to(tl.int32), axis=0) > 0) & (steps < batch):  # carries 4: begins, unknown, j, steps
        begins = begins | (unknown & (j == c))
        unknown = unknown & (j > c) & ~is_head(j, span, HEADS)
        j = known(tl.load(partner + j, mask=unknown, other=0), j, batch)
        steps += 1
    return tl.sum(tl.where(begins, tl.full([64], 1, tl.int64) << lane, 0), axis=0)


@triton.jit(
    do_not_specialize=[
        *(f"word_{k}" for k in range(12)), "sizes", "src_strides", "dst_strides", "src_batch", "dst_batch",
        "columns", "tiles", "batch", "span", "across", "rows", "height", "width",
    ],
    do_not_specialize_on_alignment=["partner", "records", "pixels"],
)  # fmt: skip
def mix_kernel(
    src, dst, staged, partner, records,
    word_0, word_1, word_2, word_3, word_4, word_5, word_6, word_7, word_8, word_9, word_10, word_11,
    sizes, src_strides, dst_strides, src_batch, dst_batch, columns, tiles, batch, span,
    pixels, across, rows, height, width,
    PAIRING: tl.constexpr, MASKS: tl.constexpr, FAMILIES: tl.constexpr, HEADS: tl.constexpr, IN_PLACE: tl.constexpr,
    ADJOINT: tl.constexpr, AXES: tl.constexpr, RANK: tl.constexpr, INNER: tl.constexpr, V: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """The batch, or the adjoint of that, in one launch."""
    given = (word_0, word_1, word_2, word_3, word_4, word_5, word_6, word_7, word_8, word_9, word_10, word_11)
    program = tl.program_id(0).to(tl.int64)
    unit, tile = program // tiles, program % tiles
    column = (tile * N + tl.arange(0, N))[:, None]
    live = column < columns
    lane = tl.arange(0, V)[None, :]
    source = src + (place(column, sizes, src_strides, RANK) * V + lane)
    target = dst + (place(column, sizes, dst_strides, RANK) * V + lane)
    aside = staged + (column * V + lane)
    z, y, x = coordinates(column, lane, sizes, AXES, RANK, V, INNER)
    low = coordinates(column, 0, sizes, AXES, RANK, V, INNER)
    high = coordinates(column, V - 1, sizes, AXES, RANK, V, INNER)
    # Stored masks: `rows` rows of `across` elements; and the pixels of every vector, how far along x each is from the
    # first, the first and the last.
    AXIS: tl.constexpr = AXES[RANK - 1]
    stored = (pixels, across, rows, batch)
    zl, yl, xl = low
    zh, yh, xh = high
    spots = (
        fourier.pixel_of(z, y, x, height, width),
        (x - xl).to(tl.int32),
        fourier.pixel_of(zl, yl, xl, height, width),
        fourier.pixel_of(zh, yh, xh, height, width),
    )
    vectors = ((z, y, x), low, high, spots)

    begin = unit * span
    end = tl.minimum(begin + span, (batch + 1) // 2 if PAIRING == Pairings.FLIP else batch)
    if PAIRING == Pairings.ROLL:  # one walk, from the head
        end = begin + 1
    bits = begin * 0
    for c in range(begin, end):  # carries int(PAIRING > 1): bits
        if PAIRING == Pairings.RANDOM:
            if (c - begin) % 64 == 0:
                bits = starts(c, end, partner, batch, span, HEADS, IN_PLACE)
            goes = ((bits >> ((c - begin) % 64)) & 1) != 0
        elif IN_PLACE:
            goes = partner_of(c, partner, batch, PAIRING) != c
        else:
            goes = c >= 0
        if goes:
            # Samples i, j = p(i) and k = p(j): i is written, j at hand, k asked for. Before the first there is no i.
            mask = record.load(c, records, given, stored, MASKS)
            own, lent = masks.reach(mask, vectors, live, FAMILIES, IN_PLACE, AXIS, INNER)
            # In place the first is lost to the last, unless it is kept, or left as it is.
            held = own
            if ADJOINT:
                held = live
            elif IN_PLACE:
                held = lent
            first = tl.load(source + c * src_batch * V, mask=held, other=0)
            i, j = c * 0 - 1, c
            a, b = tl.zeros_like(first), first  # starts of their own: see numbers.py
            lent_i, lent_j = tl.zeros_like(lent), lent
            last = c < 0  # whether the walk stops at j
            more = c >= 0
            steps = c * 0  # of what is no permutation a walk ends nevertheless
            while more:  # carries 8 + IN_PLACE - ADJOINT: i, j, a, b, last, more, steps; lent_j and lent_i, where used
                k = partner_of(j, partner, batch, PAIRING)
                head = is_head(k, span, HEADS)
                steps += 1
                stops = head | (k == c) | (steps >= batch)
                mask_k = record.load(k, records, given, stored, MASKS)
                own_k, lent_k = masks.reach(mask_k, vectors, live, FAMILIES, IN_PLACE, AXIS, INNER)
                wanted = live & spread(~last, live)
                if not ADJOINT:
                    wanted = wanted & (lent_j | (own_k & spread(~stops, live)))
                home = k == c
                if HEADS and IN_PLACE:
                    home = home & ~head
                    if head:
                        ahead = tl.load(aside + k // span * (columns * V), mask=wanted, other=0)
                    else:
                        ahead = tl.load(source + k * src_batch * V, mask=wanted & ~(held & spread(home, live)), other=0)
                else:
                    ahead = tl.load(source + k * src_batch * V, mask=wanted & ~(held & spread(home, live)), other=0)
                if home:
                    ahead = tl.where(held, first, ahead)

                if i >= 0:
                    mask_i = record.load(i, records, given, stored, MASKS)
                    w = masks.at(mask_i, vectors, FAMILIES, AXIS, INNER)
                    w = tl.broadcast_to(w, a.shape)
                    if ADJOINT:  # the gradient of j: its own, and what i lent
                        mask_j = record.load(j, records, given, stored, MASKS)
                        w_j = masks.at(mask_j, vectors, FAMILIES, AXIS, INNER)
                        w_j = tl.broadcast_to(w_j, a.shape)
                        tl.store(target + j * dst_batch * V, blend_adjoint(w_j, b, w, a), mask=live)
                    elif IN_PLACE:
                        tl.store(target + i * dst_batch * V, blend(w, a, b), mask=lent_i)
                    else:
                        tl.store(target + i * dst_batch * V, blend(w, a, b), mask=live)
                more = ~last  # type: ignore[assignment]
                i, a, lent_i = j, b, lent_j
                j, b, lent_j = k, ahead, lent_k
                last = stops


@triton.jit
def stage(program, src, staged, sizes, strides, batch_stride, columns, tiles, span,
          RANK: tl.constexpr, V: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """One tile of one head, copied aside."""
    head, tile = program // tiles, program % tiles
    column = (tile * N + tl.arange(0, N))[:, None]
    lane = tl.arange(0, V)[None, :]
    source = src + (place(column, sizes, strides, RANK) * V + lane)
    value = tl.load(source + head * span * batch_stride * V, mask=column < columns, other=0)
    tl.store(staged + head * columns * V + (column * V + lane), value, mask=column < columns)


@triton.jit(do_not_specialize=["sizes", "strides", "batch_stride", "columns", "tiles", "span"])
def stage_kernel(src, staged, sizes, strides, batch_stride, columns, tiles, span,
                 RANK: tl.constexpr, V: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """The heads of a batch, copied aside before it is mixed in place."""
    program = tl.program_id(0).to(tl.int64)
    stage(program, src, staged, sizes, strides, batch_stride, columns, tiles, span, RANK, V, N)


@triton.jit(
    do_not_specialize=["height", "width", "total", "tiles", "across", "rows", "batch"],
    do_not_specialize_on_alignment=["records", "pixels"],
)
def mask_kernel(out, records, height, width, total, tiles, pixels, across, rows, batch,
                FAMILIES: tl.constexpr, MASKS: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """Masks written out, for looking at: (batch, total), each of its pixels a vector."""
    program = tl.program_id(0).to(tl.int64)
    i = program // tiles
    pixel = (program % tiles * N + tl.arange(0, N))[:, None]
    place = pixel // width // height, pixel // width % height, pixel % width
    mask = record.load(i, records, records, (pixels, across, rows, batch), MASKS)
    spot = tl.minimum(pixel, total - 1).to(tl.int32)
    w = masks.at(mask, (place, place, place, (spot, spot, spot, spot)), FAMILIES, 0, 1)
    tl.store(out + i * total + pixel, w, mask=pixel < total)


# ---- How a launch goes through a batch -------------------------------------------------------------------------------

_SCRATCH_LEAST = 1 << 20  # bytes that staging may always use
_SCRATCH_SHARE = 16  # or this part of the batch
# Elements of a program at most: its 128 threads hold 16 of each of four samples and their weights in some 130
# registers, and 8 KiB of float32 are asked for while as many are blended. Fewer where multiprocessors would be idle.
_MOST_ELEMENTS = 2048
_BLOCKS = (512, 256, 128)
_PROGRAMS_EACH = 8  # for each multiprocessor


class Walk(NamedTuple):
    """How a launch goes through a batch. Strides are in vectors, so that a kernel knows that all are multiples of V."""

    sizes: tuple[int, ...]
    src_strides: tuple[int, ...]
    dst_strides: tuple[int, ...]
    src_batch: int
    dst_batch: int
    columns: int  # vectors of a sample
    tiles: int  # programs across a sample
    batch: int
    span: int
    units: int  # programs along the batch
    heads: int  # samples at which walks stop; 0: at none
    staged: int  # elements of scratch
    constants: tuple[Any, ...]  # AXES, RANK, INNER, V, N


def _blocks(item: int, width: int) -> list[int]:
    """How many vectors a program may own."""
    most = _MOST_ELEMENTS if item < 8 else _MOST_ELEMENTS // 4  # float64 takes two registers each
    return [n for n in _BLOCKS if n * width <= most]


@functools.lru_cache(maxsize=4096)
def plan_walk(
    shape: tuple[int, ...],
    src: tuple[int, ...],
    dst: tuple[int, ...],
    item: int,
    address: int,
    spatial: int,
    pairing: int,
    in_place: bool,
    chips: int,
    tuned: int | None = None,
) -> Walk:
    """For a batch of that shape and those strides, its elements of `item` bytes, its memory beginning at multiples of
    `address` bytes, on so many multiprocessors. The last `spatial` dims are the axes that masks depend on. `tuned`: how
    many vectors a program owns, if that has been measured."""
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

    def across(block: int) -> int:
        return -(-columns // block)

    most = batch // 2 if pairing == Pairing.FLIP else batch
    blocks = _blocks(item, width)
    enough = (n for n in blocks if across(n) * max(1, most // 8) >= chips)
    block = tuned or next(enough, blocks[-1])
    tiles = across(block)
    wanted = max(1, -(-_PROGRAMS_EACH * chips // max(1, tiles)))
    span, units, heads, staged = batch, min(batch, 1), 0, 0
    if pairing == Pairing.FLIP:
        pairs = (batch + 1) // 2
        span = max(1, pairs // wanted)
        units = -(-pairs // span)
    else:
        sample_bytes = columns * width * item
        if in_place:
            most = max(_SCRATCH_LEAST, batch * sample_bytes // _SCRATCH_SHARE) // max(1, sample_bytes)
        units = min(wanted, most, batch // 2)
        if units <= 1:
            units = min(batch, 1)
        else:
            span = -(-batch // units)
            units = heads = -(-batch // span)
            staged = units * columns * width if in_place else 0
    return Walk(
        sizes,
        tuple(stride // width for stride in src_strides),
        tuple(stride // width for stride in dst_strides),
        src[0] // width,
        dst[0] // width,
        columns,
        tiles,
        batch,
        span,
        units,
        heads,
        staged,
        (axes, len(sizes), inner, width, block),
    )


def walk_of(src: Tensor, dst: Tensor, spatial: int, pairing: int) -> Walk:
    """The walk through a batch: `dst` is `src` in place."""
    address = (src.data_ptr() | dst.data_ptr()) & 15 or 16
    in_place = src.data_ptr() == dst.data_ptr()
    batch = (
        *(tuple(src.shape), src.stride(), dst.stride(), src.element_size(), address & -address),
        *(spatial, pairing, in_place, multiprocessors(src.device)),
    )
    key = (src.device, *batch)
    tunes = os.environ.get("FUSEDMIX_TRITON_AUTOTUNE") == "1" and key not in _tuned and src.numel() > 0
    if tunes and not (src.is_cuda and torch.cuda.is_current_stream_capturing()):
        _tune(key, src, dst, spatial, pairing)
    return plan_walk(*batch, _tuned.get(key))


_tuned: dict[Any, int] = {}


def _tune(key: Any, src: Tensor, dst: Tensor, spatial: int, pairing: int) -> None:
    """Measures, once for a kind of batch, how many vectors a program had best own: on memory laid out as the batch,
    mixed half and half."""
    x = _laid_out_as(src)
    out = x if src.data_ptr() == dst.data_ptr() else _laid_out_as(dst)
    batch = src.shape[0]
    partner = torch.randperm(batch, generator=torch.Generator().manual_seed(0)).to(src.device)
    records = record_of(constant(0.5, 0.5)).to(src.device).repeat(batch, 1)
    plan = (partner, records, Families.CONSTANTS, spatial, pairing, Per.SAMPLE)
    times = {}
    for block in _blocks(src.element_size(), plan_walk(*key[1:]).constants[3]):
        _tuned[key] = block
        apply(x, out, plan)  # compiles
        times[block] = milliseconds(lambda: apply(x, out, plan), src.device)
    _tuned[key] = min(times, key=lambda block: times[block])


def _laid_out_as(t: Tensor) -> Tensor:
    """Zeros in memory of their own: the shape, strides and alignment of t."""
    extent = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    shift = t.data_ptr() % 16 // t.element_size()
    return t.new_zeros(extent + shift).as_strided(t.shape, t.stride(), shift)


_mix = Kernel(mix_kernel)
_stage = Kernel(stage_kernel)
_mask = Kernel(mask_kernel)
_NOTHING_GIVEN = (0,) * WORDS
_MASK_BLOCK = 1024


def apply(
    src: Tensor,
    dst: Tensor,
    plan: Sequence[Any],
    *,
    adjoint: bool = False,
    staged: Tensor | None = None,
    by_value: bool | None = None,
    each: bool = False,
) -> None:
    """Mixes `src` into `dst`, which may be `src` itself.

    Args:
        plan: what the operators take after x: partner, masks, families, ndim, pairing, per, pixels if there are any.
        staged: the heads, if they have been copied aside.
        by_value: whether one mask for the batch travels in the arguments; None: if it is on the CPU and src is not.
        each: out of place, whether every sample is walked by itself: for partners that are no permutation.
    """
    if src.numel() == 0:
        return
    partner, records, families, ndim, pairing, per, *rest = plan
    pixels = rest[0] if rest else None
    walk = walk_of(src, dst, ndim, pairing)
    if each:
        walk = walk._replace(span=1, units=walk.batch, heads=walk.batch, staged=0)
    in_place = src.data_ptr() == dst.data_ptr()
    given, mode = _NOTHING_GIVEN, 1 if per == Per.BATCH else 0
    if mode == 1 and (records.device != src.device if by_value is None else by_value):
        given, mode, records = records[0].tolist(), 2, src  # not read
    else:
        records = brought(src.device, records)[0].contiguous()
    pairing = by_formula(pairing)
    partner = brought(src.device, partner)[0].contiguous() if pairing == Pairing.RANDOM else src
    if pixels is not None:
        (pixels,) = brought(src.device, pixels)
    families = _compiled(families if ndim else Families.CONSTANTS, pixels)
    if walk.staged and staged is None:
        staged = stage_heads(src, walk)
    tensors = (src, dst, src if staged is None else staged, partner, records)
    walked = (walk.sizes, walk.src_strides, walk.dst_strides, walk.src_batch, walk.dst_batch, walk.columns, walk.tiles)
    stored = (*_store(pixels, src), *padded(tuple(src.shape[src.ndim - ndim :]))[1:])
    arguments = (*tensors, *given, *walked, walk.batch, walk.span, *stored)
    constants = (pairing, mode, families, walk.heads > 0, in_place, adjoint, *walk.constants)
    _mix(walk.tiles * walk.units, arguments, constants, src.device)


def by_formula(pairing: int) -> int:
    """The pairing as a constant of kernels: RANDOM, if the partners have to be loaded."""
    return int(pairing if Pairing(pairing).is_formula else Pairing.RANDOM)


def pairing_of(partner: Tensor, pairing: int) -> int:
    """The pairing by which kernels may find the partners: by formula only where those that the host can read are the
    formula's. Hand-made ones need not be."""
    if not Pairing(pairing).is_formula or partner.device.type != "cpu":
        return pairing
    formula = partners.formula(Pairing(pairing), partner.shape[0], partner.device)
    return pairing if torch.equal(partner, formula) else Pairing.RANDOM


def followed(plan: Sequence[Any]) -> tuple[Any, ...]:
    """What `apply` takes of a plan that anyone may have made."""
    partner, records, families, ndim, pairing, *rest = plan
    return (partner, records, families, ndim, pairing_of(partner, pairing), *rest)


def repeats(plan: Sequence[Any]) -> bool:
    """Whether partners that the host can read are no permutation."""
    partner, _, _, _, pairing, *_ = plan
    loaded = by_formula(pairing) == Pairing.RANDOM
    return loaded and partner.device.type == "cpu" and bool((partner.bincount() != 1).any())


def stage_heads(src: Tensor, walk: Walk) -> Tensor:
    """The heads of a batch, copied aside."""
    staged = src.new_empty(walk.staged)
    _, rank, _, width, block = walk.constants
    arguments = (src, staged, walk.sizes, walk.src_strides, walk.src_batch, walk.columns, walk.tiles, walk.span)
    _stage(walk.tiles * walk.heads, arguments, (rank, width, block), src.device)
    return staged


def brought(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Parts of a plan on a device.

    Raises:
        RuntimeError: they are on the CPU while a CUDA graph is captured, which would keep them for ever.
    """
    if all(t.device == device for t in tensors):
        return tensors
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "fusedmix: a plan on the CPU cannot be captured in a CUDA graph, but for one mask for the whole batch "
            "(none of FMix) and partners by roll or flip. Move it first: plan.to(device)."
        )
    return tuple(t.to(device, non_blocking=True) for t in tensors)


def _compiled(families: int, pixels: Tensor | None) -> int:
    """The families that a kernel is compiled for: masks are stored as their pixels are, and not without them."""
    computed = int(families) & ~(Families.STORED | Families.LEVELS)
    if pixels is None or computed == families:
        return computed
    return computed | (Families.LEVELS if pixels.dtype == torch.int16 else Families.STORED)


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
