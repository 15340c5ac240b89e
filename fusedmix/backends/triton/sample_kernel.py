"""Everything random about a batch, from a seed: the mirror of fusedmix/draws.py (device) and fusedmix/masks.

Every number is a function of (seed, logical index), so programs share nothing: a random partner is the rank of a
sample's key among all keys, and each program makes all of the keys anew. λ, boxes and weights are computed in float64,
λ rounded once to float32.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedmix.arguments import PlanTensors, empty_parts
from fusedmix.backends.triton import masks
from fusedmix.backends.triton.enums import COLUMNS, Columns, Draws, Methods, Pairings, Streams
from fusedmix.backends.triton.launch import Kernel
from fusedmix.backends.triton.masks import record
from fusedmix.backends.triton.numbers import (
    bits,
    draw_index,
    from_bits,
    seed_of,
    sort_key,
    symmetric_beta,
    uniform,
    words,
)
from fusedmix.draws import CPU, Request
from fusedmix.masks.family import padded
from fusedmix.methods import Column, Drawn, Pairing
from fusedmix.spec import families

_SAMPLES = 16  # of a program
_KEYS = 64  # compared with them at a time
_OPTIONS = int(Drawn.SIDES | Drawn.ASPECT | Drawn.RATIO)
_NONE = tl.constexpr((1 << 63) - 1)  # after every key and index


@triton.jit
def partner_keys(seed, j):
    a, b, _, _ = words(seed, j, Streams.PARTNER, 0)
    return sort_key(a, b)


@triton.jit
def class_keys(seed, label):
    a, b, _, _ = words(seed, label, Streams.CLASS, 0)
    return sort_key(a, b)


@triton.jit
def before(group, label, key, index, group2, label2, key2, index2):
    """Whether one sample comes before another: by the key of its class, its class, its own key, its index."""
    last = (key < key2) | ((key == key2) & (index < index2))
    middle = (label < label2) | ((label == label2) & last)
    return (group < group2) | ((group == group2) & middle)


@triton.jit
def ranks(seed, i, classes, batch, CROSS: tl.constexpr, S: tl.constexpr, T: tl.constexpr):
    """The places of samples i among all, [S], and how many are of their class. Random: in the order of keys."""
    key = partner_keys(seed, i)[:, None]
    label = (i * 0)[:, None]
    group = label
    if CROSS:
        label = tl.load(classes + tl.minimum(i, batch - 1))[:, None]
        group = class_keys(seed, label)
    count, members = tl.zeros([S], tl.int64), tl.zeros([S], tl.int64)
    for start in range(0, batch, T):  # carries 2: count, members
        j = (start + tl.arange(0, T)).to(tl.int64)
        valid = (j < batch)[None, :]
        key_j = partner_keys(seed, j)[None, :]
        label_j = (j * 0)[None, :]
        group_j = label_j
        if CROSS:
            label_j = tl.load(classes + tl.minimum(j, batch - 1))[None, :]
            group_j = class_keys(seed, label_j)
        first = before(group_j, label_j, key_j, j[None, :], group, label, key, i[:, None]) & valid
        count += tl.sum(first.to(tl.int64), axis=1)
        members += tl.sum(((label_j == label) & valid).to(tl.int64), axis=1)
    return count, members


@triton.jit
def next_of_class(seed, i, classes, batch, S: tl.constexpr, T: tl.constexpr):
    """The sample of the same class whose key follows, or the one with the least: every class is one random cycle."""
    key = partner_keys(seed, i)[:, None]
    label = tl.load(classes + tl.minimum(i, batch - 1))[:, None]
    next_key, next_at = tl.full([S], _NONE, tl.int64), tl.full([S], _NONE, tl.int64)
    least_key, least_at = tl.full([S], _NONE, tl.int64), tl.full([S], _NONE, tl.int64)
    for start in range(0, batch, T):  # carries 4: next_key, next_at, least_key, least_at
        j = (start + tl.arange(0, T)).to(tl.int64)
        key_j = partner_keys(seed, j)[None, :]
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


@triton.jit(do_not_specialize=["seeded", "seed_value", "batch"], do_not_specialize_on_alignment=["seed", "classes"])
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


@triton.jit(
    do_not_specialize=["seeded", "seed_value", "batch", "depth", "height", "width", "p"],
    do_not_specialize_on_alignment=["seed", "classes", "given"],
)
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

    # Partners.
    if PAIRING == Pairings.ROLL:
        other = tl.where(i == 0, batch - 1, i - 1).to(tl.int64)
    elif PAIRING == Pairings.FLIP:
        other = (batch - 1 - i).to(tl.int64)
    elif PAIRING == Pairings.RANDOM:
        other, _ = ranks(key, i, classes, batch, False, S, T)
    elif PAIRING == Pairings.CROSS_CLASS:
        # The partner is `shift` further on, from the size of the largest class to what is left of the circle.
        largest = tl.zeros([T], tl.int64)
        for start in range(0, batch, T):  # carries 1: largest
            j = start + tl.arange(0, T)
            largest = tl.maximum(largest, tl.load(members + j, mask=j < batch, other=0))
        most = tl.max(largest, axis=0)
        choices = tl.maximum(batch - 2 * most + 1, 1)
        a, b, _, _ = words(key, i * 0, Streams.SHIFT, 0)
        shift = most + (uniform(a, b) * choices.to(tl.float64)).to(tl.int64)
        there = (tl.load(spot + i, mask=live, other=0) + shift) % batch
        other = tl.load(order + there, mask=live, other=0)
    else:
        other = next_of_class(key, i, classes, batch, S, T)
    tl.store(partner + i, other, mask=live)

    # Which method, and whether it is applied.
    index = draw_index(i, batch, PER).to(tl.int64)
    choice = (index * 0).to(tl.int64)
    applied = index >= 0
    if CHOICE:
        a, b, c, d = words(key, index, Streams.CHOICE, 0)
        u = uniform(a, b)
        edge = u * 0.0
        for m in tl.static_range(METHODS - 1):  # the last edge is left out: a sum below 1 must leave no gap
            edge += tl.load(spec + m * COLUMNS + Columns.WEIGHT)
            choice = tl.where(edge <= u, m + 1, choice)
        applied = uniform(c, d) < from_bits(p)
    row = spec + choice * COLUMNS
    a, b, _, _ = words(key, index, Streams.APPLY, 0)
    applied = applied & (uniform(a, b) < tl.load(row + Columns.P))

    # λ: fixed, drawn and clamped, or given; 1 where nothing is mixed.
    alpha, fixed = tl.load(row + Columns.ALPHA), tl.load(row + Columns.LAM)
    random = (fixed != fixed) & (alpha > 0.0)
    lam = tl.where(fixed == fixed, fixed, 1.0).to(tl.float32)
    if LAM == 0:
        drawn = symmetric_beta(key, index, tl.where(alpha > 0.0, alpha, 1.0))
        if SWAPS:  # to Beta(α+1, α)
            a, b, _, _ = words(key, index, Streams.SWAP, 0)
            swapped = (tl.load(row + Columns.REFORMULATE) != 0.0) & (uniform(a, b) >= drawn)
            drawn = tl.where(swapped, 1.0 - drawn, drawn)
        narrow = drawn.to(tl.float32).to(tl.float64)
        clamped = tl.minimum(tl.maximum(narrow, tl.load(row + Columns.LAM_MIN)), tl.load(row + Columns.LAM_MAX))
        lam = tl.where(random, clamped.to(tl.float32), lam)
    elif LAM == 1:
        lam = tl.load(given) + lam * 0.0
    else:
        lam = tl.load(given + i, mask=live, other=1.0)
    lam = tl.where(applied, lam, 1.0)
    method = tl.where(applied, tl.load(row + Columns.METHOD).to(tl.int32), Methods.MIXUP)

    to, extent, drawn = records + i * record.WORDS, (depth, height, width), words(key, index, Streams.CENTRE, 0)
    weight = masks.make(to, live, method, row, lam, drawn, (key, index), extent, FAMILIES, DRAWS, NDIM, S, T)
    if DRAWS & Draws.SIDES:  # λ follows from them
        lam = tl.where(applied & (tl.load(row + Columns.SIDE_HIGH) > 0.0), weight.to(tl.float32), lam)
    tl.store(lams + i, lam, mask=live)
    tl.store(weights + i, weight, mask=live)


_sample = Kernel(sample_kernel)
_circle = Kernel(circle_kernel)


class Spec(NamedTuple):
    """What the host has to know of a spec."""

    held: bytes
    families: int
    swaps: bool
    options: int  # what some row draws that most do not


def spec_of(spec: Tensor) -> Spec:
    """Found once: a spec is the same one at every step, unless a schedule changes α."""
    spec = spec.contiguous()
    return _spec_of(ctypes.string_at(spec.data_ptr(), spec.nbytes))


@functools.lru_cache(maxsize=256)
def _spec_of(held: bytes) -> Spec:
    rows, options = _rows_on(CPU, held), 0
    for drawn in rows[:, Column.DRAWS].tolist():
        options |= int(drawn) & _OPTIONS
    return Spec(held, int(families(rows)), bool((rows[:, Column.REFORMULATE] != 0).any()), options)


@functools.lru_cache(maxsize=256)
def _rows_on(device: torch.device, held: bytes) -> Tensor:
    """The rows of a spec on a device."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "fusedmix: the parameters of a method are not on the GPU yet, and cannot be brought there while a CUDA "
            "graph is captured. Run the step once before it is captured."
        )
    return torch.frombuffer(bytearray(held), dtype=torch.float64).reshape(-1, len(Column)).to(device)


def sample(request: Request, seed: Tensor, device: torch.device) -> PlanTensors:
    """The plan of a request from a seed, on `device`."""
    spec, batch, size, pairing, per, p, lam, labels = request

    plan = empty_parts(batch, device)
    if batch == 0:
        return plan
    held, may_hold, swaps, options = spec_of(spec)
    rows = _rows_on(device, held)
    seeded = seed.device == device
    seed_value = 0 if seeded else int(seed)
    key = seed if seeded else plan[0]
    nothing = plan[0]
    classes = nothing if labels is None else labels.to(device).contiguous()
    order = spot = members = nothing
    if pairing == Pairing.CROSS_CLASS:
        order, spot, members = (torch.empty_like(plan[0]) for _ in range(3))
        circle = (order, spot, members, key, int(seeded), seed_value, classes, batch)
        _circle(-(-batch // _SAMPLES), circle, (_SAMPLES, _KEYS), device)
    given = plan[1] if lam is None else lam.to(device, torch.float32).contiguous()
    drawn_from = (rows, key, int(seeded), seed_value, given, classes, order, spot, members)
    arguments = (*plan, *drawn_from, batch, *padded(size), bits(p))
    of_lam = 0 if lam is None else 1 + lam.ndim
    if lam is not None:
        options &= ~int(Drawn.SIDES)
    what = (spec.shape[0], spec.shape[0] > 1 or p < 1.0, may_hold, swaps, options, of_lam)
    how = (int(pairing), int(per), len(size), _SAMPLES, _KEYS)
    _sample(-(-batch // _SAMPLES), arguments, (*what, *how), device)
    return plan
