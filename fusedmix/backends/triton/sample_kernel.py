"""Everything random about a batch, from a seed: the mirror of fusedmix/draws.py (device) and fusedmix/masks.

Every number is a function of (seed, logical index), so programs share nothing: a random partner is the rank of a
sample's key among all keys, and each program makes all of the keys anew. λ, boxes and weights are computed in float64,
λ rounded once to float32.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedmix.backends.triton.launch import Kernel
from fusedmix.backends.triton.mix_kernel import Walk, stage
from fusedmix.backends.triton.numbers import (
    below,
    bits,
    from_bits,
    sort_key,
    symmetric_beta,
    uniform,
    words,
)
from fusedmix.draws import PlanTensors, Request
from fusedmix.masks.family import padded
from fusedmix.methods import Column, Method, Pairing

_SAMPLES = 16  # of a program
_KEYS = 64  # compared with them at a time
_COLUMNS = tl.constexpr(len(Column))
_NONE = tl.constexpr((1 << 63) - 1)  # after every key and index


@triton.jit
def seed_of(seed, seeded, seed_value):
    """The seed, from memory if it is `seeded`. Not a constant: a plain call, whose seed is on the CPU, compiles what a
    graph then captures with its seed in memory."""
    return tl.load(seed, mask=seeded != 0, other=0) + seed_value.to(tl.int64)


@triton.jit
def draw_index(i, batch, PER: tl.constexpr):
    """Which draw a sample takes its numbers from."""
    if PER == 2:
        draw = i
    elif PER == 1:
        draw = tl.minimum(i, batch - 1 - i)
    else:
        draw = i * 0
    return draw


@triton.jit
def root(x, NDIM: tl.constexpr):
    """x^(1/d). Cube roots differ between libraries in the last bit, so they are rounded to float32."""
    if NDIM == 1:
        r = x
    elif NDIM == 2:
        r = tl.sqrt(x)
    else:
        r = tl.exp(tl.log(tl.maximum(x, 1e-300)) / 3.0).to(tl.float32).to(tl.float64)
        r = tl.where(x == 0.0, 0.0, r)
    return r


@triton.jit
def partner_keys(seed, j):
    a, b, _, _ = words(seed, j, 4, 0)
    return sort_key(a, b)


@triton.jit
def class_keys(seed, label):
    a, b, _, _ = words(seed, label, 5, 0)
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
    do_not_specialize=[
        "seeded", "seed_value", "batch", "depth", "height", "width", "p", "programs",
        "sizes", "strides", "batch_stride", "columns", "tiles", "span",
    ],
    do_not_specialize_on_alignment=["seed", "classes", "given"],
)  # fmt: skip
def sample_kernel(
    partner,
    lams,
    weights,
    kinds,
    geometry,
    values,
    spec,
    seed,
    seeded,
    seed_value: tl.int64,
    given,
    classes,
    order,
    spot,
    members,
    batch,
    depth,
    height,
    width,
    p: tl.int64,
    programs,
    src,
    staged,
    sizes,
    strides,
    batch_stride,
    columns,
    tiles,
    span,
    METHODS: tl.constexpr,
    CHOICE: tl.constexpr,
    CENTRES: tl.constexpr,
    GAUSSIANS: tl.constexpr,
    FOURIERS: tl.constexpr,
    SWAPS: tl.constexpr,
    LAM: tl.constexpr,
    PAIRING: tl.constexpr,
    PER: tl.constexpr,
    NDIM: tl.constexpr,
    S: tl.constexpr,
    T: tl.constexpr,
    RANK: tl.constexpr,
    V: tl.constexpr,
    N: tl.constexpr,
):
    """A plan; and by the programs after the first `programs`, the heads of the batch that it is for."""
    program = tl.program_id(0).to(tl.int64)
    if program >= programs:
        stage(program - programs, src, staged, sizes, strides, batch_stride, columns, tiles, span, RANK, V, N)
    else:
        i = program * S + tl.arange(0, S)
        live = i < batch
        key = seed_of(seed, seeded, seed_value)

        # Partners.
        if PAIRING == 0:
            other = tl.where(i == 0, batch - 1, i - 1).to(tl.int64)
        elif PAIRING == 1:
            other = (batch - 1 - i).to(tl.int64)
        elif PAIRING == 2:
            other, _ = ranks(key, i, classes, batch, False, S, T)
        elif PAIRING == 3:
            # The partner is `shift` further on, from the size of the largest class to what is left of the circle.
            largest = tl.zeros([T], tl.int64)
            for start in range(0, batch, T):  # carries 1: largest
                j = start + tl.arange(0, T)
                largest = tl.maximum(largest, tl.load(members + j, mask=j < batch, other=0))
            most = tl.max(largest, axis=0)
            choices = tl.maximum(batch - 2 * most + 1, 1)
            a, b, _, _ = words(key, i * 0, 6, 0)
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
            a, b, c, d = words(key, index, 2, 0)
            u = uniform(a, b)
            edge = u * 0.0
            for m in tl.static_range(METHODS - 1):  # the last edge is left out: a sum below 1 must leave no gap
                edge += tl.load(spec + m * _COLUMNS + 1)
                choice = tl.where(edge <= u, m + 1, choice)
            applied = uniform(c, d) < from_bits(p)
        row = spec + choice * _COLUMNS
        a, b, _, _ = words(key, index, 3, 0)
        applied = applied & (uniform(a, b) < tl.load(row + 2))

        # λ: fixed, drawn and clamped, or given; 1 where nothing is mixed.
        alpha, fixed = tl.load(row + 3), tl.load(row + 4)
        random = (fixed != fixed) & (alpha > 0.0)
        lam = tl.where(fixed == fixed, fixed, 1.0).to(tl.float32)
        if LAM == 0:
            drawn = symmetric_beta(key, index, tl.where(alpha > 0.0, alpha, 1.0))
            if SWAPS:  # to Beta(α+1, α)
                a, b, _, _ = words(key, index, 8, 0)
                swapped = (tl.load(row + 11) != 0.0) & (uniform(a, b) >= drawn)
                drawn = tl.where(swapped, 1.0 - drawn, drawn)
            narrow = drawn.to(tl.float32).to(tl.float64)
            clamped = tl.minimum(tl.maximum(narrow, tl.load(row + 5)), tl.load(row + 6))
            lam = tl.where(random, clamped.to(tl.float32), lam)
        elif LAM == 1:
            lam = tl.load(given) + lam * 0.0
        else:
            lam = tl.load(given + i, mask=live, other=1.0)
        lam = tl.where(applied, lam, 1.0)
        method = tl.where(applied, tl.load(row), 0.0)

        # A constant, unless the method has a centre or is FMix.
        x = lam.to(tl.float64)
        kind = (index * 0).to(tl.int32)
        first_z, first_y, first_x = index * 0, index * 0, index * 0
        stop_z, stop_y, stop_x = index * 0, index * 0, index * 0
        outer, inner = lam, lam * 0.0
        weight = tl.where(method == 6.0, 1.0, x)
        pixels = (depth.to(tl.int64) * height * width).to(tl.float64)
        if CENTRES:
            a, b, c, _ = words(key, index, 1, 0)
            centre_x = below(a, width)
            centre_y = below(b, height) if NDIM > 1 else index * 0
            centre_z = below(c, depth) if NDIM > 2 else index * 0

            # CutMix and HMix: a box of (1-λ)·ratio of the image, clipped. The product of the roots first, as in the
            # authors' code: another order moves the box.
            ratio = tl.load(row + 7)
            fraction = root(1.0 - x, NDIM) * root(ratio, NDIM)
            boxed = (method >= 1.0) & (method <= 3.0)
            half_x = tl.floor(width.to(tl.float64) * fraction).to(tl.int64) // 2
            half_y = tl.floor(height.to(tl.float64) * fraction).to(tl.int64) // 2
            half_z = tl.floor(depth.to(tl.float64) * fraction).to(tl.int64) // 2
            x0, x1 = tl.maximum(centre_x - half_x, 0), tl.minimum(centre_x + half_x, width)
            y0, y1 = index * 0, index * 0 + 1
            z0, z1 = index * 0, index * 0 + 1
            if NDIM > 1:
                y0, y1 = tl.maximum(centre_y - half_y, 0), tl.minimum(centre_y + half_y, height)
            if NDIM > 2:
                z0, z1 = tl.maximum(centre_z - half_z, 0), tl.minimum(centre_z + half_z, depth)
            rest = 1.0 - ((x1 - x0) * (y1 - y0) * (z1 - z0)).to(tl.float64) / pixels
            # Outside stands λ/(1-β), β the box's actual share (released), or λ/(1-(1-λ)·ratio) (paper).
            share = tl.where(method == 2.0, rest, (1.0 - ratio) + x * ratio)
            outside = tl.where(share > 0.0, tl.minimum(x / tl.where(share > 0.0, share, 1.0), 1.0), 0.0)
            outside = tl.where(method == 1.0, 1.0, outside).to(tl.float32)
            kind = tl.where(boxed, 1, kind)
            outer = tl.where(boxed, outside, outer)
            weight = tl.where(boxed, tl.where(method == 2.0, x, outside.to(tl.float64) * rest), weight)
            first_x, stop_x = tl.where(boxed, x0, 0), tl.where(boxed, x1, 0)
            first_y, stop_y = tl.where(boxed, y0, 0), tl.where(boxed, y1, 0)
            first_z, stop_z = tl.where(boxed, z0, 0), tl.where(boxed, z1, 0)

            if GAUSSIANS:
                # GMix: exp(-π d²/(s·H·W)) or its complement, with the realised mean as label weight. Where s = 0 the
                # mask is the limit, λ everywhere.
                gauss = (method == 4.0) | (method == 5.0)
                released = method == 4.0
                s = tl.where(released, tl.minimum(x, 1.0 - x), 2.0 * (1.0 - x))
                volume = tl.where(s > 0.0, s, 1.0) * pixels
                if NDIM == 1:
                    squared_width = volume * volume
                elif NDIM == 2:
                    squared_width = volume
                else:
                    squared_width = tl.exp(tl.log(volume) * (2.0 / 3.0))
                rate = tl.minimum(3.141592653589793 / squared_width, 3.4028234663852886e38).to(tl.float32)
                mean = x * 0.0 + 1.0
                for axis in tl.static_range(3):
                    side = width if axis == 0 else (height if axis == 1 else depth)
                    centre = centre_x if axis == 0 else (centre_y if axis == 1 else centre_z)
                    total = tl.zeros([S], tl.float64)
                    for start in range(0, side, T):  # carries 1: total
                        pixel = start + tl.arange(0, T)
                        distance = (pixel[None, :] - centre[:, None]).to(tl.float64)
                        g = tl.exp(-rate.to(tl.float64)[:, None] * (distance * distance))
                        total += tl.sum(tl.where((pixel < side)[None, :], g, 0.0), axis=1)
                    mean = mean * total / side.to(tl.float64)
                complement = ~released | (x >= 0.5)
                varies = gauss & (s > 0.0)
                kind = tl.where(varies, tl.where(complement, 3, 2), kind)
                outer = tl.where(varies, rate, outer)
                weight = tl.where(varies, tl.where(complement, 1.0 - mean, mean), weight)
                first_x = tl.where(gauss, centre_x, first_x)
                first_y = tl.where(gauss, centre_y, first_y)
                first_z = tl.where(gauss, centre_z, first_z)

        if FOURIERS:
            # FMix: how many pixels are 1, rounded up or down by a coin, and half the ranks of the soft edge.
            fourier = method >= 7.0
            _, _, _, coin = words(key, index, 1, 0)
            number = tl.where((coin >> 31) != 0, tl.ceil(x * pixels), tl.floor(x * pixels))
            share = tl.minimum(tl.load(row + 9), tl.minimum(x, 1.0 - x))
            soft = tl.minimum(tl.floor(pixels * share), tl.minimum(number, pixels - number))
            kind = tl.where(fourier, tl.where(method == 7.0, 4, 5), kind)
            first_z = tl.where(fourier, number.to(tl.int64), first_z)
            first_y = tl.where(fourier, soft.to(tl.int64), first_y)
            outer = tl.where(fourier, tl.load(row + 8).to(tl.float32), outer)
            inner = tl.where(fourier, tl.load(row + 10).to(tl.float32), inner)
            realised = tl.where(tl.load(row + 11) != 0.0, 1.0, number / pixels)
            weight = tl.where(fourier, realised, weight)

        tl.store(lams + i, lam, mask=live)
        tl.store(weights + i, weight, mask=live)
        tl.store(kinds + i, kind, mask=live)
        tl.store(values + i * 2, outer, mask=live)
        tl.store(values + i * 2 + 1, inner, mask=live)
        tl.store(geometry + i * 6, first_z.to(tl.int32), mask=live)
        tl.store(geometry + i * 6 + 1, first_y.to(tl.int32), mask=live)
        tl.store(geometry + i * 6 + 2, first_x.to(tl.int32), mask=live)
        tl.store(geometry + i * 6 + 3, stop_z.to(tl.int32), mask=live)
        tl.store(geometry + i * 6 + 4, stop_y.to(tl.int32), mask=live)
        tl.store(geometry + i * 6 + 5, stop_x.to(tl.int32), mask=live)


_sample = Kernel(sample_kernel)
_circle = Kernel(circle_kernel)


@functools.lru_cache(maxsize=256)
def _rows_on(device: torch.device, rows: bytes) -> Tensor:
    """The rows of a spec on a device: the same ones at every step, unless a schedule changes α."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "fusedmix: the parameters of a method are not on the GPU yet, and cannot be brought there while a CUDA "
            "graph is captured. Run the step once before it is captured."
        )
    return torch.frombuffer(bytearray(rows), dtype=torch.float64).to(device)


def sample(
    request: Request, seed: Tensor, device: torch.device, src: Tensor | None, walk: Walk | None
) -> tuple[PlanTensors, Tensor | None]:
    """The plan of a request from a seed, on `device`; and the heads of `src` copied aside, if its walk has any."""
    spec, batch, size, pairing, per, p, lam, labels = request

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty((batch, *shape), dtype=dtype, device=device)

    plan = (
        empty(torch.int64),
        empty(torch.float32),
        empty(torch.float64),
        empty(torch.int32),
        empty(torch.int32, 6),
        empty(torch.float32, 2),
    )
    staged = None
    if batch == 0:
        return plan, staged
    methods = {Method(int(m)) for m in spec[:, Column.METHOD].tolist()}
    rows = _rows_on(device, bytes(spec.contiguous().view(torch.uint8).flatten().tolist()))
    seeded = seed.device == device
    seed_value = 0 if seeded else int(seed)
    key = seed if seeded else plan[0]
    nothing = plan[0]
    classes = nothing if labels is None else labels.to(device).contiguous()
    order = spot = members = nothing
    if pairing == Pairing.CROSS_CLASS:
        order, spot, members = (empty(torch.int64) for _ in range(3))
        arguments = (order, spot, members, key, int(seeded), seed_value, classes, batch)
        _circle(-(-batch // _SAMPLES), arguments, (_SAMPLES, _KEYS), device)
    given = plan[1] if lam is None else lam.to(device, torch.float32).contiguous()
    programs = -(-batch // _SAMPLES)
    heads: tuple[object, ...] = (plan[0], plan[0], (1,), (1,), 0, 0, 1, 1)
    constants, copies = (1, 1, 128), 0
    if src is not None and walk is not None and walk.staged:
        staged = src.new_empty(walk.staged)
        heads = (src, staged, walk.sizes, walk.src_strides, walk.src_batch, walk.columns, walk.tiles, walk.span)
        constants, copies = (walk.constants[1], *walk.constants[3:]), walk.tiles * walk.heads
    _sample(
        programs + copies,
        (
            *plan,
            rows,
            key,
            int(seeded),
            seed_value,
            given,
            classes,
            order,
            spot,
            members,
            batch,
            *padded(size),
            bits(p),
            programs,
            *heads,
        ),
        (
            spec.shape[0],
            spec.shape[0] > 1 or p < 1.0,
            any(m.has_centre for m in methods),
            bool(methods & {Method.GMIX_RELEASED, Method.GMIX_PAPER}),
            any(m.is_fourier for m in methods),
            bool((spec[:, Column.REFORMULATE] != 0).any()),
            0 if lam is None else 1 + lam.ndim,
            int(pairing),
            int(per),
            len(size),
            _SAMPLES,
            _KEYS,
            *constants,
        ),
        device,
    )
    return plan, staged
