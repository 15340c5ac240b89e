"""Mixing with partners of another batch, M ⊙ x + (1-M) ⊙ other[partner]: the kernel, which mix_launch.py launches.

The meaning is fusedmix/backends/reference.py, `mix_with`. It is the shape EACH of mix_kernel.py, in place too: nobody
reads what another program writes. A partner that there is not, which only the host could refuse, leaves its sample as
it is.
"""

from __future__ import annotations

import triton.language as tl

from fusedmix.backends.triton.mix_kernel import mixed, of_sample, place, reached, vectors_of
from fusedmix.backends.triton.numbers import jit_kernel


@jit_kernel("src", "other", "dst")
def mix_with_kernel(
    src, other, dst, partner, records,
    word_0, word_1, word_2, word_3, word_4, word_5, word_6, word_7, word_8, word_9, word_10, word_11,
    sizes, src_strides, dst_strides, src_batch, other_batch, dst_batch, columns, batch, others,
    pixels, across, rows, height, width,
    MASKS: tl.constexpr, FAMILIES: tl.constexpr, BINARY: tl.constexpr, IN_PLACE: tl.constexpr, AXES: tl.constexpr,
    RANK: tl.constexpr, INNER: tl.constexpr, V: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The batch, mixed with samples of `others`. Within a sample both have the same strides."""
    given = (word_0, word_1, word_2, word_3, word_4, word_5, word_6, word_7, word_8, word_9, word_10, word_11)
    program, groups = tl.program_id(0), tl.cdiv(batch, R)
    tile, group = program // groups, program % groups
    column = ((tile + 0 * columns) * N + tl.arange(0, N))[None, :, None]  # 64 bits, if `columns` has them.
    lane = tl.arange(0, V)[None, None, :]
    sample = (group * R + tl.arange(0, R))[:, None, None]
    live = (sample < batch) & (column >= 0) & (column < columns)  # Beyond 32 bits it is negative.
    within = place(column, sizes, src_strides, RANK) * V + lane
    target = dst + (place(column, sizes, dst_strides, RANK) * V + lane)
    AXIS: tl.constexpr = AXES[RANK - 1]
    vectors = vectors_of(column, lane, sizes, height, width, AXES, RANK, V, INNER)

    i = tl.minimum(sample, batch - 1).to(tl.int64)
    j = tl.load(partner + i)
    there = (j >= 0) & (j < others)
    plan = records, given, (pixels, across, rows, batch)
    mask, own, lent = reached(i, live, plan, vectors, MASKS, FAMILIES, BINARY, IN_PLACE, AXIS, INNER)
    lent = lent & there
    if not IN_PLACE:
        own = own | (live & ~there)
    a = tl.load(of_sample(src + within, i, src_batch, V), mask=own)
    b = tl.load(of_sample(other + within, j, other_batch, V), mask=lent)
    out = mixed(mask, a, b, vectors, FAMILIES, BINARY, AXIS, INNER)
    if IN_PLACE:
        tl.store(of_sample(target, i, dst_batch, V), out, mask=lent)
    else:
        tl.store(of_sample(target, i, dst_batch, V), tl.where(there, out, a), mask=live)
