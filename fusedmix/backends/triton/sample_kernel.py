"""Everything random about a batch, from a seed: the mirror of fusedmix/draws.py (device) and fusedmix/masks.

Every number is a function of (seed, logical index), so programs share nothing: a random partner is the rank of a
sample's key among all keys, and each program makes all of the keys anew. λ, boxes and weights are computed in float64,
λ rounded once to float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.backends.triton import masks
from fusedmix.backends.triton.enums import COLUMNS, Columns, Draws, Lams, Methods, Pairings, Streams
from fusedmix.backends.triton.masks import record
from fusedmix.backends.triton.numbers import (
    draw_index,
    from_bits,
    jit_kernel,
    partner_of,
    seed_of,
    sort_key,
    symmetric_beta,
    uniform_of,
    words,
)

_NONE = tl.constexpr((1 << 63) - 1)  # Every key and every index is less.


@triton.jit
def keys_of(seed, index, STREAM: tl.constexpr):
    """What samples, or classes, are sorted by."""
    high, low, _, _ = words(seed, index, STREAM, 0)
    return sort_key(high, low)


@triton.jit
def before(group, label, key, index, group2, label2, key2, index2):
    """Whether one sample comes before another: by the key of its class, its class, its own key, its index."""
    last = (key < key2) | ((key == key2) & (index < index2))
    middle = (label < label2) | ((label == label2) & last)
    return (group < group2) | ((group == group2) & middle)


@triton.jit
def ranks(seed, i, classes, batch, CROSS: tl.constexpr, S: tl.constexpr, T: tl.constexpr):
    """The places of samples i among all, [S], and how many are of their class. Random: in the order of keys."""
    key = keys_of(seed, i, Streams.PARTNER)[:, None]
    label = (i * 0)[:, None]
    group = label
    if CROSS:
        label = tl.load(classes + tl.minimum(i, batch - 1))[:, None]
        group = keys_of(seed, label, Streams.CLASS)
    count, members = tl.zeros([S], tl.int64), tl.zeros([S], tl.int64)
    for start in range(0, batch, T):  # carries 2: count, members
        j = (start + tl.arange(0, T)).to(tl.int64)
        valid = (j < batch)[None, :]
        key_j = keys_of(seed, j, Streams.PARTNER)[None, :]
        label_j = (j * 0)[None, :]
        group_j = label_j
        if CROSS:
            label_j = tl.load(classes + tl.minimum(j, batch - 1))[None, :]
            group_j = keys_of(seed, label_j, Streams.CLASS)
        first = before(group_j, label_j, key_j, j[None, :], group, label, key, i[:, None]) & valid
        count += tl.sum(first.to(tl.int64), axis=1)
        members += tl.sum(((label_j == label) & valid).to(tl.int64), axis=1)
    return count, members


@triton.jit
def next_of_class(seed, i, classes, batch, S: tl.constexpr, T: tl.constexpr):
    """The sample of the same class whose key follows, or the one with the least: every class is one random cycle."""
    key = keys_of(seed, i, Streams.PARTNER)[:, None]
    label = tl.load(classes + tl.minimum(i, batch - 1))[:, None]
    next_key, next_at = tl.full([S], _NONE, tl.int64), tl.full([S], _NONE, tl.int64)
    least_key, least_at = tl.full([S], _NONE, tl.int64), tl.full([S], _NONE, tl.int64)
    for start in range(0, batch, T):  # carries 4: next_key, next_at, least_key, least_at
        j = (start + tl.arange(0, T)).to(tl.int64)
        key_j = keys_of(seed, j, Streams.PARTNER)[None, :]
        same = (tl.load(classes + tl.minimum(j, batch - 1))[None, :] == label) & (j < batch)[None, :]
        later = same & ((key_j > key) | ((key_j == key) & (j[None, :] > i[:, None])))
        for which in tl.static_range(2):
            among = later if which == 0 else same
            keys = tl.where(among, key_j, _NONE)
            found = tl.min(keys, axis=1)
            at = tl.min(tl.where(among & (keys == found[:, None]), j[None, :], _NONE), axis=1)
            if which == 0:
                closer = (found < next_key) | ((found == next_key) & (at < next_at))
                next_key, next_at = tl.where(closer, found, next_key), tl.where(closer, at, next_at)
            else:
                closer = (found < least_key) | ((found == least_key) & (at < least_at))
                least_key, least_at = tl.where(closer, found, least_key), tl.where(closer, at, least_at)
    return tl.where(next_at == _NONE, least_at, next_at)


@jit_kernel("order", "spot", "members")
def circle_kernel(
    order, spot, members, seed, seeded, seed_value: tl.int64, classes, batch, S: tl.constexpr, T: tl.constexpr
):
    """The classes on a circle, for pairing across them: who is where, where each is, and how large its class is."""
    key = seed_of(seed, seeded, seed_value)
    i = (tl.program_id(0) * S + tl.arange(0, S)).to(tl.int64)
    count, size = ranks(key, i, classes, batch, True, S, T)
    tl.store(order + count, i, mask=i < batch)
    tl.store(spot + i, count, mask=i < batch)
    tl.store(members + i, size, mask=i < batch)


@triton.jit
def across_classes(seed, i, live, order, spot, members, batch, T: tl.constexpr):
    """The partners of samples on the circle of the classes: `shift` further on, which is from the size of the largest
    class to what is left of the circle."""
    largest = tl.zeros([T], tl.int64)
    for start in range(0, batch, T):  # carries 1: largest
        j = start + tl.arange(0, T)
        largest = tl.maximum(largest, tl.load(members + j, mask=j < batch, other=0))
    most = tl.max(largest, axis=0)
    choices = tl.maximum(batch - 2 * most + 1, 1)
    u = uniform_of(words(seed, i * 0, Streams.SHIFT, 0), 0)
    shift = most + (u * choices.to(tl.float64)).to(tl.int64)
    there = (tl.load(spot + i, mask=live, other=0) + shift) % batch
    return tl.load(order + there, mask=live, other=0)


@triton.jit
def partners(seed, i, live, classes, circle, batch, PAIRING: tl.constexpr, S: tl.constexpr, T: tl.constexpr):
    if PAIRING == Pairings.ROLL or PAIRING == Pairings.FLIP:
        other = partner_of(i, i, batch, PAIRING).to(tl.int64)
    elif PAIRING == Pairings.RANDOM:
        other, _ = ranks(seed, i, classes, batch, False, S, T)
    elif PAIRING == Pairings.CROSS_CLASS:
        order, spot, members = circle
        other = across_classes(seed, i, live, order, spot, members, batch, T)
    else:
        other = next_of_class(seed, i, classes, batch, S, T)
    return other


@triton.jit
def chosen(seed, index, spec, p, METHODS: tl.constexpr, CHOICE: tl.constexpr):
    """The rows of the methods of draws, and whether they are applied."""
    choice = (index * 0).to(tl.int64)
    applied = index >= 0
    if CHOICE:
        drawn = words(seed, index, Streams.CHOICE, 0)
        u = uniform_of(drawn, 0)
        edge = u * 0.0
        for m in tl.static_range(METHODS - 1):  # Beyond the last edge is no gap, though the sum may be below 1.
            edge += tl.load(spec + m * COLUMNS + Columns.WEIGHT)
            choice = tl.where(edge <= u, m + 1, choice)
        applied = uniform_of(drawn, 1) < from_bits(p)
    row = spec + choice * COLUMNS
    u = uniform_of(words(seed, index, Streams.APPLY, 0), 0)
    return row, applied & (u < tl.load(row + Columns.P))


@triton.jit
def lam_of(seed, index, row, given, i, live, LAM: tl.constexpr, SWAPS: tl.constexpr):
    """λ: fixed, or drawn, clamped and perhaps folded, or given."""
    alpha, fixed = tl.load(row + Columns.ALPHA), tl.load(row + Columns.LAM)
    random = (fixed != fixed) & (alpha > 0.0)
    lam = tl.where(fixed == fixed, fixed, 1.0).to(tl.float32)
    if LAM == Lams.DRAWN:
        drawn = symmetric_beta(seed, index, tl.where(alpha > 0.0, alpha, 1.0))
        if SWAPS:  # This makes it Beta(α+1, α).
            swap = words(seed, index, Streams.SWAP, 0)
            swapped = (tl.load(row + Columns.REFORMULATE) != 0.0) & (uniform_of(swap, 0) >= drawn)
            drawn = tl.where(swapped, 1.0 - drawn, drawn)
        narrow = drawn.to(tl.float32).to(tl.float64)
        clamped = tl.minimum(tl.maximum(narrow, tl.load(row + Columns.LAM_MIN)), tl.load(row + Columns.LAM_MAX))
        used = clamped.to(tl.float32)
        used = tl.where(tl.load(row + Columns.FOLD) != 0.0, tl.maximum(used, 1.0 - used), used)
        lam = tl.where(random, used, lam)
    elif LAM == Lams.ONE:
        lam = tl.load(given) + lam * 0.0
    else:
        lam = tl.load(given + i, mask=live, other=1.0)
    return lam


@jit_kernel("partner", "lams", "weights", "records", "spec", "order", "spot", "members")
def sample_kernel(
    partner, lams, weights, records,
    spec, seed, seeded, seed_value: tl.int64, given, classes, order, spot, members,
    batch, depth, height, width, p: tl.int64,
    METHODS: tl.constexpr, CHOICE: tl.constexpr, FAMILIES: tl.constexpr, SWAPS: tl.constexpr, DRAWS: tl.constexpr,
    LAM: tl.constexpr, PAIRING: tl.constexpr, PER: tl.constexpr, NDIM: tl.constexpr, S: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """A plan."""
    i = tl.program_id(0).to(tl.int64) * S + tl.arange(0, S)
    live = i < batch
    key = seed_of(seed, seeded, seed_value)
    other = partners(key, i, live, classes, (order, spot, members), batch, PAIRING, S, T)
    tl.store(partner + i, other, mask=live)

    index = draw_index(i, batch, PER).to(tl.int64)
    row, applied = chosen(key, index, spec, p, METHODS, CHOICE)
    lam = tl.where(applied, lam_of(key, index, row, given, i, live, LAM, SWAPS), 1.0)
    method = tl.where(applied, tl.load(row + Columns.METHOD).to(tl.int32), Methods.MIXUP)

    to, extent, drawn = records + i * record.WORDS, (depth, height, width), words(key, index, Streams.CENTRE, 0)
    weight = masks.make(to, live, method, row, lam, drawn, (key, index), extent, FAMILIES, DRAWS, NDIM, S, T)
    if DRAWS & Draws.SIDES:  # λ follows from the sides of a box.
        lam = tl.where(applied & (tl.load(row + Columns.SIDE_HIGH) > 0.0), weight.to(tl.float32), lam)
    tl.store(lams + i, lam, mask=live)
    tl.store(weights + i, weight, mask=live)
