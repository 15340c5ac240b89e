"""Batches that are finished, and what is drawn for them: the kernels, which finish_launch.py launches.

The meaning is fusedmix/backends/finished.py and fusedmix/erasing.py.

A program has N groups of V pixels, side by side in a row of a sample, and up to four channels of each: so what a pixel
needs, its weight, its holes, the noise in them, is found once for all of them. Groups are written as vectors of V
elements, as many as there are channels: a vector has V pixels of a channel, or V elements as pixels follow one another
in a channels_last batch (LAST). They are loaded, all before the first of them is written, in one of four ways (SOURCE):

ELEMENTS    one at a time, whatever the strides, of whatever pixels.
VECTORS     V side by side, those that a vector of the new batch is made of. No sample is flipped.
PLANES      bytes, as words of four pixels of a channel.
PIXELS      bytes, as words, which hold one after another all channels of four pixels.

In words a flip is a matter of arithmetic, and so is whether channels or pixels come first.

Where the rows of a program have no hole, of its sample or of its partner, it is done as if there were none; noise is
made for no other rows. What a launch has none of is not compiled: partners (MIXED), flips and holes (DRAWN, HOLES),
families of masks (mix_kernel.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.backends.triton import masks
from fusedmix.backends.triton.enums import ATTEMPTS, HEAD, PER_HOLE, Fillings, Pairings, Sources, Streams, Words
from fusedmix.backends.triton.masks import fourier, record
from fusedmix.backends.triton.mix_kernel import blend
from fusedmix.backends.triton.numbers import (
    below,
    by_vector,
    fma,
    from_bits,
    from_compute,
    jit_kernel,
    normals,
    one_of,
    partner_of,
    seed_of,
    to_compute,
    uniform,
    words,
)

TOGETHER = 4  # channels of a program
_TOGETHER = tl.constexpr(TOGETHER)


# ---- Loading ---------------------------------------------------------------------------------------------------------


@triton.jit
def element(k, lane, CHANNELS: tl.constexpr, LAST: tl.constexpr, V: tl.constexpr):
    """Which pixel of its group, and which channel, the elements of vector k are of."""
    if LAST:
        pixel, channel = (k * V + lane) // CHANNELS, (k * V + lane) % CHANNELS
    else:
        pixel, channel = lane, lane * 0 + k
    return pixel, channel


@triton.jit
def byte_of(held, at):
    """Byte `at` of a word, or of words."""
    return (held >> (8 * at)) & 255


@triton.jit
def moved(held, FROM: tl.constexpr, TO: tl.constexpr):
    """A byte of words, by its number among all of them, as byte TO of a word."""
    return byte_of(held[FROM // 4], FROM % 4) << (8 * TO)


@triton.jit
def turned(held, CHANNELS: tl.constexpr, SOURCE: tl.constexpr):
    """Words of groups, their pixels in reverse."""
    reverse = ()
    for m in tl.static_range(CHANNELS):
        word = held[m] * 0
        for b in tl.static_range(4):
            if SOURCE == Sources.PLANES:
                word |= moved(held, 4 * m + 3 - b, b)
            else:
                word |= moved(held, (3 - (4 * m + b) // CHANNELS) * CHANNELS + (4 * m + b) % CHANNELS, b)
        reverse = reverse + (word,)  # type: ignore[assignment]
    return reverse


@triton.jit
def load(src, i, flip, spot, wanted, strides, part, DRAWN: tl.constexpr, CHANNELS: tl.constexpr, HELD: tl.constexpr,
         LAST: tl.constexpr, SOURCE: tl.constexpr, V: tl.constexpr):  # fmt: skip
    """What `number` takes: the elements of sample i that the vectors of a part are made of, where they are `wanted`."""
    _, y, column, lane, width = spot
    batch_stride, channel_stride, row_stride, pixel_stride = strides
    if DRAWN:
        column = tl.where(flip, width // V - 1 - column, column)
    row = i * batch_stride + y.to(tl.int64) * row_stride
    found = ()
    if SOURCE == Sources.PLANES or SOURCE == Sources.PIXELS:
        at = src.to(tl.pointer_type(tl.int32), bitcast=True) + row
        at += column if SOURCE == Sources.PLANES else column.to(tl.int64) * CHANNELS
        for m in tl.static_range(CHANNELS):
            beside = m * channel_stride.to(tl.int64) if SOURCE == Sources.PLANES else m
            found = found + (tl.load(at + beside, mask=wanted, other=0),)  # type: ignore[assignment]
        if DRAWN:
            reverse = turned(found, CHANNELS, SOURCE)
            chosen = ()
            for m in tl.static_range(CHANNELS):
                chosen = chosen + (tl.where(flip, reverse[m], found[m]),)  # type: ignore[assignment]
            found = chosen
    else:
        for m in tl.static_range(HELD):
            k = part * HELD + m
            pixel, channel = element(k, lane, CHANNELS, LAST, V)
            if SOURCE == Sources.VECTORS:
                if LAST:
                    vector = row + column.to(tl.int64) * CHANNELS + k
                else:
                    vector = row + (row * 0 + k) * channel_stride + column
                at = by_vector(src, vector * V + lane, V)
            else:
                x = column * V + (tl.where(flip, V - 1 - pixel, pixel) if DRAWN else pixel)
                at = src + (row + channel.to(tl.int64) * channel_stride + x.to(tl.int64) * pixel_stride)
            found = found + (tl.load(at, mask=wanted & (row * 0 + k < CHANNELS), other=0),)  # type: ignore[assignment]
    return found


@triton.jit
def number(found, m, pixel, channel, CHANNELS: tl.constexpr, SOURCE: tl.constexpr):
    """The elements of vector m of a part, float32."""
    if SOURCE == Sources.PLANES:
        x = byte_of(one_of(found, channel, CHANNELS), pixel).to(tl.float32)
    elif SOURCE == Sources.PIXELS:
        k = pixel * CHANNELS + channel
        x = byte_of(one_of(found, k // 4, CHANNELS), k % 4).to(tl.float32)
    else:
        x = to_compute(found[m])
    return x


# ---- Holes -----------------------------------------------------------------------------------------------------------


@triton.jit
def sides_of(holes, k):
    """The first row and the first column of hole k, and those behind the last ones."""
    at = holes + HEAD + k * PER_HOLE
    top, left = tl.load(at).to(tl.int64), tl.load(at + 1).to(tl.int64)
    return top, left, top + tl.load(at + 2), left + tl.load(at + 3)


@triton.jit
def count_of(holes, HOLES: tl.constexpr):
    return tl.minimum(tl.load(holes + Words.HOLES), HOLES)


@triton.jit
def is_near(holes, first, last, HOLES: tl.constexpr):
    """Whether a hole of a sample is in one of the rows from the first to the last."""
    near = first < 0
    for k in range(count_of(holes, HOLES)):  # carries 1: near
        top, _, bottom, _ = sides_of(holes, k)
        near = near | ((top <= last) & (first < bottom))
    return near


@triton.jit
def bytes_below(n):
    """The n lowest bytes of a word, of 0 to 4. (It cannot be shifted by 32 bits at once.)"""
    return ((tl.full(n.shape, 1, tl.int32) << (4 * n)) << (4 * n)) - 1


@triton.jit
def holes_at(holes, y, column, HOLES: tl.constexpr, V: tl.constexpr):
    """Which hole of a sample the pixels of groups are in, counted from 1, the last one of several; 0: none.

    They are bytes, V in a word, because of blocks that a loop carries Triton does not find out that a thread had best
    have all pixels of a group: it would share them out, and bring them back through shared memory."""
    found = (y * 0 + column * 0).to(tl.int32)
    for k in range(count_of(holes, HOLES)):  # carries 1: found
        top, left, bottom, right = sides_of(holes, k)
        first = tl.minimum(tl.maximum(left - column * V, 0), V).to(tl.int32)
        last = tl.minimum(tl.maximum(right - column * V, first), V).to(tl.int32)
        inside = tl.where((y >= top) & (y < bottom), bytes_below(last) ^ bytes_below(first), 0)
        found = (found & ~inside) | (inside & ((k + 1) * 0x01010101))
    return found


@triton.jit
def noise_of(holes, found, near, spot, part, CHANNELS: tl.constexpr, LAST: tl.constexpr, FILL: tl.constexpr,
             V: tl.constexpr):  # fmt: skip
    """The fills of holes, group by group, if they are noise and some are near: four channels of every pixel; of more
    channels that come last, of every element of a vector those four that its channel is among."""
    _, y, column, _, width = spot
    zero = (y * 0 + column * 0).to(tl.float32)
    noise = ()
    for _ in tl.static_range(0 if FILL == Fillings.NUMBER else 4 * V):
        noise = noise + (zero,)  # type: ignore[assignment]
    if FILL != Fillings.NUMBER:
        if near:
            low, high = tl.load(holes + Words.NOISE_LOW), tl.load(holes + Words.NOISE_HIGH)
            seed = (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)
            noise = ()
            for at in tl.static_range(V):
                pixel, channel = at, part * _TOGETHER
                if LAST and CHANNELS > _TOGETHER:
                    pixel, channel = element(part, at, CHANNELS, LAST, V)
                if FILL == Fillings.EACH_HOLE:
                    index = (byte_of(found, pixel) - 1).to(tl.int64)
                else:
                    index = y.to(tl.int64) * width + column * V + pixel
                a, b, c, d = words(seed, index, Streams.FILL, (y * 0 + channel // 4).to(tl.uint32))
                first, second = normals(a, b)
                third, fourth = normals(c, d)
                noise = noise + (first, second, third, fourth)  # type: ignore[assignment]
    return noise


@triton.jit
def fill_of(noise, part, M: tl.constexpr, AT: tl.constexpr, CHANNELS: tl.constexpr, LAST: tl.constexpr,
            V: tl.constexpr):  # fmt: skip
    """The fill of element AT of vector M, group by group."""
    if LAST and CHANNELS > _TOGETHER:
        which = noise[0].to(tl.int32) * 0 + (part * V + AT) % CHANNELS % 4
        fill = one_of((noise[4 * AT], noise[4 * AT + 1], noise[4 * AT + 2], noise[4 * AT + 3]), which, 4)
    elif LAST:
        fill = noise[(M * V + AT) // CHANNELS * 4 + (M * V + AT) % CHANNELS]
    else:
        fill = noise[4 * AT + M]
    return fill


@triton.jit
def alone(v, hole, noise, part, M: tl.constexpr, affine, CHANNELS: tl.constexpr, LAST: tl.constexpr,
          FILL: tl.constexpr, V: tl.constexpr):  # fmt: skip
    """A sample without mixing: normalised, and filled where it has holes."""
    scale, shift, fill = affine
    if FILL != Fillings.NUMBER:
        fill = fill_of(noise, part, M, 0, CHANNELS, LAST, V)
        if V == 4:  # Joined, not chosen by element, so that a thread keeps what it has made.
            second, third = fill_of(noise, part, M, 1, CHANNELS, LAST, V), fill_of(noise, part, M, 2, CHANNELS, LAST, V)
            last = fill_of(noise, part, M, 3, CHANNELS, LAST, V)
            fill = tl.reshape(tl.join(tl.join(fill, third), tl.join(second, last)), v.shape)
    return tl.where(hole > 0, fill, fma(v, scale, shift))


# ---- The new batch ---------------------------------------------------------------------------------------------------


@triton.jit
def mixed(w, a, b, BYTES: tl.constexpr, BINARY: tl.constexpr):
    """float32. Of bytes the difference and, where w is 0 or 1, the sum are exact, so it is what `blend` is."""
    w = tl.broadcast_to(w, a.shape)
    return tl.where(w == 1.0, a, b) if BINARY else (fma(w, a - b, b) if BYTES else blend(w, a, b))


@triton.jit
def numbers_of(affine, CHANNELS: tl.constexpr):
    """What elements are multiplied with, what is added then, the fill: of all channels, if these are few."""
    numbers = ()
    for row in tl.static_range(3):
        of_row = ()
        for c in tl.static_range(CHANNELS if CHANNELS <= _TOGETHER else 0):
            of_row = of_row + (tl.load(affine + row * CHANNELS + c),)  # type: ignore[assignment]
        numbers = numbers + (of_row,)  # type: ignore[assignment]
    return affine, numbers


@triton.jit
def affine_of(numbers, channel, like, ROW: tl.constexpr, CHANNELS: tl.constexpr):
    """A row of these for the channels of elements."""
    affine, known = numbers
    if CHANNELS <= _TOGETHER:
        of = one_of(known[ROW], channel, CHANNELS)
    else:
        of = tl.load(affine + ROW * CHANNELS + tl.minimum(channel, CHANNELS - 1))
    return tl.broadcast_to(of, like.shape)


@triton.jit
def vectors_at(spot, pixel, height, V: tl.constexpr):
    """A pixel of every group as masks take them (mix_kernel.py, `vectors_of`)."""
    _, y, column, _, width = spot
    z, first = y * 0, column * V
    place, low, high = (z, y, first + pixel), (z, y, first), (z, y, first + V - 1)
    spots = (
        fourier.pixel_of(z, y, first + pixel, height, width),
        (z + pixel).to(tl.int32),
        fourier.pixel_of(z, y, first, height, width),
        fourier.pixel_of(z, y, first + V - 1, height, width),
    )
    return place, low, high, spots


@triton.jit
def write(to, found, mask, holes, near, numbers, spot, height, live, part,
          MIXED: tl.constexpr, FAMILIES: tl.constexpr, BINARY: tl.constexpr, HOLES: tl.constexpr, FILL: tl.constexpr,
          ERASED: tl.constexpr, BYTES: tl.constexpr, CHANNELS: tl.constexpr, HELD: tl.constexpr, LAST: tl.constexpr,
          SOURCE: tl.constexpr, V: tl.constexpr):  # fmt: skip
    """The vectors of a part. ERASED: whether there may be holes in these rows."""
    own, lent = found
    group, y, column, lane, _ = spot
    target, vector_stride = to
    if ERASED:
        own_holes = holes_at(holes[0], y, column, HOLES, V)
        own_noise = noise_of(holes[0], own_holes, near[0], spot, part, CHANNELS, LAST, FILL, V)
        if MIXED:
            lent_holes = holes_at(holes[1], y, column, HOLES, V)
            lent_noise = noise_of(holes[1], lent_holes, near[1], spot, part, CHANNELS, LAST, FILL, V)
    for m in tl.static_range(HELD):
        k = part * HELD + m
        pixel, channel = element(k, lane, CHANNELS, LAST, V)
        a = number(own, m, pixel, channel, CHANNELS, SOURCE)
        scale, shift = affine_of(numbers, channel, a, 0, CHANNELS), affine_of(numbers, channel, a, 1, CHANNELS)
        v = a
        if MIXED:
            if LAST or m == 0:  # Elsewhere all channels have the same pixels.
                w = masks.at(mask, vectors_at(spot, pixel, height, V), FAMILIES, 2, 1)
            b = number(lent, m, pixel, channel, CHANNELS, SOURCE)
            v = mixed(w, a, b, BYTES, BINARY)
        made = fma(v, scale, shift)
        if ERASED:
            affine = scale, shift, affine_of(numbers, channel, a, 2, CHANNELS)
            hole = byte_of(own_holes, pixel)
            filled = alone(a, hole, own_noise, part, m, affine, CHANNELS, LAST, FILL, V)
            if MIXED:
                lent_hole = byte_of(lent_holes, pixel)
                other = alone(b, lent_hole, lent_noise, part, m, affine, CHANNELS, LAST, FILL, V)
                filled, hole = mixed(w, filled, other, False, BINARY), hole | lent_hole
            made = tl.where(hole > 0, filled, made)
        at = by_vector(target, (group * 0 + k) * vector_stride + lane, V)
        tl.store(at, from_compute(made, target.dtype.element_ty), mask=live & (group * 0 + k < CHANNELS))


# Long, because all that its branches find (places, partners, weights, holes) goes into one call at its end.
@jit_kernel("src", "dst")
def finish_images_kernel(
    src, dst, affine, draws, partner, records,
    word_0, word_1, word_2, word_3, word_4, word_5, word_6, word_7, word_8, word_9, word_10, word_11,
    batch_stride, channel_stride, row_stride, pixel_stride, groups, tiles, batch, pixels, across, rows, height, width,
    MIXED: tl.constexpr, PAIRING: tl.constexpr, MASKS: tl.constexpr, FAMILIES: tl.constexpr, BINARY: tl.constexpr,
    DRAWN: tl.constexpr, HOLES: tl.constexpr, FILL: tl.constexpr, CHANNELS: tl.constexpr, LAST: tl.constexpr,
    SOURCE: tl.constexpr, FLAT: tl.constexpr, V: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The new batch, of `groups` a sample. Of what is loaded as words or vectors strides are in these. FLAT: whether
    all rows of a sample may be taken for one."""
    given = (word_0, word_1, word_2, word_3, word_4, word_5, word_6, word_7, word_8, word_9, word_10, word_11)
    # Where elements of a vector may be of any channels, vectors have nothing in common.
    HELD: tl.constexpr = min(CHANNELS, 1 if LAST and CHANNELS > _TOGETHER else _TOGETHER)
    PARTS: tl.constexpr = (CHANNELS + HELD - 1) // HELD
    BYTES: tl.constexpr = src.dtype.element_ty == tl.uint8
    program, part = tl.program_id(0), 0
    if PARTS > 1:
        part, program = program % PARTS, program // PARTS
    if MIXED and PAIRING != Pairings.ROLL:  # The partner is in the L2 cache, as in mix_kernel.py.
        tile, sample = program // batch, program % batch
    else:
        tile, sample = program % tiles, program // tiles
    start = (tile + 0 * groups) * N  # 64 bits, if `groups` has them.
    group = start + tl.arange(0, N)[None, :, None]
    live = (group >= 0) & (group < groups)
    lane = tl.arange(0, V)[None, None, :]
    per_row = groups if FLAT else width // V
    if FLAT:
        y, column = group * 0, group
    else:
        y, column = group // per_row, group % per_row
    spot = group, y, column, lane, width
    strides = batch_stride, channel_stride, row_stride, pixel_stride

    i = sample.to(tl.int64)
    each = tl.full([1, 1, 1], 0, tl.int64)
    own, lent, j, mask, flips = live, live, i, (), (live, live)
    if MIXED:
        j = partner_of(i, partner, batch, PAIRING).to(tl.int64)
        mask = record.load(i + each, records, given, (pixels, across, rows, batch), MASKS, BINARY)
        own, lent = masks.reach(mask, vectors_at(spot, lane, height, V), live, FAMILIES, 2, 1)
    WORDS: tl.constexpr = HEAD + PER_HOLE * HOLES
    holes = draws + i * WORDS, draws + j * WORDS
    if DRAWN:
        flips = tl.load(holes[0] + each + Words.FLIP) != 0, tl.load(holes[1] + each + Words.FLIP) != 0
    first = load(src, i + each, flips[0], spot, own, strides, part, DRAWN, CHANNELS, HELD, LAST, SOURCE, V)
    second = first
    if MIXED:
        second = load(src, j + each, flips[1], spot, lent, strides, part, DRAWN, CHANNELS, HELD, LAST, SOURCE, V)
    area = groups.to(tl.int64) * V
    image = i * CHANNELS * area
    if LAST:
        to = dst + image + group.to(tl.int64) * CHANNELS * V, V
    else:
        to = dst + image + group.to(tl.int64) * V, area
    found, numbers = (first, second), numbers_of(affine, CHANNELS)
    if HOLES > 0:
        top, bottom = start // per_row, (tl.minimum(start + N, groups) - 1) // per_row
        near = is_near(holes[0], top, bottom, HOLES), is_near(holes[1], top, bottom, HOLES) if MIXED else False
        if near[0] | near[1]:
            write(to, found, mask, holes, near, numbers, spot, height, live, part,
                  MIXED, FAMILIES, BINARY, HOLES, FILL, True, BYTES, CHANNELS, HELD, LAST, SOURCE, V)  # fmt: skip
        else:
            write(to, found, mask, holes, (), numbers, spot, height, live, part,
                  MIXED, FAMILIES, BINARY, HOLES, FILL, False, BYTES, CHANNELS, HELD, LAST, SOURCE, V)  # fmt: skip
    else:
        write(to, found, mask, holes, (), numbers, spot, height, live, part,
              MIXED, FAMILIES, BINARY, HOLES, FILL, False, BYTES, CHANNELS, HELD, LAST, SOURCE, V)  # fmt: skip


# ---- Draws -----------------------------------------------------------------------------------------------------------


@triton.jit
def unit(word):
    """float64 uniform in (0, 1), symmetric about ½, from 32 bits."""
    return (2 * word.to(tl.int64) + 1).to(tl.float64) * 1.1641532182693481e-10


@triton.jit
def nearest_root(x):
    """The integer nearest to √x, float64 from 0 to 2^50, whatever the last bits of the square root are."""
    h = tl.floor(tl.sqrt(x) + 0.5)
    h = tl.where((h > 0.0) & (h * h - h + 0.25 >= x), h - 1.0, h)
    return tl.where(h * h + h + 0.25 < x, h + 1.0, h).to(tl.int64)


@jit_kernel("out")
def draw_finish_kernel(
    out, seed, seeded, seed_value: tl.int64, batch, height, width, parts, most, least, flip: tl.int64, erase: tl.int64,
    area_low: tl.int64, area_more: tl.int64, ratio_low: tl.int64, ratio_log: tl.int64, area: tl.int64,
    S: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The records of S samples: of one program what comes before the holes, and one of them, by T >= ATTEMPTS tries at
    once, of which the first that fits is written; each of the others writes another hole."""
    part = tl.program_id(0) % parts
    i = (tl.program_id(0).to(tl.int64) // parts * S + tl.arange(0, S))[:, None]
    attempt = tl.arange(0, T)[None, :]
    key, zero = seed_of(seed, seeded, seed_value), (attempt * 0).to(tl.uint32)
    record = out + i * (HEAD + PER_HOLE * most) + attempt * 0

    a, b, c, _ = words(key, i, Streams.ERASE, zero)
    count = tl.where(uniform(a, b) < from_bits(erase), least + below(c, (most - least + 1).to(tl.int64)), 0)
    head = (i < batch) & (part == 0) & (attempt == 0)
    a, b, _, _ = words(key, i, Streams.FLIP, zero)
    tl.store(record + Words.FLIP, (uniform(a, b) < from_bits(flip)).to(tl.int32), mask=head)
    tl.store(record + Words.HOLES, count.to(tl.int32), mask=head)
    low, high, _, _ = words(key, i, Streams.ERASE, zero + 1)
    tl.store(record + Words.NOISE_LOW, tl.where(most > 0, low, 0).to(tl.int32, bitcast=True), mask=head)
    tl.store(record + Words.NOISE_HIGH, tl.where(most > 0, high, 0).to(tl.int32, bitcast=True), mask=head)

    a, b, c, d = words(key, i, Streams.ERASE, (2 + part * ATTEMPTS + attempt).to(tl.uint32))
    share = (from_bits(area_low) + from_bits(area_more) * unit(a)) * from_bits(area)
    share = share / tl.maximum(count, 1).to(tl.float64)
    # Exponentials differ between libraries in the last bit, so they are rounded to float32, as those of boxes are.
    ratio = from_bits(ratio_low) * tl.exp(unit(b) * from_bits(ratio_log)).to(tl.float32).to(tl.float64)
    h = nearest_root(tl.minimum(share * ratio, 1125899906842624.0))
    w = nearest_root(tl.minimum(share / ratio, 1125899906842624.0))
    fits = (h < height) & (w < width) & (part < count) & (attempt < ATTEMPTS)
    first = tl.min(tl.where(fits, attempt, T), axis=1)[:, None]
    hole = record + HEAD + part * PER_HOLE
    chosen = (i < batch) & (part < most) & (attempt == tl.where(first < T, first, 0))
    top, left = below(c, height - h + 1), below(d, width - w + 1)
    tl.store(hole, tl.where(fits, top, 0).to(tl.int32), mask=chosen)
    tl.store(hole + 1, tl.where(fits, left, 0).to(tl.int32), mask=chosen)
    tl.store(hole + 2, tl.where(fits, h, 0).to(tl.int32), mask=chosen)
    tl.store(hole + 3, tl.where(fits, w, 0).to(tl.int32), mask=chosen)
