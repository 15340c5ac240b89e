"""Flips and holes: what is drawn for each sample of a batch that is finished (fusedmix/finishing.py).

Everything is a pure function of (seed, index of the sample), by Philox with streams of its own, so that a plan's masks
are what they are without it. csrc/include/fusedmix/finish.h mirrors it.

A record is 4 + 4·n words of 32 bits, n being the largest number of holes: whether the sample is flipped; how many of
its holes are to be looked at; the low and the high half of the seed of its noise; and for each hole its top, left,
height and width in pixels, of the sample after its flip. A hole that found no place is empty, and so are those that
follow the last one.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from fusedmix.finishing import Finish
from fusedmix.philox import Stream, below, box_muller, uniform, words

ATTEMPTS = 10  # rectangles that are tried for a hole, as timm and torchvision do


class Word(IntEnum):
    """The words of a record before its holes."""

    FLIP = 0
    HOLES = 1
    NOISE_LOW = 2
    NOISE_HIGH = 3


HEAD, PER_HOLE = len(Word), 4


class Chances(NamedTuple):
    """What a finish draws by, as numbers: the row that operators take."""

    flip: float  # the probability
    erase: float  # the probability
    area_low: float
    area_high: float
    ratio_low: float
    ratio_log: float  # the logarithm of the highest ratio over the lowest one
    least: float  # holes of a sample that is erased
    most: float


def chances(finish: Finish) -> Chances:
    """Of a finish that erases nothing there are no holes at most."""
    erase = finish.erase
    if erase is None:
        return Chances(finish.hflip, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    (least, most), (low, high) = erase.counts, erase.ratio
    return Chances(finish.hflip, erase.p, *erase.scale, low, math.log(high / low), least, most)


def draw(of: Chances, seed: Tensor, batch_size: int, size: tuple[int, int]) -> Tensor:
    """(B, 4 + 4·holes) int32, a record of each sample, where the seed is.

    Args:
        of: what is drawn.
        seed: () int64.
        batch_size: B.
        size: the height and the width in pixels.
    """
    least, most = int(of.least), int(of.most)
    record = torch.zeros((batch_size, HEAD + PER_HOLE * most), dtype=torch.int64, device=seed.device)
    index = torch.arange(batch_size, device=seed.device)
    if of.flip:
        a, b, _, _ = words(seed, index, Stream.FLIP)
        record[:, Word.FLIP] = uniform(a, b) < of.flip
    if most:
        a, b, chosen, _ = words(seed, index, Stream.ERASE)
        count = torch.where(uniform(a, b) < of.erase, least + below(chosen, most - least + 1), 0)
        record[:, Word.HOLES] = count
        record[:, Word.NOISE_LOW], record[:, Word.NOISE_HIGH], _, _ = words(seed, index, Stream.ERASE, 1)
        record[:, HEAD:] = _holes(of, seed, index, count, size).flatten(1)
    return record.int()  # Words above 2^31 wrap.


def _holes(of: Chances, seed: Tensor, index: Tensor, count: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, holes, 4) int64, empty from the count of a sample on."""
    height, width = size
    hole = torch.arange(int(of.most), device=seed.device).unsqueeze(1)
    attempt = torch.arange(ATTEMPTS, device=seed.device)
    each = words(seed, index.reshape(-1, 1, 1), Stream.ERASE, 2 + hole * ATTEMPTS + attempt)
    area = (of.area_low + (of.area_high - of.area_low) * _unit(each[0])) * (height * width)
    area = area / count.clamp_min(1).reshape(-1, 1, 1)
    # Exponentials differ between libraries in the last bit, so they are rounded to float32, as those of boxes are.
    ratio = of.ratio_low * (_unit(each[1]) * of.ratio_log).exp().float().double()
    h, w = (nearest_root(square.clamp_max(2.0**50)) for square in (area * ratio, area / ratio))
    fits = (h < height) & (w < width)
    top, left = below(each[2], height - h + 1), below(each[3], width - w + 1)
    first = fits.long().argmax(2, keepdim=True)
    tried = torch.stack((top, left, h, w), -1)
    chosen = tried.gather(2, first.unsqueeze(-1).expand(-1, -1, -1, 4)).squeeze(2)
    there = fits.any(2) & (hole.squeeze(1) < count.unsqueeze(1))
    return torch.where(there.unsqueeze(-1), chosen, 0)


def _unit(word: Tensor) -> Tensor:
    """float64 uniform in (0, 1), symmetric about ½, from 32 bits."""
    return (2 * word + 1).double() * 2.0**-33


def nearest_root(x: Tensor) -> Tensor:
    """The integer nearest to √x, int64, of float64 numbers from 0 to 2^50: exact, whatever the last bits of a library's
    square root are. Of h + ½ it is h."""
    h = (x.sqrt() + 0.5).floor()
    h = h - (h * h - h + 0.25 >= x).double() * (h > 0)  # (h - ½)², without rounding
    return (h + (h * h + h + 0.25 < x).double()).long()


def inside(records: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, *size) int64: which hole of its sample each pixel is in, counted from 1, the last one where there are
    several; 0: none."""
    height, width = size
    holes = records[:, HEAD:].long().reshape(records.shape[0], -1, PER_HOLE)
    y = torch.arange(height, device=records.device).reshape(-1, 1)
    x = torch.arange(width, device=records.device)
    found = torch.zeros((records.shape[0], height, width), dtype=torch.int64, device=records.device)
    for k in range(holes.shape[1]):
        top, left, h, w = (part.reshape(-1, 1, 1) for part in holes[:, k].unbind(1))
        own = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
        found = torch.where(own, k + 1, found)
    return found


def normals(records: Tensor, index: Tensor, channels: int) -> Tensor:
    """(n, channels) float64 standard normal fills, of records (n, ...) and of an index (n,): that of a hole among those
    of its sample, or that of a pixel in row-major order. Independent from index to index and from channel to channel.
    """
    low, high = (records[:, word].long() & 0xFFFFFFFF for word in (Word.NOISE_LOW, Word.NOISE_HIGH))
    channel = torch.arange(channels, device=records.device)
    seed = ((high << 32) | low).unsqueeze(1)
    a, b, c, d = words(seed, index.unsqueeze(1), Stream.FILL, channel // 4)
    even, odd = box_muller(torch.where(channel % 4 < 2, a, c), torch.where(channel % 4 < 2, b, d))
    return torch.where(channel % 2 == 0, even, odd)
