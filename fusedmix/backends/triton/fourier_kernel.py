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

import itertools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedmix.backends.triton.enums import Kinds, Streams
from fusedmix.backends.triton.launch import Kernel
from fusedmix.backends.triton.masks import fourier
from fusedmix.backends.triton.numbers import draw_index, seed_of, turn, words
from fusedmix.fourier import fourier_rows, frequencies, rows, words_per_mask
from fusedmix.masks.family import padded
from fusedmix.methods import Kind, Method

_SCRATCH = 24 << 20  # bytes, unless one mask needs more
_BLOCK = 256  # coefficients, waves or ranks of a program
_ROWS, _COLUMNS = 32, 128  # of a sum: a thread holds 32 complex numbers
_PIXELS = 4096  # that a program selects among at a time, by 16 warps
_WIDTH = tl.constexpr(_COLUMNS)
_TURN = tl.constexpr(1 << 24)


@triton.jit
def is_made(m, decay, cutoff, KIND: tl.constexpr):
    """Whether masks are of this kind, decay and cut-off."""
    return (m[0] == KIND) & (m[3] == decay) & (m[4] == cutoff)


@triton.jit(do_not_specialize=["nz", "ny", "nx", "first_z", "first_y", "depth", "height", "width", "total"])
def waves_kernel(waves, nz, ny, nx, first_z, first_y, depth, height, width, total, N: tl.constexpr):
    """cos and sin, two rows, of what the sums multiply by, for each axis z, y, x: of 2πx/side for every x; then of
    2πkv/side for every frequency k and the first pixels v."""
    at = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    of_y = depth + nz.to(tl.int64) * _WIDTH
    of_x = of_y + height + ny.to(tl.int64) * _WIDTH
    place = tl.where(at < of_y, at, tl.where(at < of_x, at - of_y, at - of_x))
    side = tl.where(at < of_y, depth, tl.where(at < of_x, height, width)).to(tl.int64)
    first = tl.where(at < of_y, first_z, tl.where(at < of_x, first_y, 0)).to(tl.int64)
    k = first + (place - side) // _WIDTH
    # What is left of a negative product is negative.
    product = ((k * ((place - side) % _WIDTH)) % side + side) % side
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


@triton.jit(
    do_not_specialize=[
        "seeded", "seed_value", "decay", "cutoff", "first", "many", "batch", "tiles",
        "nz", "ny", "nx", "first_z", "first_y", "depth", "height", "width", "longest",
    ],
    do_not_specialize_on_alignment=["records", "seed"],
)  # fmt: skip
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

        # Noise: the number of a frequency does not depend on the sides.
        along_y, along_z = tl.abs(ky), 2 * tl.abs(kz) - (kz > 0).to(tl.int64)
        if NDIM == 1:
            number = kx
        elif NDIM == 2:
            number = kx + (along_y << 16)
        else:
            number = kx + (along_y << 10) + (along_z << 20)
        index = draw_index(first + mask, batch, PER).to(tl.int64)
        key = seed_of(seed, seeded, seed_value)
        a, b, c, d = words(key, index, Streams.NOISE, number.to(tl.uint32))
        high, low = tl.where(ky < 0, c, a), tl.where(ky < 0, d, b)
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


@triton.jit(
    do_not_specialize=[
        "decay", "cutoff", "first", "many", "tiles", "count", "inner", "side", "k_first", "of_axis", "total",
    ],
    do_not_specialize_on_alignment=["records"],
)  # fmt: skip
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
        # k·x0 modulo the side, from one k to the next.
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


@triton.jit(
    do_not_specialize=["decay", "cutoff", "first", "pixels", "across"], do_not_specialize_on_alignment=["records"]
)
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
            if left < equal:  # of the equal ones the first: those that have fewer than `left` before them
                each = chosen.to(tl.int32)
                of_line = tl.sum(each, axis=1)
                before = taken + tl.cumsum(of_line, axis=0) - of_line
                chosen = chosen & (before[:, None] + tl.cumsum(each, axis=1) <= left)
                taken += tl.sum(of_line, axis=0)
            chosen = chosen | ((at < pixels) & (key > edge))
            word = tl.sum(chosen.to(tl.int32) << lane, axis=1)
            to = start // 32 + line
            tl.store(out + i * across + to, word, mask=to < across)


@triton.jit(
    do_not_specialize=["decay", "cutoff", "first", "pixels", "tiles"], do_not_specialize_on_alignment=["records"]
)
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


_waves = Kernel(waves_kernel)
_coefficients = Kernel(coefficients_kernel)
_sum = Kernel(sum_kernel)
_select = Kernel(select_kernel, warps=16)
_level = Kernel(level_kernel)


def masks(
    spec: Tensor, records: Tensor, seed: Tensor, size: tuple[int, ...], per: int, draws: int, soft: bool
) -> Tensor:
    """The pixels of the Fourier masks of a plan, on its device: bits or levels (fusedmix/fourier.py, `masks`)."""
    size, device, batch = tuple(size), records.device, records.shape[0]
    n, pixels = rows(per, batch), math.prod(size)
    shape, dtype = ((n, pixels), torch.int16) if soft else ((n, words_per_mask(size)), torch.int32)
    out = torch.zeros(shape, dtype=dtype, device=device)
    if n == 0:
        return out
    records = records.contiguous()
    seeded = seed.device == device
    of_seed = (seed if seeded else records.new_empty(1, dtype=torch.int64), int(seeded), 0 if seeded else int(seed))
    write = level if soft else select
    for method, decay, cutoff in sorted(set(fourier_rows(spec))):
        released = method == Method.FMIX_RELEASED
        what = int(Kind.FOURIER_RELEASED if released else Kind.FOURIER)
        along = frequencies(size, "released" if released else "paper", cutoff)
        waves = _made_waves(size, along, device)
        step = _chunk(size, [len(k) for k in along], n, soft, waves.nbytes)
        for first in range(0, n, step):
            plan = records, decay, cutoff, first
            sums = plan, what, min(step, n - first), of_seed, batch, draws, size, along, waves
            # Fields have no name here, and waves lose theirs: they would live on while the next ones are made.
            write(out, _fields(*sums), records, decay, cutoff, first, what)
        del sums, waves
    return out


def select(out: Tensor, field: Tensor, records: Tensor, decay: float, cutoff: float, first: int, what: int) -> None:
    """Writes the bits of masks `first` and on, of their fields (many, S), into rows of `out`."""
    numbers = records, decay, cutoff, first
    _select(field.shape[0], (out, field, *numbers, field.shape[1], out.shape[1]), (what, _PIXELS), out.device)


def level(out: Tensor, field: Tensor, records: Tensor, decay: float, cutoff: float, first: int, what: int) -> None:
    """Writes the levels of masks `first` and on, of their fields (many, S), into rows of `out`."""
    many, pixels = field.shape
    order = field.sort(dim=1, descending=True, stable=True).indices
    tiles = -(-pixels // _BLOCK)
    numbers = records, decay, cutoff, first, pixels, tiles
    _level(many * tiles, (out, order, *numbers), (what, _BLOCK), out.device)


def _chunk(size: tuple[int, ...], along: list[int], n: int, soft: bool, waves: int) -> int:
    """How many masks are made at a time: as many as the scratch allows beside the bytes of the waves, in chunks of
    about the same size."""
    pixels = math.prod(size)
    held, shape = [2 * math.prod(along)], along
    for side in size:
        shape = [*shape[1:], side]
        held.append(2 * math.prod(shape))
    held[-1] = pixels
    most = max(map(sum, itertools.pairwise(held)))
    if soft:  # the field, its values and indices in order, and twice as much as all that for torch to sort it
        most = max(most, 12 * pixels)
    chunks = -(-n // max(1, (_SCRATCH - waves) // (4 * most)))
    return -(-n // chunks)


def _made_waves(size: tuple[int, ...], along: tuple[range, ...], device: torch.device) -> Tensor:
    """(2, ...) cos and sin: for every axis of three its sides' worth, then a tile for each frequency."""
    counts, firsts = _padded_frequencies(along)
    total = sum(side + count * _COLUMNS for side, count in zip(padded(size), counts, strict=True))
    waves = torch.empty((2, total), device=device)
    arguments = (waves, *counts, *firsts, *padded(size), total)
    _waves(-(-total // _BLOCK), arguments, (_BLOCK,), device)
    return waves


def _padded_frequencies(along: tuple[range, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many there are along z, y and x; and the first along z and y."""
    three = (range(1),) * (3 - len(along)) + along
    return tuple(len(k) for k in three), tuple(k.start for k in three[:2])


def _fields(
    plan: tuple[Tensor, float, float, int],
    what: int,
    many: int,
    of_seed: tuple[Tensor, int, int],
    batch: int,
    draws: int,
    size: tuple[int, ...],
    along: tuple[range, ...],
    waves: Tensor,
) -> Tensor:
    """(many, S) grey images of the masks of a plan from `first` on."""
    records, decay, cutoff, first = plan
    device, ndim, total = records.device, len(size), waves.shape[1]
    counts, firsts = _padded_frequencies(along)
    each = math.prod(counts)
    tiles = -(-each // _BLOCK)
    numbers = (decay, cutoff, first, many, batch, tiles, *counts, *firsts, *padded(size), max(size))
    coefficients = torch.empty((2, many, each), device=device)
    constants = (what, ndim, int(draws), _BLOCK)
    _coefficients(many * tiles, (coefficients, records, *of_seed, *numbers), constants, device)
    shape = [len(k) for k in along]
    of_axis = sum(1 + _COLUMNS for _ in range(3 - ndim))
    for axis, (k, side) in enumerate(zip(along, size, strict=True)):
        last, inner = axis == ndim - 1, math.prod(shape[1:])
        out = torch.empty((1 if last else 2, many, inner * side), device=device)
        tiles = -(-side // _COLUMNS)
        numbers = (decay, cutoff, first, many, tiles, len(k), inner, side, k.start, of_axis, total)
        programs, constants = -(-many * inner // _ROWS) * tiles, (what, last, _ROWS, _COLUMNS)
        _sum(programs, (out, coefficients, waves, records, *numbers), constants, device)
        coefficients, shape = out, [*shape[1:], side]
        of_axis += side + len(k) * _COLUMNS
    return coefficients[0]
