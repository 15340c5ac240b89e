"""Counter-based random numbers: Philox4x32-10, and what is made of its words.

A draw is a pure function of (seed, logical index, stream, call): no state, no order, no thread ids. So the same
seed gives the same numbers on every device and however the work is split.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
All functions work on int64 tensors that hold 32-bit words, because PyTorch's uint32 has no arithmetic.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Words = tuple[Tensor, Tensor, Tensor, Tensor]


class Stream(IntEnum):
    """What a counter is used for: the third word of the counter, part of what a seed means. Never renumber."""

    LAM = 0  # call 0 and 1: the four uniforms of λ
    # Words 0, 1, 2: the centre along the last, second to last, third to last axis, or the place of a box that is wholly
    # inside; 3: FMix's coin.
    CENTRE = 1
    CHOICE = 2  # words 0-1: which method; words 2-3: whether the batch's p lets the sample be mixed
    APPLY = 3  # words 0-1: whether the chosen method's own p lets it
    # Words 0-1: the sort key of the random permutation; 2-3: which partner is drawn by distance (fusedmix/pairing.py).
    PARTNER = 4
    CLASS = 5  # words 0-1: the sort key of a class (index = the class), cross_class
    SHIFT = 6  # words 0-1 at index 0: the rotation of cross_class
    NOISE = 7  # the Fourier noise of a mask; which call is which frequency: fusedmix/fourier.py
    SWAP = 8  # words 0-1: whether λ ~ Beta(α, α) turns into 1-λ, to be Beta(α+1, α)
    SIDES = 9  # words 0, 1, 2: the sides of a box along the axes of CENTRE, where they do not follow from λ
    ASPECT = 10  # word 0: the width/height of a box
    RATIO = 11  # call 0 and 1: the four uniforms of HMix's ratio
    CELLS = 12  # the cells of a grid: one word for each step
    OWN = 13  # what else a family draws for a mask of its own: two uniforms of 52 bits for each call
    FLIP = 14  # words 0-1: whether a sample is flipped
    # Call 0, words 0-1: whether a sample is erased; word 2: how many holes. Call 1, words 0-1: the seed of its noise.
    # Call 2 + 10k + t, words 0, 1, 2, 3: area, height/width, top, left of the t-th rectangle that is tried for hole k.
    ERASE = 15
    FILL = 16  # the normal fills of holes, key: the seed of the sample's noise; call c: of channels 4c to 4c+3
    CROP_LAM = 20  # call 0 and 1: the four uniforms of the λ of SnapMix's box in the partner
    CROP_CENTRE = 21  # words 0, 1, 2: its centre along the axes of CENTRE
    SPECTRUM = 27  # the noise of SpectralMix's fields; which call is which frequency: fusedmix/fourier.py
    LAW = 28  # words 0-1: λ of MixUp(lam_law=)
    # Call 0, words 0-1: the side of a pasted box, the scale of a mosaic; call 1: its centre along the axes of CENTRE.
    PASTE = 30
    CUT = 31  # index: d times the draw, and the side; call 0 and 1: the four uniforms of where a side is cut
    CROP = 32  # call: which part of the image; words 0, 1, 2: where its crop begins along the first, second, third side
    # Call 2n and 2n + 1: the four uniforms of how the n-th part is halved, from the whole on (fusedmix/multi.py).
    TERMS = 34
    RANKS = 35  # call t, words 0-1: the sort key of partner t
    CUTOUT = 37  # words 0, 1, 2: the centre along the axes of CENTRE
    # Call 0, word 0: the period of the grid; word 1: its turn. Call 1: where it begins along the axes of CENTRE.
    GRIDMASK = 38
    # Of SpecMix. Call 0: how many bands there are along each axis. Call 1 + 3a + b, word 0: where band b along axis a
    # begins; words 1-2: its width.
    BANDS = 44


def philox4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Ten rounds of Philox on a counter of four and a key of two 32-bit words (int64 tensors, broadcast)."""
    c0, c1, c2, c3, *_ = torch.broadcast_tensors(*counter, *key)
    keys = [
        (k.unsqueeze(-1) + torch.arange(0, _ROUNDS * weyl, weyl, device=k.device)).bitwise_and_(_MASK).unbind(-1)
        for k, weyl in zip(key, _WEYL, strict=True)
    ]
    for k0, k1 in zip(*keys, strict=True):
        # A product of two 32-bit words may pass 2^63; int64 wraps, and the mask recovers the true upper half.
        low = c0 * _MULTIPLIER[0]
        high = c2 * _MULTIPLIER[1]
        c0, c1, c2, c3 = (
            (high >> 32).bitwise_and_(_MASK).bitwise_xor_(c1).bitwise_xor_(k0),
            high.bitwise_and_(_MASK),
            (low >> 32).bitwise_and_(_MASK).bitwise_xor_(c3).bitwise_xor_(k1),
            low.bitwise_and_(_MASK),
        )
    return c0, c1, c2, c3


def words(seed: Tensor, index: Tensor, stream: Stream, call: int | Tensor = 0) -> Words:
    """The four words at a logical index.

    Args:
        seed: int64 scalar, all 64 bits used as the key.
        index: int64, any shape and value (64 bits): the first half of the counter.
        stream, call: the second half of the counter; several calls broadcast against index.
    """
    zero = index * 0
    counter = (index & _MASK, (index >> 32) & _MASK, zero + int(stream), zero + call)
    return philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))


def box_muller(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normal numbers, float64, of two words: of uniforms with 23 and 24 bits, which float32
    holds exactly."""
    radius = (-2.0 * ((2 * (high >> 9) + 1).double() * 2.0**-24).log()).sqrt()
    angle = (low >> 8).double() * (2.0 * math.pi * 2.0**-24)
    return radius * angle.cos(), radius * angle.sin()


def uniform(high: Tensor, low: Tensor) -> Tensor:
    """float64 uniform in (0, 1), never 0 or 1 and symmetric about ½, from 52 bits of two words."""
    bits = (high << 20) | (low >> 12)
    return (2 * bits + 1).double() * 2.0**-53


def below(word: Tensor, n: int | Tensor) -> Tensor:
    """Integer uniform in 0..n-1 by multiply-shift; no probability is off by more than 2^-32 (Lemire 2019)."""
    return (word * n) >> 32


def sort_key(high: Tensor, low: Tensor) -> Tensor:
    """63 bits of two words as a non-negative int64: equal keys, for which order decides, once in 2^63 pairs."""
    return (high << 31) | (low >> 1)


def symmetric_beta(seed: Tensor, index: Tensor, alpha: Tensor, stream: Stream = Stream.LAM) -> Tensor:
    """Beta(α, α) for every α > 0, exact, without rejection, as float64; α broadcasts against index.

    Y ~ Beta(α+1, α+1) by Ulrich's polar formula (Ulrich, "Computer generation of distributions on the m-sphere",
    Applied Statistics 33, 1984; Devroye, "Random variate generation in one line of code", 1996):
    Y = (1 + t)/2, t = cos(2πV) √(1 − U^(2/(2α+1))). Stuart's boost G(α) = G(α+1)·U^(1/α) then takes both gammas
    that make up Y from α+1 to α. Their ratio is formed from logarithms, so α = 0.01, where U^(1/α) is 1e-100 as
    often as not, neither underflows nor divides 0 by 0.
    """
    return 1.0 / (1.0 + (-symmetric_logit(seed, index, alpha, stream)).exp())


def symmetric_logit(seed: Tensor, index: Tensor, alpha: Tensor, stream: Stream, first: int | Tensor = 0) -> Tensor:
    """log(B/(1-B)) of B ~ Beta(α, α), as `symmetric_beta` makes it: of two calls, the `first` and the next."""
    calls = torch.arange(2, device=index.device).reshape(2, *[1] * max(seed.ndim, index.ndim)) + first
    a, b, c, d = words(seed, index, stream, calls)  # both calls in one evaluation
    (u, boost_u), (v, boost_v) = uniform(a, b), uniform(c, d)
    radius = (-((2.0 / (2.0 * alpha + 1.0)) * u.log()).expm1()).sqrt()
    t = radius * (2.0 * math.pi * v).cos()
    boost = (boost_u.log() - boost_v.log()) / alpha
    return t.log1p() - (-t).log1p() + boost
